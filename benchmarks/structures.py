"""Quality of each structure at equal steps, and at equal training time.

    python -m benchmarks.structures --config configs/digits.py:sweep --output FOLDER
    python -m benchmarks.structures_report FOLDER/..

First the train step of every structure and the topology update of every method are timed in turn
with the dense step, in this process (times.json). A dense run of `config.steps` steps then says how
many seconds each run is given. Every run is trained once: it is measured after as many steps as
dense takes (equal steps) and after as many as fit into dense's seconds (equal time). The learning
rate is constant after its warm-up, and topology updates end at the same step in both, so the first
measurement is that of a run that ends there. Where both numbers of steps are within 1 %, they are
one.

Held-out loss and Frechet distance are those of `evaluate`, of the EMA weights. results.jsonl gets
a line for each measurement; the same command resumes, whole runs at a time. Blocks with constant
fan-in and channels train and are sampled without what is inactive, single weights and free blocks
with zeros. Seconds are CPU time of this process, which other programs hardly change; let it compute
on one thread. Compilation, data and measurements don't count.
"""

import functools
import itertools
import json
import logging
import pathlib
import statistics
import sys
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.timing import interleaved, machine
from sparsejax import command_line
from sparsejax.atomic import write_text
from sparsejax.compact.states import paired_model, shrink_state
from sparsejax.config_flags import parse_with_config
from sparsejax.configuration import resolve, set_key, with_defaults
from sparsejax.data.images import load_images
from sparsejax.errors import ConfigError
from sparsejax.evaluation.baselines import small_dense
from sparsejax.evaluation.evaluate import meter_of
from sparsejax.evaluation.held_out import held_out_loss
from sparsejax.evaluation.provenance import provenance
from sparsejax.families import build_data, build_model
from sparsejax.network_values import KINDS, kind_of
from sparsejax.parallel import data_parallel, replicate, shard_batch
from sparsejax.rendering.pixels import to_unit_range
from sparsejax.schema import SIZE
from sparsejax.sparsity.costs import active_parameters, forward_flops
from sparsejax.sparsity.masks import summarize
from sparsejax.training.keys import named_key
from sparsejax.training.optimizers import build_optimizer
from sparsejax.training.plan import build_plan
from sparsejax.training.sampling import frozen_of, make_sampler
from sparsejax.training.state import state_from
from sparsejax.training.steps import make_topology_update, make_train_step
from sparsejax.values import parse

SPARSE = ("channels", "square", "rectangular", "weights", "free")
DENSE = ("dense", "small_dense")
STEPS, TIME = "steps", "time"  # budgets
CLOSE = 0.01  # numbers of steps that differ by less are one


class Cell(NamedTuple):
    """Runs that differ by their seed only."""

    structure: str  # of `SPARSE` and `DENSE`
    method: str  # `dense` for `DENSE`
    level: float  # of `small_dense`: that of the sparse network with as many parameters


class Programs(NamedTuple):
    """What the runs of a cell share."""

    config: Any
    model: Any
    plan: Any
    network: Any  # the compact network that is trained; None if masked
    create: Any  # create(seed) -> TrainState
    step: Any
    update: Any
    costs: dict


def parse_flags(argv=None):
    """Return the flags; `config` has a constant learning rate."""
    parser = command_line.Parser(__doc__, prog="python -m benchmarks.structures")
    add = parser.add_argument
    add("--output", required=True, help="folder of times.json and results.jsonl")
    add("--levels", type=command_line.numbers(float), default=(0.75, 0.5), help="sparsities")
    add("--structures", type=command_line.words, default=SPARSE, help="some of " + str(SPARSE))
    add("--methods", type=command_line.words, default=("rigl", "magran"), help="sparse methods")
    add("--seeds", type=command_line.seeds, default=(0, 1, 2), help="seeds of the runs")
    add("--square", default="16", help="block size: free and square")
    add("--rectangular", default="8x32", help="block size, inputs x outputs")
    add("--held-out", default="", help="split of held-out images (drawings: reference split)")
    add("--samples", type=command_line.count, default=1000, help="for the Frechet distance")
    add("--no-samples", action="store_true", help="measure the held-out loss only")
    add("--rounds", type=command_line.count, default=15, help="of timing")
    add("--batches", type=command_line.count, default=1, help="timed steps in a round")
    flags = parse_with_config(parser, argv)
    unknown = set(flags.structures) - set(SPARSE)
    if unknown:
        raise ConfigError(f"--structures {', '.join(unknown)}; accepted: {', '.join(SPARSE)}")
    flags.config.optimizer.schedule = "constant"
    return flags


