r"""Run a grid of methods, sparsities and seeds, one run after another, and report.

    python -m sparsejax sweep --config configs/digits.py:sweep \
        --methods dense,small_dense,static,rigl,magran --levels 0.5,0.75,0.9 --seeds 0,1,2

Writes results.jsonl (a line a run), report.md and report.html to --output. The same command goes
on where it was interrupted, and other grids of the same config may be added to the same folder.
Every run has a process of its own: where one fails, the others go on, and the next call tries it
again.
"""

import contextlib
import fcntl
import json
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence

from sparsejax import command_line

if __name__ == "__main__":
    command_line.moved("sparsejax.evaluation.sweep", "sweep")

import jax
import ml_collections

from sparsejax import signals
from sparsejax.atomic import write_text
from sparsejax.config_flags import parse_with_config
from sparsejax.configuration import (
    FREE_ON_RESUME,
    STRUCTURES,
    differing_keys,
    resolve,
    with_defaults,
)
from sparsejax.data.images import PICTURES
from sparsejax.errors import ConfigError
from sparsejax.evaluation import closing
from sparsejax.evaluation.evaluate import (
    add_measuring,
    check_batch,
    evaluate_run,
    measuring,
    meter_of,
)
from sparsejax.evaluation.grids import BASELINES, grid
from sparsejax.reports.report import read_results, write_report
from sparsejax.seeds import check_seed
from sparsejax.sparsity.methods import METHODS
from sparsejax.storage import require_writable
from sparsejax.training import loop

_STOPPED = {
    code: signum.name
    for signum in signals.SIGNALS
    for code in (signals.exit_status(signum), -signum)
}


def sweep(runs, output, workdirs, *, seed=0, batch=256, **options):
    """Train and evaluate the runs that results.jsonl doesn't hold yet.

    Args:
      runs: list of `grids.Run`, of one dataset.
      output: folder of results.jsonl.
      workdirs: folder of the runs' workdirs; a run found there is resumed, or evaluated if it is
        finished.
      seed: of the samples' noise.
      batch: samples drawn at once.
      **options: of `measures.build_meter`, JSON-able.

    Returns:
      Dictionary `{name: error in a line}` of the runs that failed. A signal ends the sweep early
      (`signals.received`).

    Raises:
      ConfigError: another sweep is at work in `output`, or its results are of other configs or
        measured otherwise.
    """
    check_batch(batch)
    check_seed(seed)
    output, workdirs = pathlib.Path(output), pathlib.Path(workdirs)
    require_writable(output, "--output")
    require_writable(workdirs, "--workdirs")
    output.mkdir(parents=True, exist_ok=True)
    how = json.loads(json.dumps({"seed": seed, "batch": batch} | options))
    failed = {}
    with _only_one(output):
        results = output / "results.jsonl"
        missing = _missing(runs, _read(results), how)
        if missing:  # refuses what can't be measured before anything is trained
            meter_of(resolve(missing[0].config), **options)
        print(f"{len(runs) - len(missing)} of {len(runs)} runs are in {results}", flush=True)
        for index, run in enumerate(missing, 1):
            print(f"run {index} of {len(missing)}: {run.name}", flush=True)
            workdir = workdirs / run.name
            error = _in_own_process(run, workdir, how)
            if error and signals.received():
                break
            if error:
                failed[run.name] = error
                print(f"{run.name} failed: {error}")
            else:
                rows = [*_read(results), json.loads((workdir / "result.json").read_text())]
                write_text(results, "".join(json.dumps(row) + "\n" for row in rows))
            if signals.received():
                break
    return failed


@contextlib.contextmanager
def _only_one(folder):
    """Hold a lock that goes with the process, whatever ends it."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"another sweep is at work in {folder}") from error
        yield


def _read(path):
    return read_results(path) if path.exists() else []


def _missing(runs, rows, how):
    """Return the runs without a result; refuse results that the new ones can't stand beside."""
    done, how = {row["run"]: row for row in rows}, _recorded(how)
    for name, row in done.items():
        if row.get("pictures") != PICTURES:
            raise ConfigError(
                f"the results hold {name}, whose samples were measured as unrounded floats; "
                f"accepted: results of {PICTURES} pictures, in another output"
            )
        if row["evaluation"] != how:
            raise ConfigError(
                f"{name} was evaluated by {row['evaluation']}; accepted: the same, or another "
                f"output than with {how}"
            )
    for run in runs:
        row = done.get(run.name)
        if row is not None:
            saved = with_defaults(row["config"], run.name)
            kept = resolve(run.config, saved).diffusion  # default betas are those that the run had
            ours = ml_collections.ConfigDict(resolve(run.config).to_dict())
            ours.diffusion = ml_collections.ConfigDict(kept.to_dict())
            # What a figure was measured on is part of it.
            free = [key for key in FREE_ON_RESUME if not key.startswith("task.")]
            free.append("sparsity.includes_end")  # an older run keeps its update there
            differing = differing_keys(ours, saved, free)
            if differing:
                raise ConfigError(
                    f"the results hold {run.name} of another config: {'; '.join(differing)}"
                )
        elif rows:
            first, ours = with_defaults(rows[0]["config"], rows[0]["run"]), resolve(run.config)
            ours = with_defaults(ours.to_dict())
            for key in ("task", "diffusion"):
                if ours[key] != first[key]:
                    raise ConfigError(
                        f"{run.name} has another config.{key} than {rows[0]['run']}: "
                        f"{ours[key]}, not {first[key]}"
                    )
    return [run for run in runs if run.name not in done]


