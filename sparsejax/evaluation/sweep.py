"""Train and evaluate the runs of a grid that have no result yet, one after another.

Every run has its own process: if one fails, the others continue, and the next call tries it again.
Several sweeps, on one machine or many, can share a grid: the lease of a workdir claims its run.
`python -m sparsejax sweep` is the command.
"""

import functools
import itertools
import json
import logging
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence

import ml_collections

from sparsejax import command_line, lease, signals
from sparsejax.atomic import append_lines, write_text
from sparsejax.configuration import FREE_ON_RESUME, differing_keys, resolve, with_defaults
from sparsejax.errors import ConfigError
from sparsejax.evaluation import closing
from sparsejax.evaluation.evaluate import check_batch, evaluate_run, meter_of
from sparsejax.evaluation.grids import Run
from sparsejax.metrics.names import DEFAULT_METRICS
from sparsejax.rendering.pixels import PICTURES
from sparsejax.reports.results import Row, parse_results
from sparsejax.seeds import check_seed
from sparsejax.storage import require_writable
from sparsejax.training import loop
from sparsejax.training.side_files import saved_config
from sparsejax.types import PathLike, Value

logger = logging.getLogger(__name__)

_PICTURES_OF_TRAINING = ("every", "count")  # keys of config.sample that no measure depends on
_STOPPED = {
    code: signum.name
    for signum in signals.SIGNALS
    for code in (signals.exit_status(signum), -signum)
}


def sweep(
    runs: Sequence[Run],
    output: PathLike,
    workdirs: PathLike,
    *,
    seed: int = 0,
    batch: int = 256,
    **options: Value,
) -> dict[str, str]:
    """Train and evaluate the runs that results.jsonl doesn't hold yet.

    Runs that another process is at are left to it, and named; those of dead processes are taken
    over.

    Args:
      runs: runs on one dataset, as `grids.grid` lists them.
      output: folder of results.jsonl.
      workdirs: folder of the runs' workdirs; a run found there is resumed, or evaluated if it is
        finished.
      seed: seed of the sampling noise.
      batch: number of samples drawn at once.
      **options: see `measures.build_meter`; JSON-serializable.

    Returns:
      `{name: error in one line}` of the runs that failed. A signal ends the sweep early
      (`signals.received`).

    Raises:
      ConfigError: the results in `output` have different configs or were measured differently, or a
        workdir holds a run of another number of steps.
    """
    how = _how(seed, batch, options)
    output, workdirs = pathlib.Path(output), pathlib.Path(workdirs)
    require_writable(output, "--output")
    require_writable(workdirs, "--workdirs")
    output.mkdir(parents=True, exist_ok=True)
    results = output / "results.jsonl"
    missing = missing_runs(runs, _read(results), how)
    # What is wrong with the options or the workdirs is said before anything is trained.
    for run in missing:
        _check_steps(run, workdirs / run.name)
    if missing:
        meter_of(resolve(missing[0].config), **options)
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are in {results}", flush=True)
    if _parse(results)[1]:
        with lease.hold_in_turn(output):
            _write(results)
    failed: dict[str, str] = {}
    left, count = missing, itertools.count(1)
    # Runs that others hold come last: by then these may have ended, or turn out to be dead.
    for patience in (None, lease.PATIENCE):
        held: dict[str, str] = {}
        for run in left:
            try:
                with lease.hold(workdirs / run.name, patience=patience) as guard:
                    if not missing_runs([run], _read(results), how):
                        continue  # another process has ended it
                    print(f"run {next(count)} of {len(missing)}: {run.name}", flush=True)
                    error = _claimed_run(run, workdirs / run.name, results, how, guard)
            except lease.HeldError as refusal:
                held[run.name] = str(refusal)
                continue
            if signals.received():
                return failed
            if error:
                failed[run.name] = error
                print(f"{run.name} failed: {error}")
        left = [run for run in left if run.name in held]
    for name, message in held.items():
        print(f"{name} is left to the process that is at it: {message}", flush=True)
    return failed


def list_missing(
    runs: Sequence[Run], output: PathLike, *, seed: int = 0, batch: int = 256, **options: Value
) -> list[Run]:
    """Return the runs that results.jsonl doesn't hold yet; see `sweep` for the arguments.

    Raises:
      ConfigError: the results in `output` have different configs or were measured differently.
    """
    how = _how(seed, batch, options)
    return missing_runs(runs, _read(pathlib.Path(output) / "results.jsonl"), how)


