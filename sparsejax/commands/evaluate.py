r"""Evaluate and compare trained runs.

    python -m sparsejax evaluate --workdirs runs/digits-rigl-0.75-0
    python -m sparsejax evaluate --workdirs runs/digits-rigl-0.75-0,runs/digits-dense-0 \
        --samples 1000

Writes results.jsonl, report.md and report.html to --output (default: the workdir, or for several
runs, a folder `comparison` next to the first).
"""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparsejax import command_line
from sparsejax.metrics.names import EXTRACTORS, METRICS, SUBSET_SIZE

if TYPE_CHECKING:
    from sparsejax.types import Value


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate the runs.

    Raises:
      ConfigError: a workdir holds no run, or the runs can't be compared.
    """
    parser = command_line.Parser(__doc__, prog="python -m sparsejax evaluate")
    parser.add_argument(
        "--workdirs",
        type=command_line.words,
        required=True,
        metavar="FOLDER[,FOLDER...]",
        help="Workdirs of finished runs.",
    )
    add_measuring(parser)
    parser.add_argument(
        "--seed",
        metavar="N",
        type=command_line.seed,
        default=0,
        help="Seed of the sampling noise, shared by all runs.",
    )
    parser.add_argument(
        "--reference-statistics",
        metavar="FILE",
        help="An npz with mu and sigma, to compare with instead of the real examples.",
    )
    parser.add_argument(
        "--save-statistics", metavar="FILE", help="Write such an npz of the real examples."
    )
    parser.add_argument(
        "--png", action="store_true", help="Also write every sample as samples/<run>/<index>.png."
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="Folder to write to (default: see above)."
    )
    flags = parser.parse_args(argv)
    # Imported here since it takes seconds, which --help and a mistyped flag shouldn't wait for.
    from sparsejax.evaluation.comparison import evaluate_runs

    workdirs = [pathlib.Path(workdir) for workdir in flags.workdirs]
    beside = workdirs[0] if len(workdirs) == 1 else workdirs[0].parent / "comparison"
    evaluate_runs(
        workdirs,
        flags.output or beside,
        seed=flags.seed,
        png=flags.png,
        statistics=flags.reference_statistics,
        save_statistics=flags.save_statistics,
        **measuring(flags),
    )


def add_measuring(parser: command_line.Parser) -> None:
    """Add the flags for how samples are drawn and measured.

    Args:
      parser: parser to add them to; `measuring` reads them.
    """
    parser.add_argument(
        "--samples",
        metavar="N",
        type=command_line.count,
        help="Samples per run (default: size of the reference set).",
    )
    parser.add_argument(
        "--batch",
        metavar="N",
        type=command_line.count,
        default=256,
        help="Samples drawn at once, over all devices.",
    )
    parser.add_argument(
        "--metrics",
        metavar="NAMES",
        type=command_line.words,
        help=f"Some of {', '.join(METRICS)} (default: all but the last, as far as there are enough "
        "examples).",
    )
    parser.add_argument(
        "--extractor",
        type=command_line.one_of(EXTRACTORS),
        metavar="NAME",
        help=f"One of {', '.join(EXTRACTORS)} (default: a classifier, or pixels without labels).",
    )
    parser.add_argument(
        "--inception-weights", metavar="FILE", help="Weights of the FID Inception network."
    )
    parser.add_argument(
        "--kid-subset-size",
        metavar="N",
        type=command_line.count,
        default=SUBSET_SIZE,
        help="Size of the subsets that KID draws.",
    )


def measuring(flags: command_line.Flags) -> "dict[str, Value]":
    """Return the options of `evaluate_runs` and `sweep` from the flags of `add_measuring`."""
    return {
        "batch": flags.batch,
        "count": flags.samples,
        "metrics": flags.metrics,
        "extractor": flags.extractor,
        "weights": flags.inception_weights,
        "subset_size": flags.kid_subset_size,
    }
