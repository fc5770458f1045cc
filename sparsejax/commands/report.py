"""Write the report of a results file: tables, figures, one HTML page.

    python -m sparsejax report --results runs/grid --runs runs

`--results` is a results.jsonl or the folder that holds it; the report is written next to it.
`--runs` is the folder of the runs' workdirs, from which masks and pictures of samples are taken.
"""

import os
import pathlib
from collections.abc import Sequence

from sparsejax import command_line


def main(argv: Sequence[str] | None = None) -> None:
    """Write the report of a results file.

    Args:
      argv: words of the command line (default: those of this process).

    Raises:
      ConfigError: the results can't be read, or the report can't be written.
    """
    parser = command_line.Parser(__doc__, prog="python -m sparsejax report")
    parser.add_argument(
        "--results", required=True, metavar="PATH", help="results.jsonl, or the folder it is in."
    )
    parser.add_argument("--runs", metavar="FOLDER", help="Folder of the runs' workdirs.")
    parser.add_argument(
        "--output", metavar="FOLDER", help="Folder to write to (default: that of the results)."
    )
    parser.add_argument("--title", help="Title of the report.")
    parser.add_argument("--note", default="", help="Text for the report's first section.")
    given = parser.parse_args(argv)
    # Imported here since they take time, which --help and a mistyped flag shouldn't wait for.
    from sparsejax.reports.report import TITLE, write_report
    from sparsejax.reports.results import read_results

    results = pathlib.Path(given.results)
    output = given.output or (results if os.path.isdir(results) else results.parent)
    rows = read_results(results)
    write_report(output, rows, runs=given.runs, title=given.title or TITLE, note=given.note)
    print(f"In {output}: report.md, report.html, figures/")
