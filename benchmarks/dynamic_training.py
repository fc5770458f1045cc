"""Train steps and topology updates of RigL-DM and MagRan-DM on compact networks, against dense.

    python -m benchmarks.dynamic_training [--torch-python OTHER/bin/python]
    python -m benchmarks.dynamic_training --network gru
    python -m benchmarks.dynamic_training --dtype bfloat16 --size 64 --batch 32 --json FILE

Forward and backward pass, optimizer and EMA: this project's own step under pmap. Models are
`kind:S`. `masked` is RigL with single weights, computed with zeros; `block` (constant fan-in) and
`channel` train the compact network, by the same step whether the method is RigL, MagRan or static:
only the topology updates differ. All programs run in turn in one process; `times gradient` says how
many dense gradients an update takes, `with updates` is a step and its share of an update at the
interval.

The bound is the ratio of the FLOPs of products. The error is the largest relative difference of
loss and gradient norm, over the first two steps, from those of the masked dense network. The peak
of a step is what its program holds at once, state included, as its compiler plans it. `times
PyTorch` is with updates, against the faster of PyTorch's two layouts of memory, on a CPU; its
processes run in turn with the programs.
"""

import argparse
import functools
import json
import pathlib
import resource
import statistics
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import against_pytorch, structured
from benchmarks.arguments import count
from benchmarks.timing import interleaved, machine
from configs import chirodiff
from sparsejax import command_line
from sparsejax.compact.states import shrink_state
from sparsejax.configuration import resolve
from sparsejax.families import build_model
from sparsejax.families.stroke_sampling import even_times
from sparsejax.parallel import data_parallel, shard_batch
from sparsejax.sparsity.masks import summarize
from sparsejax.training.keys import named_key
from sparsejax.training.optimizers import build_optimizer
from sparsejax.training.plan import build_plan
from sparsejax.training.state import state_from
from sparsejax.training.steps import (
    example_keys,
    make_topology_update,
    make_train_step,
    mean_gradients,
)

# What `--models`, `--model-channels`, `--size` and `--batch` are by default.
NETWORKS = {
    "unet": ("block:0.75,block:0.9", 128, 32, 4),  # more programs may exceed a process's maps
    "gru": ("masked:0.75,channel:0.5,channel:0.75", 96, 80, 64),
}
KINDS = {"dense": (), "masked": ("rigl",), "block": ("rigl", "magran")}
KINDS["channel"] = KINDS["block"]
STRUCTURES = {"dense": "dense", "masked": "weight"}  # of other kinds: their name
DENSE = ("dense", 0.0)
HIDDEN = ("json", "torch_python", "unchecked")  # not settings
HEADINGS = (
    *("model", "S", "method", "density", "step\nms", "update\nms", "times\ngradient"),
    *("times\ndense", "with\nupdates", "\nbound", "times\nPyTorch", "compile\nstep s"),
    *("\nupdate s", "state\nMB", "of\ndense", "peak\nMB", "\nerror"),
)
TORCH = ("eager", "eager channels_last")
TORCH_STEPS = 5