def cells_of(flags):
    """List the cells in the order of their worth: by level, dense first."""
    found = [Cell("dense", "dense", 0.0)]
    for level in flags.levels:
        found.append(Cell("small_dense", "dense", level))
        pairs = itertools.product(flags.structures, flags.methods)
        found += [Cell(structure, method, level) for structure, method in pairs]
    return found


def config_of(flags, cell):
    """Return the resolved config of a cell's runs, with the flags' seed."""
    config = ConfigDict(flags.config.to_dict())
    sparsity = config.sparsity
    sparsity.level = cell.level
    sparsity.method = "static" if cell.structure == "small_dense" else cell.method
    sparsity.structure = {"channels": "channel", "weights": "weight"}.get(cell.structure, "block")
    if cell.structure in DENSE:
        sparsity.structure = "weight"
    if sparsity.structure == "block":
        size = flags.rectangular if cell.structure == "rectangular" else flags.square
        set_key(config, "sparsity.block_size", parse(SIZE, size))
        sparsity.fan_in = cell.structure != "free"
    resolved = resolve(config)
    if cell.structure != "small_dense":
        return resolved
    return resolve(ConfigDict(small_dense(resolved).to_dict()))


def build(flags, cell, facts):
    """Return the Programs of a cell; nothing compiles yet, except what draws masks."""
    config = config_of(flags, cell)
    model, optimizer = build_model(config, facts), build_optimizer(config)
    plan = build_plan(config, model)

    @jax.jit
    def masked(init_key, masks_key):
        params = model.init(init_key)
        masks = plan.method.init(masks_key, params, plan.sparsities)
        return state_from(params, masks, optimizer)

    def first(seed):
        return masked(named_key(seed, "init"), named_key(seed, "masks"))

    state = first(0)
    network = plan.compact(state.masks) if plan.trains_compact else None

    def create(seed):
        state = first(seed)
        return replicate(shrink_state(network, state) if network else state)

    limit, trees = config.ema.decay, network.trees if network else None
    step = make_train_step(model, optimizer, ema_limit=limit, network=network)
    density = jax.tree.map(lambda sparsity: 1.0 - sparsity, plan.sparsities)
    update = make_topology_update(
        model, optimizer, plan.method, plan.drop_fraction, density=density, trees=trees
    )
    counts, flops = summarize(state.params, state.masks), model.layer_flops(state.params)
    costs = {
        "active_parameters": active_parameters(state.params, state.masks),
        "density": counts.sparsifiable.density,
        "forward_flops": forward_flops(flops, state.masks),
    }
    step, update = (data_parallel(f, donate_state=True) for f in (step, update))
    return Programs(config, model, plan, network, create, step, update, costs)


def keys_of(seed):
    """Return the keys of a run's steps and of its topology updates."""
    return named_key(seed, "steps"), named_key(seed, "topology")


def add_times(flags, cells, data, facts, path):
    """Return times.json, with the cells that it didn't have yet.

    Raises:
      ConfigError: it is of other settings.
    """
    settings = settings_of(flags)
    times = {"settings": settings, "machine": machine(), "rows": []}
    if path.exists():
        times = json.loads(path.read_text())
    saved = times["settings"]
    saved["config"] = shared_config(with_defaults(saved["config"], str(path)))
    if saved != settings:
        raise ConfigError(f"--output {path.parent} holds results of other settings; see {path}")
    known = {(row["structure"], row["sparsity"]) for row in times["rows"]}
    missing = [cell for cell in cells if (cell.structure, cell.level) not in known]
    if missing:
        dense = [cell for cell in cells if cell.structure == "dense" and cell not in missing]
        rows = measure_times(flags, dense + missing, data, facts)
        times["rows"] += rows[len(dense) :]
        write_text(path, json.dumps(times, indent=1) + "\n")
    return times


