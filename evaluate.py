"""Evaluate and compare trained runs.

    python evaluate.py --workdirs runs/digits-rigl-0.75-0
    python evaluate.py --workdirs runs/digits-rigl-0.75-0,runs/digits-dense-0 --samples 1000

Writes results.jsonl, report.md and report.html into --output: the workdir by default, or, for
several runs, the folder `comparison` beside the first.
"""

import logging
import pathlib
import sys

from sparsejax import signals

if __name__ == "__main__":
    signals.watch("The same command begins again.")  # before the imports that take seconds

from absl import app, flags
from absl import logging as absl_logging

from sparsejax.configuration import ConfigError
from sparsejax.evaluation import measures
from sparsejax.evaluation.evaluate import evaluate_runs
from sparsejax.evaluation.extractors import EXTRACTORS

_WORKDIRS = flags.DEFINE_list("workdirs", None, "Workdirs of finished runs.", required=True)
_SAMPLES = flags.DEFINE_integer("samples", None, "Samples a run; as many as real ones by default.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the noise that all runs sample from.")
_BATCH = flags.DEFINE_integer("batch", 256, "Samples drawn at once, over all devices.")
_METRICS = flags.DEFINE_list("metrics", list(measures.METRICS), "What to measure.")
_EXTRACTOR = flags.DEFINE_enum(
    "extractor", None, EXTRACTORS, "A classifier by default, or pixels where there are no labels."
)
_WEIGHTS = flags.DEFINE_string("inception-weights", None, "Weight file of the FID Inception.")
_STATISTICS = flags.DEFINE_string(
    "reference-statistics", None, "An npz with mu and sigma, in place of the real examples."
)
_SAVE_STATISTICS = flags.DEFINE_string(
    "save-statistics", None, "Write such an npz of the real examples."
)
_SUBSET_SIZE = flags.DEFINE_integer(
    "kid_subset_size", measures.SUBSET_SIZE, "Of the subsets that KID draws."
)
_PNG = flags.DEFINE_bool("png", False, "Also write every sample as samples/<run>/<index>.png.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write to.")


def main(argv):
    """Evaluate the runs."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("sparsejax").setLevel(logging.INFO)
    if not _WORKDIRS.value:
        raise app.UsageError("--workdirs names no run")
    workdirs = [pathlib.Path(workdir) for workdir in _WORKDIRS.value]
    beside = workdirs[0] if len(workdirs) == 1 else workdirs[0].parent / "comparison"
    try:
        evaluate_runs(
            workdirs,
            _OUTPUT.value or beside,
            seed=_SEED.value,
            batch=_BATCH.value,
            png=_PNG.value,
            count=_SAMPLES.value,
            metrics=_METRICS.value,
            extractor=_EXTRACTOR.value,
            weights=_WEIGHTS.value,
            statistics=_STATISTICS.value,
            save_statistics=_SAVE_STATISTICS.value,
            subset_size=_SUBSET_SIZE.value,
        )
    except (ConfigError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main)