def parse():
    """Return the arguments of the command line; `models` becomes `[(kind, level), ...]`."""
    parser = structured.parser(__doc__, "benchmarks.dynamic_training")
    parser.set_defaults(block=(16, 64), model_channels=None, size=None, batch=None)
    parser.add_argument("--network", choices=tuple(NETWORKS), default="unet")
    parser.add_argument("--interval", type=count, default=100, help="steps from update to update")
    parser.add_argument(
        "--unchecked",
        action="store_true",
        help="leave out the error, for which a masked network has to fit into memory as well",
    )
    parser.add_argument("--torch-python", help="has PyTorch, whose dense step is timed too")
    arguments = parser.parse_args()
    models, *numbers = NETWORKS[arguments.network]
    for name, number in zip(("model_channels", "size", "batch"), numbers, strict=True):
        if getattr(arguments, name) is None:
            setattr(arguments, name, number)
    words = ["dense:0", *(arguments.models or models).split(",")]
    try:
        pairs = [(kind, float(level or 0)) for kind, _, level in (w.partition(":") for w in words)]
    except ValueError:
        parser.error(f"--models {arguments.models}: not kind:S with commas between")
    arguments.models = list(dict.fromkeys(pairs))
    kinds = ("dense", "masked", "channel") if arguments.network == "gru" else tuple(KINDS)
    for kind, level in arguments.models:
        if kind not in kinds or (level > 0) == (kind == "dense") or not 0 <= level < 1:
            accepted = f"{', '.join(kinds)}; all but dense with S between 0 and 1"
            parser.error(f"--models {kind}:{level:g}: accepted for {arguments.network}: {accepted}")
    for name in ("torch_python", "dtype", "multiples"):
        if arguments.network != "unet" and getattr(arguments, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')}: for the UNet, not for the GRU")
    if arguments.torch_python and arguments.multiples != parser.get_default("multiples"):
        parser.error("--torch-python: for the UNet of four levels; leave --multiples out")
    if arguments.json and not pathlib.Path(arguments.json).absolute().parent.is_dir():
        parser.error(f"--json {arguments.json}: there is no such folder")
    return arguments


def make_config(arguments, kind, level, method="rigl"):
    """Return the resolved config of one model: the UNet's, or ChiroDiff's published one."""
    structure = STRUCTURES.get(kind, kind)
    if arguments.network == "unet":
        changes = {"sparsity.method": "dense" if kind == "dense" else method}
        changes |= {"sparsity.fan_in": True} if kind == "block" else {}
        return structured.make_config(arguments, structure, level, **changes)
    config = chirodiff.get_config("dense" if kind == "dense" else f"{method},{level}")
    config.batch_size = arguments.batch
    config.model.hidden = arguments.model_channels
    config.sparsity.structure = "channel" if kind == "channel" else "weight"
    config.sparsity.distribution = arguments.distribution
    return resolve(config)


def make_model(arguments, config):
    """Return the Model of a config; the GRU's drawings are all of the given length."""
    facts = {"lengths": [arguments.size]} if arguments.network == "gru" else None
    return build_model(config, facts)


def make_batch(arguments):
    """Return a batch of noise: latents, or drawings that fill three quarters of their padding."""
    rng, count, size = np.random.default_rng(1), arguments.batch, arguments.size
    if arguments.network == "unet":
        return {"image": rng.standard_normal((count, size, size, 3), np.float32)}
    lengths = rng.integers(size // 2, size, count, np.int32, endpoint=True)
    points = rng.standard_normal((count, size, 3), np.float32)
    times = np.asarray(even_times(size, lengths, "threeseqabs"), np.float32)
    return {"points": points, "lengths": lengths, "times": times}


def compiled(function, *arguments):
    """Return the program of a function under pmap, whose state is donated, and what it takes."""
    began = time.perf_counter()
    program = data_parallel(function, donate_state=True).lower(*arguments).compile()
    figures = {"compile_seconds": time.perf_counter() - began}
    memory = program.memory_analysis()
    if memory is not None:
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes
        held += memory.temp_size_in_bytes - memory.alias_size_in_bytes
        figures["peak_bytes"] = held
    return program, figures


def density(kind, params, masks):
    """Return the density of the weights that S refers to: of the groups' arrays with channels."""
    if kind != "channel":
        return summarize(params, masks).sparsifiable.density
    leaves = [mask for mask in jax.tree.leaves(masks) if mask.ndim > 1]
    return sum(int(mask.sum()) for mask in leaves) / sum(mask.size for mask in leaves)


def two_steps(program, state, batch, key):
    """Return the state after two steps, and loss and gradient norm of each."""
    found = []
    for _ in range(2):
        state, metrics = program(state, batch, key)
        found.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return state, found


def make_update(arguments, kind, level, method, network):
    """Return the topology update of a method."""
    config = make_config(arguments, kind, level, method)
    model, optimizer = make_model(arguments, config), build_optimizer(config)
    plan = build_plan(config, model)
    return make_topology_update(
        model,
        optimizer,
        plan.method,
        plan.drop_fraction,
        density=jax.tree.map(lambda sparsity: 1.0 - sparsity, plan.sparsities),
        trees=network.trees if network else None,
    )


def make_gradient(model):
    """Return the dense gradient alone, as a function like a train step."""

    def gradient(state, batch, key):
        keys = example_keys(key, state.step, len(jax.tree.leaves(batch)[0]))
        return state, mean_gradients(model, 1, state.params, batch, keys)

    return gradient


def prepare(arguments, kind, level, params, reference):
    """Return the programs of one model, compiled, and its figures.

    Args:
      arguments: of the command line.
      kind: of `KINDS`.
      level: sparsity.
      params: of the dense network, host arrays.
      reference: the train step of networks whose masks all have full shape.

    Returns:
      Tuple of functions without arguments, `step` and the topology update of each method, by name,
      and a dictionary of figures, which has those of each program by the same name.
    """
    config = make_config(arguments, kind, level)
    model, optimizer = make_model(arguments, config), build_optimizer(config)
    masks = structured.draw_masks(config, model)
    params = structured.mask(params, masks)
    figures = structured.costs(model, params, masks)
    figures |= {"density_asked": 1 - level, "density_had": density(kind, params, masks)}
    batch = shard_batch(make_batch(arguments))
    keys = (named_key(0, "steps"), named_key(0, "topology"))
    network, expected = None, None
    if kind in ("block", "channel"):
        network = build_plan(config, model).compact(masks)
        if network is None:
            sys.exit(f"--models {kind}:{level:g}: no layer would become smaller")
    if network and not arguments.unchecked:
        # Masks of full shape everywhere: one program for all masked networks.
        full = jax.tree.map(lambda m, p: jnp.broadcast_to(m, p.shape), masks, params)
        masked = structured.placed(lambda: state_from(params, full, optimizer))
        _, expected = two_steps(reference, masked, batch, keys[0])
        del full, masked

    def first_state():
        whole = state_from(params, jax.tree.map(jnp.asarray, masks), optimizer)
        return shrink_state(network, whole) if network else whole

    state = structured.placed(first_state)
    figures["state_bytes"] = sum(x.nbytes for x in jax.tree.leaves(state))

    step = make_train_step(model, optimizer, ema_limit=config.ema.decay, network=network)
    step, figures["step"] = compiled(step, state, batch, keys[0])
    programs = {"step": (step, keys[0])}
    if kind == "dense":
        gradient, figures["gradient"] = compiled(make_gradient(model), state, batch, keys[0])
        programs["gradient"] = (gradient, keys[0])
    for method in KINDS[kind]:
        update = make_update(arguments, kind, level, method, network)
        update, figures[method] = compiled(update, state, batch, keys)
        programs[method] = (update, keys)
    state, metrics = two_steps(step, state, batch, keys[0])
    if expected:
        figures["error"] = float(np.max(np.abs(np.divide(metrics, expected) - 1)))
    return in_turn(state, batch, programs), figures


def in_turn(state, batch, programs):
    """Return functions without arguments: each runs one program on what the last one left."""

    def run(program, key):
        nonlocal state
        state, metrics = program(state, batch, key)
        jax.block_until_ready((state, metrics))

    return {name: functools.partial(run, *pair) for name, pair in programs.items()}


def torch_runs(arguments, folder):
    """Return functions that time PyTorch's dense step, each in a new process, and their figures.

    Args:
      arguments: of the command line.
      folder: for the weights that both sides begin with.

    Returns:
      Tuple of `{variant: function}` and `{variant: [figures of each call]}`.
    """
    python = arguments.torch_python
    if jax.default_backend() != "cpu":
        sys.exit("--torch-python: on a CPU; benchmarks.against_pytorch compares on accelerators")
    if against_pytorch.ask(python, "import torch; print(torch.__version__)") is None:
        sys.exit(against_pytorch.NO_TORCH.format(python))
    arguments = argparse.Namespace(
        **vars(arguments), device="cpu", ddim_steps=1, compile_mode="default"
    )
    against_pytorch.prepare(folder, arguments)
    script = pathlib.Path(against_pytorch.__file__).with_name("unet_torch.py")
    command = [python, str(script), str(folder), f"--threads={against_pytorch.core_count()}"]
    command += [f"--steps={TORCH_STEPS}", "--draws=0"]
    figures = {variant: [] for variant in TORCH}

    def run(variant):
        found = against_pytorch.run([*command, f"--variant={variant}"], None)
        if found is None:
            sys.exit("--torch-python: the process of PyTorch failed")
        figures[variant].append(found)

    return {variant: functools.partial(run, variant) for variant in TORCH}, figures


def summarize_rounds(arguments, figures, seconds, theirs):
    """Add medians and ratios, each within a round, to the figures.

    Args:
      arguments: of the command line.
      figures: `{(kind, level): figures}` of `prepare`.
      seconds: `{((kind, level), program): [seconds of each round]}`.
      theirs: `{variant: [seconds of each round]}` of PyTorch's step; may be empty.
    """
    dense, gradient = (seconds[DENSE, program] for program in ("step", "gradient"))
    fastest = min(theirs.values(), key=statistics.median, default=None)

    def ratio(others, ours):
        return statistics.median(a / b for a, b in zip(others, ours, strict=True))

    for name, f in figures.items():
        step = seconds[name, "step"]
        f["state_of_dense"] = f["state_bytes"] / figures[DENSE]["state_bytes"]
        for program in ("step", *KINDS[name[0]]):
            took = run = seconds[name, program]
            if program != "step":
                run = [a + b / arguments.interval for a, b in zip(step, took, strict=True)]
                f[program]["seconds_with_updates"] = statistics.median(run)
            f[program] |= {
                "rounds": took,
                "seconds": statistics.median(took),
                "times_dense": ratio(dense, run),
            }
            if program != "step":  # of a dense gradient: how many times as long
                f[program]["times_gradient"] = ratio(took, gradient)
            if fastest:
                f[program]["times_pytorch"] = ratio(fastest, run)


def report(arguments, figures, theirs, peak):
    """Print the table: the figures of a step, and beside them a row for each method."""
    network = f"{arguments.model_channels} hidden units, {arguments.size} points"
    if arguments.network == "unet":
        size, block = arguments.size, structured.block_word(arguments.block)
        network = f"{arguments.model_channels} base channels, {size} x {size}, blocks of {block}, "
        network += f"{arguments.distribution}, {arguments.dtype}"
    table = Table(
        title=f"Dynamic training, {arguments.network}: batch {arguments.batch}, {network}, "
        f"{jax.devices()[0].device_kind}",
        caption=f"Medians of {arguments.rounds} rounds; updates at interval {arguments.interval}; "
        f"peak of the process, all models at once: {short(peak / 1e6)} MB",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in HEADINGS:
        if theirs or "PyTorch" not in heading:
            left = heading in ("model", "method")
            table.add_column(heading, justify="left" if left else "right")
    headings = [column.header for column in table.columns]
    for cells in torch_rows(theirs, figures) + [c for n in figures for c in rows(n, figures[n])]:
        table.add_row(*(cells.get(heading, "") for heading in headings))
    Console(width=140).print(table)


def torch_rows(theirs, figures):
    """Return the cells of PyTorch's rows, by heading."""
    dense = figures[DENSE]["step"]["rounds"]
    found = []
    for variant, rounds in theirs.items():
        ratio = statistics.median(a / b for a, b in zip(dense, rounds, strict=True))
        cells = {"model": "dense", "method": f"torch {variant}", "step\nms": ms(rounds)}
        found.append(cells | {"times\ndense": f"{ratio:.2f}"})
    return found


def rows(name, f):
    """Return the cells of the rows of a model, by heading."""
    step, methods = f["step"], KINDS[name[0]]
    shared = {
        "model": name[0],
        "S": f"{name[1]:g}",
        "density": f"{f['density_had']:.3f}",
        "step\nms": ms(step["rounds"]),
        "times\ndense": f"{step['times_dense']:.2f}",
        "\nbound": f"{f['bound']:.2f}",
        "compile\nstep s": f"{step['compile_seconds']:.1f}",
        "state\nMB": short(f["state_bytes"] / 1e6),
        "of\ndense": f"{f['state_of_dense']:.3f}",
        "peak\nMB": short(step["peak_bytes"] / 1e6) if "peak_bytes" in step else "",
        "\nerror": f"{f['error']:.0e}" if "error" in f else "",
    }
    found = []
    for method in methods:
        update = f[method]
        cells = {
            "method": method,
            "update\nms": ms(update["rounds"]),
            "times\ngradient": f"{update['times_gradient']:.2f}",
            "with\nupdates": f"{update['times_dense']:.2f}",
            "\nupdate s": f"{update['compile_seconds']:.1f}",
        }
        if "times_pytorch" in update:
            cells["times\nPyTorch"] = f"{update['times_pytorch']:.2f}"
        found.append(cells)
    found = found or [{"times\nPyTorch": f"{step.get('times_pytorch', 1):.2f}"}]
    return [shared | found[0], *found[1:]]


def ms(rounds):
    """Return the median of seconds as milliseconds."""
    return short(1e3 * statistics.median(rounds))


def short(number):
    """Return a number with three digits, or more before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def main():
    """Run all programs in turn, print a table, and write the figures where `--json` says."""
    arguments = parse()
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are figures here
    config = make_config(arguments, *DENSE)
    model = make_model(arguments, config)
    params = structured.draw_params(model)
    reference = make_train_step(model, build_optimizer(config), ema_limit=config.ema.decay)
    reference = data_parallel(reference, donate_state=True)
    functions, figures, theirs = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.torch_python:
            functions, theirs = torch_runs(arguments, pathlib.Path(folder))
        for name in arguments.models:
            programs, figures[name] = prepare(arguments, *name, params, reference)
            functions |= {(name, program): run for program, run in programs.items()}
        seconds = interleaved(functions, arguments.rounds)
    theirs = {variant: found[1:] for variant, found in theirs.items()}  # the first to warm up
    steps = {variant: [f["train"] for f in found] for variant, found in theirs.items()}
    summarize_rounds(arguments, figures, seconds, steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    report(arguments, figures, steps, peak)
    if arguments.json:
        settings = {key: value for key, value in vars(arguments).items() if key not in HIDDEN}
        models = [{"kind": name[0], "level": name[1]} | f for name, f in figures.items()]
        result = {"settings": settings, "machine": machine(), "rows": models}
        result |= {"pytorch": theirs, "process_peak_bytes": peak}
        pathlib.Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    command_line.run(main)