def _how(seed: int, batch: int, options: Row) -> Row:
    """Return the options of an evaluation, by name, as results.jsonl has them."""
    check_batch(batch)
    check_seed(seed)
    return json.loads(json.dumps({"seed": seed, "batch": batch} | options))


def _claimed_run(
    run: Run, workdir: pathlib.Path, results: pathlib.Path, how: Row, guard: lease.Guard
) -> str | None:
    """Train and evaluate a run whose lease is held, and add its row; return the error, if any."""
    error = run_in_own_process(run, workdir, how, guard)
    guard()
    if not error:
        row = json.loads((workdir / "result.json").read_text())
        with lease.hold_in_turn(results.parent):
            _write(results, [row])
    return error


def _write(results: pathlib.Path, added: Sequence[Row] = ()) -> None:
    """Add rows to results.jsonl, whose lease is held; move damaged lines to another file."""
    rows, damaged = _parse(results)
    if damaged:
        append_lines(results.with_name("results.damaged.jsonl"), (line for line, _ in damaged))
    names = [row["run"] for row in added]
    rows = [row for row in rows if row["run"] not in names] + [*added]
    write_text(results, "".join(json.dumps(row) + "\n" for row in rows))


def _read(path: pathlib.Path) -> list[Row]:
    """Return the rows of results.jsonl; runs whose line is damaged have no result yet."""
    rows, damaged = _parse(path)
    for line, problem in damaged:
        _warn(path, line, problem)
    return rows


def _parse(path: pathlib.Path) -> tuple[list[Row], list[tuple[bytes, str]]]:
    if not path.exists():
        return [], []
    rows, damaged = parse_results(path, also=("config",))
    return rows, list(damaged.values())


@functools.cache  # once for each line: the file is read before and after every run
def _warn(path: pathlib.Path, line: bytes, problem: str) -> None:
    del line
    logger.warning("%s: a line is damaged and does not count: %s", path, problem)


def missing_runs(runs: Sequence[Run], rows: Sequence[Row], how: Row) -> list[Run]:
    """Return the runs that have no result yet.

    Args:
      runs: runs of a grid.
      rows: rows of results.jsonl.
      how: options of the evaluation, by name.

    Raises:
      ConfigError: the results can't be added to, since they are of other configs or data, or
        measured differently.
    """
    done = {row["run"]: row for row in rows}
    for row in rows:
        _check_measured(row, _recorded(how))
    for run in runs:
        if run.name in done:
            _check_config(run, done[run.name])
        elif rows:
            _check_data(run, rows[0])
    return [run for run in runs if run.name not in done]


def _check_measured(row: Row, how: Row) -> None:
    """Raise ConfigError if a row was measured differently than `how`."""
    if row.get("pictures") != PICTURES:
        raise ConfigError(
            f"the results hold {row['run']}, whose samples were measured as unrounded floats; "
            f"accepted: another --output, for results of {PICTURES} pictures"
        )
    if row.get("evaluation") != how:
        theirs = row.get("evaluation", "options that weren't recorded")
        raise ConfigError(
            f"{row['run']} was evaluated with {theirs}, but this sweep would evaluate with {how}; "
            "accepted: the same options, or another --output"
        )


def _check_config(run: Run, row: Row) -> None:
    """Raise ConfigError if a run's row has another config."""
    saved = with_defaults(row["config"], run.name)
    kept = resolve(run.config, saved)  # default betas and fan-in are those of the saved run
    ours = ml_collections.ConfigDict(resolve(run.config).to_dict())
    ours.diffusion = ml_collections.ConfigDict(kept.diffusion.to_dict())
    ours.sparsity.fan_in = kept.sparsity.fan_in
    # A number depends on the data that it was measured on, and on how samples were drawn.
    free = [key for key in FREE_ON_RESUME if not key.startswith(("task.", "sample", "steps"))]
    free += [f"sample.{key}" for key in _PICTURES_OF_TRAINING]
    free.append("sparsity.includes_end")  # an older run also updates at `end`
    differing = differing_keys(ours, saved, free)
    if differing:
        listed = "; ".join(f"{key}: {how}" for key, how in differing.items())
        raise ConfigError(
            f"the results hold {run.name} with a different config: {listed}; accepted: the same "
            "config, or another --output"
        )


