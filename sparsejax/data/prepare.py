"""Make a config's data ready before training: datasets on disk, latents encoded.

    python -m sparsejax.data.prepare --config configs/celebahq_ldm.py

Training does the same at its start; this does it alone, say on a machine with TensorFlow. An
interrupted call goes on when it is given again.
"""

import sys

from sparsejax import signals

if __name__ == "__main__":
    signals.watch("The same command goes on.")  # before the imports that take seconds

from absl import app
from absl import logging as absl_logging
from ml_collections import config_flags

from sparsejax.configuration import ConfigError, resolve

_CONFIG = config_flags.DEFINE_config_file("config", None, "Of the run to come.")


def main(argv):
    """Prepare the data; raises `app.UsageError` on arguments that are no flags."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    absl_logging.set_verbosity(absl_logging.WARNING)
    # The scripts know tasks, the data package doesn't.
    from sparsejax.tasks import build_task

    try:
        build_task(resolve(_CONFIG.value)).prepare()
    except (ConfigError, OSError) as error:
        sys.exit(f"error: {error}")
    print("The data is ready.")


if __name__ == "__main__":
    app.run(main)
