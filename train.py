"""Train a sparse diffusion model.

    python train.py                                            # digits, RigL, 75 % sparse
    python train.py --config configs/digits.py:static,0.9
    python train.py --config.sparsity.method=magran --config.seed=1 --workdir runs/other

The same command resumes a run that was interrupted. Ctrl-C saves a checkpoint first; a run that a
signal stopped exits with 128 + the signal's number.
"""

import logging
import pathlib
import sys

from sparsejax import signals

if __name__ == "__main__":
    signals.watch("The same command goes on.")  # before the imports that take seconds

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from sparsejax.configuration import ConfigError
from sparsejax.evaluation import closing
from sparsejax.storage import storage_problem
from sparsejax.training import checkpoints, loop, runs

_ROOT = pathlib.Path(__file__).resolve().parent
_CONFIG = config_flags.DEFINE_config_file("config", str(_ROOT / "configs" / "digits.py"))
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run lives; runs/<config>-<method>-<level>-<seed> by default."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes: TPU pods, clusters (jax.distributed)."
)


def main(argv):
    """Train, then show what came of it."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("sparsejax").setLevel(logging.INFO)
    if _DISTRIBUTED.value:
        jax.distributed.initialize()
    config = _CONFIG.value
    workdir = _WORKDIR.value or runs.default_workdir(config)
    try:
        if loop.train(config, workdir) and not signals.received():
            closing.close_run(workdir)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        _say_what_is_saved(pathlib.Path(workdir), error)
        raise
    if signals.received():
        _stop(pathlib.Path(workdir), signals.received())


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
    app.run(main)