def measure_times(flags, cells, data, facts):
    """Time steps and updates of cells in turn, of which the first is dense; return rows."""
    batches = list(map(shard_batch, data.batches(0, flags.batches)))
    functions, first = {}, {}
    for cell in cells:
        programs, keys = build(flags, cell, facts), keys_of(0)
        kind = (cell.structure, cell.level)
        names = {} if kind in first else {"step": (programs.step, keys[0], batches)}
        if cell.structure not in DENSE:
            names[cell.method] = (programs.update, keys, batches[:1])
        first.setdefault(kind, {})
        for name, run in in_turn(programs.create(0), names).items():
            began = time.perf_counter()
            run()
            first[kind][name] = time.perf_counter() - began
            functions[*kind, name] = run
        print(f"compiled {' '.join(map(str, cell))}", flush=True)
    seconds = interleaved(functions, flags.rounds, time.process_time)
    dense, rows = seconds["dense", 0.0, "step"], []
    for (structure, level), compiled in first.items():
        ours = {name: seconds[structure, level, name] for name in compiled}
        ratios = [a / b for a, b in zip(dense, ours["step"], strict=True)]
        row = {"structure": structure, "sparsity": level, "first_calls": compiled}
        row |= {"times_dense": statistics.median(ratios), "rounds": ours}
        row["seconds"] = {name: statistics.median(each) for name, each in ours.items()}
        row["seconds"]["step"] /= len(batches)
        rows.append(row)
    return rows


def in_turn(state, programs):
    """Return functions without arguments: each runs one program on what the last one left.

    Args:
      state: TrainState.
      programs: `{name: (program, keys, batches)}`.
    """

    def run(program, keys, batches):
        nonlocal state
        for batch in batches:
            state, _ = program(state, batch, keys)
        jax.block_until_ready(state)

    return {name: functools.partial(run, *parts) for name, parts in programs.items()}


def settings_of(flags):
    """Return what all results of a folder share, JSON-able."""
    config = shared_config(flags.config.to_dict())
    names = ("methods", "square", "rectangular", "held_out", "samples", "no_samples")
    return json.loads(json.dumps({"config": config} | {n: getattr(flags, n) for n in names}))


def shared_config(config):
    """Return a config without its seed and without paths, JSON-able."""
    config = json.loads(json.dumps(config))
    config.pop("seed")
    task = config["task"]
    task["kind"] = kind_of(KINDS[task["name"]], task["kind"])
    for path in ("source", "data_dir"):
        task.pop(path)
    return config


def step_counts(times, programs, cell, steps):
    """Return seconds of a step, of an update, and the number of steps in dense's seconds.

    A structure's step takes dense's median, divided by the median ratio within a round.
    """
    rows = {(row["structure"], row["sparsity"]): row for row in times["rows"]}
    dense, row = rows["dense", 0.0], rows[cell.structure, cell.level]
    step = dense["seconds"]["step"] / row["times_dense"]
    update = row["seconds"].get(cell.method, 0.0)
    left = steps * dense["seconds"]["step"] - programs.plan.updates.count_due(steps) * update
    longest = int(left / step)
    return step, update, steps if abs(longest - steps) < CLOSE * steps else longest


def measurements_of(cell, steps, longest):
    """Return `{number of steps: budgets}`, ascending; dense is also measured before its end."""
    found = {}
    if cell.structure == "dense":
        found = {max(1, round(steps * part)): [] for part in (0.25, 0.5, 0.75)}
    for count, budget in ((steps, STEPS), (longest, TIME)):
        found.setdefault(count, []).append(budget)
    return dict(sorted(found.items()))


