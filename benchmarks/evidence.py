"""The runs of docs/evidence.md, one after another, while the time lasts.

    python -m benchmarks.evidence --list            (what is missing, and how long it should take)
    python -m benchmarks.evidence --minutes 100 --data FOLDER
    python -m benchmarks.evidence --minutes 60 --data FOLDER --large    (on an accelerator)
    python -m benchmarks.evidence_report            (tables, figures and answers)

Trains and evaluates the missing runs of `benchmarks/evidence_plan.py` in order, each in a process
of one thread, and adds a line to results.jsonl when one ends. No run is begun that isn't expected
to end in time. The same command goes on: an interrupted run is resumed if its workdir is still
there. Several of these commands share the runs. FOLDER holds the files that the plan names; by
default it is that of the environment variable SPARSEJAX_DATA.
"""

import json
import os
import pathlib
import resource
import sys
import time

import jax
import numpy as np
from PIL import Image

from benchmarks.evidence_plan import DATA_SETS, LARGE, METRICS, PLAN, RATES, entries_of
from benchmarks.timing import machine
from sparsejax import command_line, lease, signals
from sparsejax.atomic import append_lines, replacing
from sparsejax.config_files import load_config
from sparsejax.configuration import differing_keys, resolve, set_key, with_defaults
from sparsejax.errors import ConfigError
from sparsejax.evaluation.grids import grid
from sparsejax.evaluation.provenance import provenance
from sparsejax.evaluation.sweep import run_in_own_process
from sparsejax.families import build_data, build_model
from sparsejax.metrics.measures import build_meter
from sparsejax.reports.results import HELD_OUT, parse_results

OUTPUT = pathlib.Path("docs/results/evidence")
ONE_THREAD = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
DRAWS = 10  # of real examples
MOST, LEAST = 10_000, 100  # training examples that are drawn from; those that are left
SLACK = 1.15  # of the longest run of a study
MEASURING = 0.25  # of the minutes of a run that is trained, too
PICTURE = 320  # pixels, height and width of a kept grid of samples at most
# What may differ between the rows of a study.
FREE = ("seed", "sparsity.method", "sparsity.level", "task.source", "task.data_dir", "log")
FREE += ("checkpoint.every", "checkpoint.keep")


def read_rows(output):
    """Return the rows of results.jsonl; a line that was cut off has no result."""
    path = output / "results.jsonl"
    return parse_results(path, also=("study", "config"))[0] if path.exists() else []


def missing_of(studies, rows):
    """Return the runs of studies that have no row yet, in order."""
    done = {row["run"] for row in rows}
    return [entry for entry in entries_of(studies) if entry.name not in done]


def expected_minutes(entry, rows, workdirs):
    """Return how long a run should take: somewhat longer than the longest one like it."""
    question, data = entry.study.question, entry.study.data
    if question == "samples" and not (workdirs / first_dense(data) / "result.json").exists():
        question = "main"  # what is sampled has to be trained again
    trains = is_trained(question)
    same = [row for row in rows if row["data"] == data and is_trained(row["question"]) == trains]
    like = [row for row in same if row["study"] == entry.study.name] or same
    seconds = [row["wall_seconds"] for row in like][-10:]
    if seconds:
        return SLACK * max(seconds) / 60
    return DATA_SETS[data].minutes * (1 if trains else MEASURING)


def is_trained(question):
    """Return whether the runs of a question are trained, not only measured."""
    return question not in ("real", "samples")


def first_dense(data):
    """Return the name of the run that is sampled with several seeds."""
    return f"{data}-dense-0"


def chosen_rate(data, rows):
    """Return the learning rate with which dense has the lowest held-out loss.

    Raises:
      ConfigError: not all of `RATES` have been tried.
    """
    data = DATA_SETS[data].rates or data
    losses = {
        row["config"]["optimizer"]["learning_rate"]: row["measures"][HELD_OUT]
        for row in rows
        if (row["data"], row["question"]) == (data, "rate")
    }
    if set(losses) != set(RATES):
        tried = ", ".join(f"{rate:g}" for rate in sorted(losses)) or "none"
        raise ConfigError(f"learning rates tried on {data}: {tried}; accepted: the runs of all")
    return min(losses, key=losses.get)


