"""Train a sparse diffusion model.

    python train.py                                            # digits, RigL, 75 % sparse
    python train.py --config configs/digits.py:static,0.9
    python train.py --config.sparsity.method=magran --config.seed=1 --workdir runs/other

The same command resumes a run that was interrupted. Ctrl-C saves a checkpoint first; a run that a
signal stopped exits with 128 + the signal's number.
"""

import pathlib
import sys

from sparsejax import signals

if __name__ == "__main__":
    signals.watch("The same command goes on.")  # before the imports that take seconds

import jax

from sparsejax import command_line
from sparsejax.config_files import parse_with_config
from sparsejax.errors import ConfigError
from sparsejax.evaluation import closing
from sparsejax.storage import storage_problem
from sparsejax.training import checkpoints, loop, runs

_ROOT = pathlib.Path(__file__).resolve().parent


def main():
    """Train, then show what came of it."""
    parser = command_line.Parser(__doc__, prog="python train.py")
    parser.add_argument(
        "--workdir",
        metavar="FOLDER",
        help="Folder of the run (default: runs/<config>-<method>-<structure>-<level>-<seed>).",
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="One of several processes, as on TPU pods and clusters (jax.distributed).",
    )
    flags = parse_with_config(parser, str(_ROOT / "configs" / "digits.py"))
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


def _say_what_is_saved(workdir, error):
    """End in one line if a disk is full or can't be written to."""
    problem = storage_problem(error)
    if problem:
        saved = checkpoints.list_steps(workdir / "checkpoints")[-1:]
        kept = f"step {saved[0]} is saved" if saved else "no checkpoint is saved yet"
        sys.exit(f"error: {problem}; {kept}. The same command goes on in {workdir}.")


def _stop(workdir, signum):
    saved = checkpoints.list_steps(workdir / "checkpoints")[-1]
    signals.say(
        f"Stopped by {signum.name}; step {saved} is saved. "
        f"The same command resumes the run in {workdir}."
    )
    sys.exit(signals.exit_status(signum))


if __name__ == "__main__":
    command_line.run(main)
