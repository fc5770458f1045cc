r"""Evaluate and compare trained runs.

    python -m sparsejax evaluate --workdirs runs/digits-rigl-0.75-0
    python -m sparsejax evaluate --workdirs runs/digits-rigl-0.75-0,runs/digits-dense-0 \
        --samples 1000

Writes results.jsonl, report.md and report.html into --output: the workdir by default, or, for
several runs, the folder `comparison` beside the first.
"""

import pathlib
from collections.abc import Sequence

from sparsejax import command_line
from sparsejax.evaluation.evaluate import add_measuring, evaluate_runs, measuring


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
        help="An npz with mu and sigma, in place of the real examples.",
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
    if not flags.workdirs:
        parser.error("--workdirs names no run")
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
