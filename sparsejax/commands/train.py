"""Train a sparse diffusion model.

    python -m sparsejax train                                    # digits, RigL, 75 % sparse
    python -m sparsejax train --config configs/digits.py:static,0.9
    python -m sparsejax train --config.sparsity.method=magran --config.seed=1 --workdir runs/other

The same command resumes a run that was interrupted. Ctrl-C saves a checkpoint first; a run that a
signal stopped exits with 128 + the signal's number.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from sparsejax import command_line, signals
from sparsejax.config_flags import parse_with_config
from sparsejax.errors import ConfigError
from sparsejax.storage import storage_problem

_CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"  # of a checkout


def main(argv: Sequence[str] | None = None) -> None:
    """Train, then show what came of it.

    Raises:
      ConfigError: the config can't work, or the workdir holds another run.
    """
    parser = command_line.Parser(__doc__, prog="python -m sparsejax train")
    parser.add_argument(
        "--workdir",
        metavar="FOLDER",
        help="Folder of the run (default: runs/<config>-<method>-<structure>-<level>-<seed>).",
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="This is one of several processes, as on TPU pods and clusters (jax.distributed).",
    )
    default = _CONFIGS / "digits.py"
    _train(parse_with_config(parser, argv, str(default) if default.is_file() else None))


def _train(flags: argparse.Namespace) -> None:
    # Here, since they take seconds, for which --help and a mistyped flag shouldn't wait.
    import jax

    from sparsejax.evaluation import closing
    from sparsejax.training import loop, runs

    if flags.distributed:
        jax.distributed.initialize()
    workdir = pathlib.Path(flags.workdir or runs.default_workdir(flags.config))
    try:
        if loop.train(flags.config, workdir) and not signals.received():
            closing.close_run(workdir)
    except ConfigError:
        raise
    except Exception as error:
        _say_what_is_saved(workdir, error)
        raise
    if signals.received():
        _stop(workdir, signals.received())


def _say_what_is_saved(workdir: pathlib.Path, error: Exception) -> None:
    """End in one line if a disk is full or can't be written to."""
    problem = storage_problem(error)
    if problem:
        saved = _saved_steps(workdir)[-1:]
        kept = f"step {saved[0]} is saved" if saved else "no checkpoint is saved yet"
        sys.exit(f"error: {problem}; {kept}. The same command goes on in {workdir}.")


def _stop(workdir: pathlib.Path, signum: int) -> None:
    signals.say(
        f"Stopped by {signum.name}; step {_saved_steps(workdir)[-1]} is saved. "
        f"The same command resumes the run in {workdir}."
    )
    sys.exit(signals.exit_status(signum))


def _saved_steps(workdir: pathlib.Path) -> list[int]:
    from sparsejax.training import checkpoints

    return checkpoints.list_steps(workdir / "checkpoints")