def _check_steps(run: Run, workdir: pathlib.Path) -> None:
    """Raise ConfigError if a workdir holds the run with another number of steps.

    `train` resumes such a run, but its schedules change on the way, and `sparsity.end` stays as it
    was: it can't be compared with runs that take as many steps from the start.
    """
    try:
        saved = saved_config(workdir) or {}
    except ConfigError:  # which the run itself will say
        return
    before, now = saved.get("steps", run.config.steps), run.config.steps
    if now != before:
        raise ConfigError(
            f"config.steps is {now}, but {workdir} holds a run of {before} steps, which wouldn't "
            f"compare with runs of {now}; accepted: {before}, or other --output and --workdirs"
        )


def _check_data(run: Run, row: Row) -> None:
    """Raise ConfigError if a run's data, diffusion or sampling differ from a row's."""
    first = with_defaults(row["config"], row["run"])
    ours = with_defaults(resolve(run.config).to_dict())
    for config in (first, ours):
        for key in _PICTURES_OF_TRAINING:
            config["sample"].pop(key, None)
    for key in ("task", "diffusion", "sample"):
        if ours[key] != first[key]:
            raise ConfigError(
                f"{run.name} has a different config.{key} from {row['run']}: {ours[key]} instead "
                f"of {first[key]}"
            )


def _recorded(how: Row) -> Row:
    """Return the options as results.jsonl has them.

    Inception's weights are always the same, so their path doesn't count. Metrics that aren't named
    are the default ones, as far as there are enough examples.
    """
    recorded = {key: value for key, value in how.items() if key != "weights"}
    unnamed = recorded.get("metrics", ()) is None
    return recorded | ({"metrics": list(DEFAULT_METRICS)} if unnamed else {})


def run_in_own_process(run: Run, workdir: pathlib.Path, how: Row, guard: lease.Guard) -> str | None:
    """Train and evaluate a run in a process of its own, which writes result.json to the workdir.

    Args:
      run: a run of the grid.
      workdir: its workdir.
      how: options of the evaluation, by name.
      guard: guard of the workdir's lease, which this process holds; it can be pickled.

    Returns:
      None, or the error in one line.
    """
    process = multiprocessing.get_context("spawn").Process(
        target=_train_and_evaluate, args=(run, workdir, how, guard)
    )

    def stop() -> None:
        if process.pid:  # it is started
            process.terminate()

    with signals.saving(stop) as request:
        request.after = "a checkpoint of this run"
        # A terminal's Ctrl-C would reach the process too; it is stopped by SIGTERM instead.
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
        first = path.read_text(errors="replace").partition("\n")[0] or "an error"
        return f"{first}; details in {path}"
    return f"exit code {process.exitcode}"


def _train_and_evaluate(run: Run, workdir: pathlib.Path, how: Row, guard: lease.Guard) -> None:
    """Write result.json, or error.txt, to the workdir."""
    signals.watch(quiet=True)
    _end_with_parent()
    command_line.show_messages()
    # What is measured, and how well, is the same for all runs; the sweep has said it.
    logging.getLogger("sparsejax.metrics.measures").setLevel(logging.ERROR)
    logging.getLogger("sparsejax.metrics.extractors").setLevel(logging.WARNING)
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        loop.train(run.config, workdir, guard)
        signum = signals.received()
        if signum is not None:
            sys.exit(signals.exit_status(signum))
        closing.close_run(workdir, guard)
        began = time.time()
        options = dict(how)
        drawing = {key: options.pop(key) for key in ("seed", "batch")}
        guard()
        row = evaluate_run(workdir, meter_of(resolve(run.config), **options), **drawing)
    except Exception as error:
        first = command_line.one_line(error)
        text = f"{type(error).__name__}: {first}\n\n{traceback.format_exc()}"
        try:
            guard()
            write_text(workdir / "error.txt", text)
        except (OSError, lease.HeldError):  # such as a full disk
            sys.exit(f"error: {first}")
        sys.exit(1)
    row |= {"method": run.method, "sparsity": run.level, "evaluation": _recorded(how)}
    row["seconds"] = row["training_seconds"] + time.time() - began
    guard()
    write_text(workdir / "result.json", json.dumps(row) + "\n")


def _end_with_parent() -> None:
    """End this process if the sweep is killed, so that no two ever train in one workdir."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a run of a sweep is a process of its own"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    command_line.moved("sparsejax.evaluation.sweep", "sweep")