def train(programs, data, seed, points, measure):
    """Train one run; return `{number of steps: measures}`, training losses included."""
    state, keys, found, losses = programs.create(seed), keys_of(seed), {}, []
    for count, batch in enumerate(data.batches(0, max(points)), 1):
        batch = shard_batch(batch)
        state, metrics = programs.step(state, batch, keys[0])
        losses.append(metrics["loss"])
        if programs.plan.updates.is_due(count):
            state, _ = programs.update(state, batch, keys)
        if count in points:
            recent = np.mean([float(loss) for loss in losses[-20:]])
            found[count] = {"training_loss": float(recent)} | measure(state)
    return found


def measuring(flags, programs, data, meter, batch=100):
    """Return `measure(state) -> {name: value}`; its programs serve all runs of a cell."""
    network, model = programs.network, programs.model
    model = paired_model(network, model) if network else model
    frozen = frozen_of(model, data)
    draw = make_sampler(model, frozen, named_key(0, "evaluation"), batch)

    def held_out():
        if data.held_out:
            return data.held_out()
        images, _ = load_images(flags.config.task, flags.held_out)
        return iter([{"image": to_unit_range(images)}])

    def measure(state):
        ema = state.ema_params
        params = jax.device_get((ema, state.masks.indices) if network else ema)
        found = {"held_out_loss": held_out_loss(model, held_out(), params)}
        if meter:
            starts = range(0, meter.count, batch)
            drawn = (model.to_images(draw(params, s)[: meter.count - s]) for s in starts)
            found |= meter.measure(drawn)
        return found

    return measure


def read_rows(path):
    """Return the rows of results.jsonl; a line that was cut off is left out."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def run_cell(flags, cell, times, facts, meter, path):
    """Train and measure the runs of a cell that have no results yet; append them to the file."""
    done = {(r["structure"], r["method"], r["sparsity"], r["seed"]) for r in read_rows(path)}
    missing = [seed for seed in flags.seeds if (*cell, seed) not in done]
    if not missing:
        return
    programs = build(flags, cell, facts)
    steps = programs.config.steps
    step, update, longest = step_counts(times, programs, cell, steps)
    points, measure = measurements_of(cell, steps, longest), None
    for seed in missing:
        began = time.perf_counter()
        config = ConfigDict(programs.config.to_dict())
        config.seed = seed
        data = build_data(resolve(config))
        measure = measure or measuring(flags, programs, data, meter)
        found, rows = train(programs, data, seed, points, measure), []
        for count, measures in found.items():
            updates = programs.plan.updates.count_due(count)
            row = cell._asdict() | {"seed": seed, "steps": count, "budgets": points[count]}
            row["sparsity"] = row.pop("level")
            row |= {"training_seconds": count * step + updates * update, "step_seconds": step}
            rows.append(row | programs.costs | {"measures": measures} | provenance())
        text = "".join(json.dumps(row) + "\n" for row in read_rows(path) + rows)
        write_text(path, text)
        last = {name: round(value, 4) for name, value in measures.items()}
        took = time.perf_counter() - began
        print(f"{' '.join(map(str, cell))} seed {seed}: {count} steps {last} {took:.0f} s")
        sys.stdout.flush()


def main(argv=None):
    """Time, then train and measure what is missing."""
    flags = parse_flags(argv)
    command_line.show_messages()
    logging.getLogger("sparsejax").setLevel(logging.WARNING)
    output = pathlib.Path(flags.output)
    output.mkdir(parents=True, exist_ok=True)
    cells = cells_of(flags)
    config = config_of(flags, cells[0])
    data = build_data(config)
    data.prepare()
    facts = data.facts()
    times = add_times(flags, cells, data, facts, output / "times.json")
    options = {"metrics": ("fd",), "count": flags.samples}
    meter = None if flags.no_samples else meter_of(config, data=data, **options)
    for cell in cells:
        run_cell(flags, cell, times, facts, meter, output / "results.jsonl")


if __name__ == "__main__":
    command_line.run(main)