def _recorded(how):
    """Leave out where Inception's weights lie: they are the same everywhere."""
    return {key: value for key, value in how.items() if key != "weights"}


def _in_own_process(run, workdir, how):
    """Train and evaluate; return None, or the error in a line."""
    process = multiprocessing.get_context("spawn").Process(
        target=_train_and_evaluate, args=(run, workdir, how)
    )

    def stop():
        if process.pid:  # it is started
            process.terminate()

    with signals.saving(stop) as request:
        request.after = "a checkpoint of this run"
        # A terminal's Ctrl-C would reach it too; it is told to stop by SIGTERM.
        with signals.ignored(signal.SIGINT):
            process.start()
        if request.signum:
            stop()
        try:
            process.join()
        finally:
            if process.is_alive():
                process.terminate()
                process.join()
    if process.exitcode == 0:
        return None
    if process.exitcode in _STOPPED:
        return f"stopped by {_STOPPED[process.exitcode]}"
    path = workdir / "error.txt"
    if process.exitcode == 1 and path.exists():
        return f"{path.read_text().splitlines()[0]}; all of it in {path}"
    return f"exit code {process.exitcode}"


def _train_and_evaluate(run, workdir, how):
    """Leave result.json, or error.txt, in the workdir."""
    signals.watch(quiet=True)
    _end_with_parent()
    command_line.show_messages()
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        loop.train(run.config, workdir)
        if signals.received():
            sys.exit(signals.exit_status(signals.received()))
        closing.close_run(workdir)
        began = time.time()
        options = dict(how)
        drawing = {key: options.pop(key) for key in ("seed", "batch")}
        row = evaluate_run(workdir, meter_of(resolve(run.config), **options), **drawing)
    except Exception as error:
        first = command_line.one_line(error)
        text = f"{type(error).__name__}: {first}\n\n{traceback.format_exc()}"
        try:
            write_text(workdir / "error.txt", text)
        except OSError:  # a full disk, say
            sys.exit(f"error: {first}")
        sys.exit(1)
    row |= {"method": run.method, "sparsity": run.level, "evaluation": _recorded(how)}
    row["seconds"] = row["training_seconds"] + time.time() - began
    write_text(workdir / "result.json", json.dumps(row) + "\n")


def _end_with_parent():
    """End this process when the sweep is killed, so that no two ever train in one workdir."""
    parent = multiprocessing.parent_process()

    def watch():
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the grid that the flags describe."""
    flags = parse_with_config(_parser(), argv)
    jax.config.update("jax_platforms", "cpu")  # the accelerator belongs to the runs
    output = pathlib.Path(flags.output or f"runs/sweeps/{flags.config.name}")
    workdirs = pathlib.Path(flags.workdirs or output / "runs")
    runs = grid(
        flags.config,
        methods=flags.methods,
        levels=flags.levels,
        structures=flags.structures,
        drop_fractions=flags.drop_fractions,
        update_intervals=flags.update_intervals,
        seeds=flags.seeds,
    )
    failed = sweep(runs, output, workdirs, **measuring(flags))
    if signals.received():
        _stop(signals.received(), output)
    write_report(output, _read(output / "results.jsonl"), runs=workdirs)
    print(f"In {output}: results.jsonl, report.md, report.html")
    if failed:
        sys.exit("failed: " + "; ".join(f"{name}: {error}" for name, error in failed.items()))


def _stop(signum, output):
    signals.say(f"Stopped by {signum.name}. The same command goes on in {output}.")
    sys.exit(signals.exit_status(signum))


def _parser():
    parser = command_line.Parser(__doc__, prog="python -m sparsejax sweep")
    words, numbers = command_line.words, command_line.numbers
    parser.add_argument(
        "--methods",
        metavar="NAMES",
        type=words,
        default="dense,static,rigl,magran",
        help=f"Of {', '.join([*METHODS, *BASELINES])}.",
    )
    parser.add_argument(
        "--levels", type=numbers(float), default="0.5", metavar="NUMBERS", help="Sparsities."
    )
    parser.add_argument(
        "--structures",
        metavar="NAMES",
        type=words,
        default="",
        help=f"Of {', '.join(STRUCTURES)} (default: the config's).",
    )
    parser.add_argument(
        "--drop-fractions",
        type=numbers(float),
        default="",
        metavar="NUMBERS",
        help="Drop fractions (default: the config's).",
    )
    parser.add_argument(
        "--update-intervals",
        type=numbers(int),
        default="",
        metavar="NUMBERS",
        help="Steps between topology updates (default: the config's).",
    )
    parser.add_argument(
        "--seeds",
        type=command_line.seeds,
        default="0",
        metavar="NUMBERS",
        help="Seeds of the runs.",
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="Folder of the results (default: runs/sweeps/<name of the config>).",
    )
    parser.add_argument(
        "--workdirs",
        metavar="FOLDER",
        help="Folder of the runs' workdirs (default: <output>/runs).",
    )
    add_measuring(parser)
    return parser