def config_of(study, rows, folder):
    """Return the config of a study's runs."""
    data = DATA_SETS[study.data]
    config = load_config(data.config)
    changes = {"log.tensorboard": False, "checkpoint.keep": 1} | data.changes
    if data.source:
        changes["task.source"] = os.path.join(folder, data.source)
    if study.question not in ("rate", "real"):
        changes["optimizer.learning_rate"] = chosen_rate(study.data, rows)
    for key, value in (changes | study.changes | {"name": study.name}).items():
        set_key(config, key, value)
    return config


def measuring(entry):
    """Return how a run is measured, as its row records it."""
    seed = entry.seed if entry.study.question == "samples" else 0
    options = {"count": DATA_SETS[entry.study.data].samples, "subset_size": 500}
    return {"seed": seed, "batch": 250, "metrics": list(METRICS)} | options


def check_same(run, entry, rows):
    """Check that a run differs from the others of its study by method, sparsity and seed only.

    Raises:
      ConfigError: names the keys.
    """
    is_small = entry.method == "small_dense"
    for row in rows:
        if row["study"] != entry.study.name or (row["method"] == "small_dense") != is_small:
            continue
        free = (*FREE, "model") if is_small else FREE
        differing = differing_keys(resolve(run.config), with_defaults(row["config"]), free)
        if differing or (
            is_trained(entry.study.question) and row["evaluation"] != measuring(entry)
        ):
            listed = "; ".join(f"{key}: {how}" for key, how in differing.items())
            raise ConfigError(
                f"{entry.name} differs from {row['run']} ({listed or 'in how it is measured'}); "
                "accepted: the config of the study's other runs, or another --output"
            )


def train_and_measure(entry, config, rows, workdirs):
    """Train and evaluate a run in a process of its own.

    Returns:
      Tuple of its row, None if it failed, and the folder of its pictures.

    Raises:
      lease.HeldError: another process is at it.
    """
    seed, name = entry.seed, entry.name
    if entry.study.question == "samples":  # of the first dense run of the comparison
        config.name, seed, name = entry.study.data, 0, first_dense(entry.study.data)
    (run,) = grid(config, methods=(entry.method,), levels=(entry.level,), seeds=(seed,))
    check_same(run, entry, rows)
    workdir = workdirs / name
    with lease.hold(workdir) as guard:
        error = run_in_own_process(run, workdir, measuring(entry), guard)
        if error:
            print(f"{entry.name} failed: {error}", flush=True)
            return None, workdir
        row = json.loads((workdir / "result.json").read_text())
    return row | {"run": entry.name}, workdir


def measure_real(entry, config):
    """Measure real examples in place of samples: which values mean that nothing is left to gain.

    All real examples are split at random into a reference set, samples and training examples, as
    many as there are in the evaluation of a run.
    """
    config, how = resolve(config), measuring(entry)
    data = build_data(config)
    model = build_model(config, data.facts())
    sets = (data.reference(), data.training(MOST))
    reference, training = (np.asarray(model.to_images(examples)) for examples in sets)
    pool, found = np.concatenate([reference, training]), []
    count = min(how["count"], len(training) - LEAST)
    for draw in range(DRAWS):
        order = np.random.default_rng(draw).permutation(len(pool))
        drawn = np.split(pool[order], [len(reference), len(reference) + count])
        meter = build_meter(
            lambda drawn=drawn: drawn[0],
            data.label,
            labelled=data.labelled,
            training=lambda most, drawn=drawn: drawn[2][:most],
            count=count,
            metrics=how["metrics"],
            subset_size=how["subset_size"],
        )
        found.append(meter.measure([drawn[1]]))
    values = {name: [measures[name] for measures in found] for name in found[0]}
    row = {"run": entry.name, "method": "real", "sparsity": 0.0, "seed": 0, "steps": 0}
    row |= {"measures": {name: float(np.mean(ours)) for name, ours in values.items()}}
    row |= {"spreads": {name: float(np.std(ours, ddof=1)) for name, ours in values.items()}}
    return row | {"draws": DRAWS, "config": config.to_dict(), "evaluation": how} | provenance()


