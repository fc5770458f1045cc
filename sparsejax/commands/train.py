"""Train a sparse diffusion model.

    python -m sparsejax train                                    # digits, RigL, 75 % sparse
    python -m sparsejax train --config digits:static,0.9
    python -m sparsejax train --config.sparsity.method=magran --config.seed=1 --workdir runs/other
    python -m sparsejax train --config celebahq_ldm:rigl,0.5 --check

The same command resumes an interrupted run. Ctrl-C saves a checkpoint first; a run stopped by a
signal exits with 128 + the signal's number.
"""

import argparse
import contextlib
import pathlib
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from sparsejax import command_line, signals
from sparsejax.config_flags import parse_with_config
from sparsejax.errors import ConfigError
from sparsejax.processes import joining
from sparsejax.processes.together import together
from sparsejax.storage import storage_problem

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def main(argv: Sequence[str] | None = None) -> None:
    """Train, then write the pictures and table of the finished run.

    Raises:
      ConfigError: the config is invalid, or the workdir holds a different run.
    """
    parser = command_line.Parser(__doc__, prog="python -m sparsejax train")
    parser.add_argument(
        "--workdir",
        metavar="FOLDER",
        help="Folder of the run (default: runs/<config>-<method>-<structure>-<level>-<seed>).",
    )
    joining.add_flags(parser)
    parser.add_argument(
        "--check",
        action="store_true",
        help="Check the config, data and devices and print what would be trained and how much "
        "memory it takes, without training or writing to the workdir.",
    )
    _train(parse_with_config(parser, argv, default="digits"))


def _train(flags: argparse.Namespace) -> None:
    # Imported here since they take seconds, which --help and a mistyped flag shouldn't wait for.
    from sparsejax.parallel import connect_devices
    from sparsejax.training import runs

    workdir = pathlib.Path(flags.workdir or runs.default_workdir(flags.config))
    with contextlib.ExitStack() as stack:
        if joining.is_asked_for(flags):
            processes = joining.join(joining.find_processes(flags), flags.join_timeout)
            stack.enter_context(together(processes, workdir))
            connect_devices()
        _run(flags, workdir)


def _run(flags: argparse.Namespace, workdir: pathlib.Path) -> None:
    """Train in this process, one of several or alone."""
    from sparsejax.evaluation import closing
    from sparsejax.training import loop

    if flags.check:
        _check(flags.config, workdir)
        return
    try:
        if loop.train(flags.config, workdir) and not signals.received():
            closing.close_run(workdir)
    except ConfigError:
        raise
    except Exception as error:
        _say_what_is_saved(workdir, error)
        raise
    signum = signals.received()
    if signum:
        _stop(workdir, signum)


def _check(config: "ConfigDict", workdir: pathlib.Path) -> None:
    """Print tables of what `training.check` finds."""
    from rich.table import Table

    from sparsejax.configuration import asked_level, structure_words
    from sparsejax.evaluation.closing import console
    from sparsejax.quantities import quantity
    from sparsejax.sparsity.methods import get_method
    from sparsejax.training.check import check

    found = check(config, workdir)
    sparsity, steps, total = found.config.sparsity, found.config.steps, found.counts.total
    label, sizes = found.data or ("", {})
    counted = ", ".join(f"{size:,} of {name}" for name, size in sizes.items())
    count, kind = found.devices
    level = "" if sparsity.method == "dense" else f", S = {sparsity.level:g}"
    structure = "".join(f", {word}" for word in structure_words(sparsity))
    # Masks are those of the beginning.
    at_first = "at first" if get_method(sparsity.method).changes_density else ""
    actual = f"{1 - found.counts.sparsifiable.density:.4f} {at_first or 'actual'}"
    state = ", ".join(f"{name} {quantity(size)}B" for name, size in found.state_bytes.items())
    rows = {
        "method": f"{sparsity.method}{level}{structure}",
        "sparsity": f"{asked_level(sparsity):g} requested, {actual}",
        "data": found.download or f"{label}: {counted}",
        "parameters": f"{total.weights:,}, {total.active:,} of them active {at_first}".rstrip(),
        "steps": f"{steps:,}" + (f", {found.done:,} of them done" if found.done else ""),
        "topology updates": f"{found.updates:,}",
        "training state": f"{quantity(sum(found.state_bytes.values()))}B ({state})",
        "devices": f"{count} x {kind}",
        "batch": f"{found.config.batch_size}, {found.batch_per_device} at once on each device",
    }
    table = Table(title="Layers that can be sparse")
    for heading in ("layer", "weights", "S requested", f"S {at_first or 'actual'}"):
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    for layer in found.layers:
        requested = "" if layer.requested is None else f"{layer.requested:.4f}"
        table.add_row(layer.name, f"{layer.weights:,}", requested, f"{layer.actual:.4f}")
    console().print(table)
    table = Table(title=f"{found.config.name}, to be trained in {workdir}", show_header=False)
    for row in rows.items():
        table.add_row(*row)
    console().print(table)
    once = ", once its data are downloaded" if found.download else ""
    print(f"Checked: the run can start{once}. Nothing was trained or written to its folder.")


def _say_what_is_saved(workdir: pathlib.Path, error: Exception) -> None:
    """End in one line if a disk is full or can't be written to."""
    problem = storage_problem(error)
    if problem:
        saved = _saved_steps(workdir)[-1:]
        kept = f"step {saved[0]} is saved" if saved else "no checkpoint is saved yet"
        sys.exit(f"error: {problem}; {kept}. The same command resumes the run in {workdir}.")


def _stop(workdir: pathlib.Path, signum: signal.Signals) -> NoReturn:
    signals.say(
        f"Stopped by {signum.name}; step {_saved_steps(workdir)[-1]} is saved. "
        f"The same command resumes the run in {workdir}."
    )
    sys.exit(signals.exit_status(signum))


def _saved_steps(workdir: pathlib.Path) -> list[int]:
    from sparsejax.training import checkpoints

    return checkpoints.list_steps(workdir / "checkpoints")