def run_entry(entry, rows, flags):
    """Run an entry and record it; return whether it has a row now."""
    config = config_of(entry.study, rows, flags.data)
    began, before = time.monotonic(), cpu_seconds()
    if entry.study.question == "real":
        row, workdir = measure_real(entry, config), None
    else:
        row, workdir = train_and_measure(entry, config, rows, flags.workdirs)
    if row is None:
        return False
    row.pop("layers", None)
    task = row["config"]["task"]
    task["source"] = pathlib.Path(task["source"]).name
    row |= {"study": entry.study.name, "data": entry.study.data, "question": entry.study.question}
    row |= {"wall_seconds": time.monotonic() - began, "cpu_seconds": cpu_seconds() - before}
    row["training_examples"] = build_data(resolve(config)).sizes()[config.task.split]
    row["machine"] = {key: machine()[key] for key in ("cpu", "cores", "environment")}
    record(row, flags.output)
    if entry.seed == entry.study.seeds[0] and is_trained(entry.study.question):
        keep_picture(workdir / "evaluation" / "samples.png", flags.output / "samples", entry.name)
    print(f"{entry.name}: {row['wall_seconds'] / 60:.1f} min", flush=True)
    return True


def cpu_seconds():
    """Return the CPU time of this process and of those that it has waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def record(row, output):
    """Add a row to results.jsonl."""
    path = output / "results.jsonl"
    with lease.hold_in_turn(output):
        is_cut = path.exists() and not path.read_bytes().endswith(b"\n")
        append_lines(path, [*([b""] if is_cut else []), json.dumps(row).encode()])


def keep_picture(path, folder, name):
    """Keep a grid of samples, small and with few colours."""
    folder.mkdir(exist_ok=True)
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((PICTURE, PICTURE))
    with replacing(folder / f"{name}.png") as partial:
        small.quantize(16).save(partial, optimize=True)


def run_missing(studies, flags):
    """Run what is missing and fits into the time; return the names of the runs that failed."""
    deadline, tried, failed = time.monotonic() + 60 * flags.minutes, set(), []
    while True:
        rows = read_rows(flags.output)
        left = [entry for entry in missing_of(studies, rows) if entry.name not in tried]
        if not left:
            return failed
        entry, minutes = left[0], (deadline - time.monotonic()) / 60
        needed = expected_minutes(entry, rows, flags.workdirs)
        if needed > minutes:
            print(f"{entry.name} takes about {needed:.1f} minutes, {max(0, minutes):.1f} are left")
            return failed
        tried.add(entry.name)
        try:
            failed += [] if run_entry(entry, rows, flags) else [entry.name]
        except lease.HeldError as refusal:
            print(f"{entry.name} is left to the process that is at it: {refusal}", flush=True)
        signum = signals.received()
        if signum:
            sys.exit(signals.exit_status(signum))


def show_missing(studies, rows, workdirs):
    """Print what is missing, with the minutes that it should take."""
    missing = missing_of(studies, rows)
    minutes = [expected_minutes(entry, rows, workdirs) for entry in missing]
    for entry, one in zip(missing, minutes, strict=True):
        print(f"{entry.name:40} {one:6.1f} min")
    total = len(entries_of(studies))
    print(f"{len(missing)} of {total} runs are missing: about {sum(minutes) / 60:.1f} hours")


def parse_flags(argv=None):
    """Return the flags, and the studies that they select."""
    parser = command_line.Parser(__doc__, prog="python -m benchmarks.evidence")
    add = parser.add_argument
    add("--list", action="store_true", help="Print what is missing, without training.")
    add("--minutes", type=float, default=60, help="For all runs of this call.")
    add("--data", default=os.environ.get("SPARSEJAX_DATA", "."), help="Folder of the data.")
    add("--output", type=pathlib.Path, default=OUTPUT, help="Folder of results.jsonl.")
    default = pathlib.Path("runs/evidence")
    add("--workdirs", type=pathlib.Path, default=default, help="Folder of the workdirs.")
    add("--studies", type=command_line.words, default=(), help="Only these.", metavar="NAMES")
    add("--large", action="store_true", help="Larger networks, for an accelerator.")
    flags = parser.parse_args(argv)
    studies = LARGE if flags.large else PLAN
    known = [study.name for study in studies]
    unknown = [name for name in flags.studies if name not in known]
    if unknown:
        raise ConfigError(f"--studies {', '.join(unknown)}; accepted: {', '.join(known)}")
    return flags, [study for study in studies if study.name in (flags.studies or known)]


def main(argv=None):
    """List or run what is missing."""
    flags, studies = parse_flags(argv)
    if flags.list:
        show_missing(studies, read_rows(flags.output), flags.workdirs)
        return
    if not flags.large:
        for name, value in ONE_THREAD.items():  # inherited by the processes of the runs
            os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")  # leaves an accelerator to the runs
    flags.output.mkdir(parents=True, exist_ok=True)
    failed = run_missing(studies, flags)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    signals.watch("The same command goes on.")
    command_line.run(main)
