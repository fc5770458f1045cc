"""A report of many runs: report.md with its figures, and report.html, one file."""

import os
import pathlib
from collections.abc import Sequence

from sparsejax.errors import ConfigError
from sparsejax.reports.appendix import repeat_section, runs_section
from sparsejax.reports.documents import Document, Section, number
from sparsejax.reports.effects import effects_section
from sparsejax.reports.exploration import ever_active_section, overlap_section
from sparsejax.reports.groups import Comparison, compare
from sparsejax.reports.layers import layers_section
from sparsejax.reports.markdown import write_markdown
from sparsejax.reports.opening import opening
from sparsejax.reports.page import write_html
from sparsejax.reports.pareto import pareto_section
from sparsejax.reports.quality import quality_section
from sparsejax.reports.results import Row
from sparsejax.reports.samples import samples_section
from sparsejax.storage import require_writable

TITLE = "Sparse and dense training compared"


def write_report(
    output: str | os.PathLike[str],
    rows: Sequence[Row],
    *,
    runs: str | os.PathLike[str] | None = None,
    title: str = TITLE,
    note: str = "",
) -> tuple[pathlib.Path, pathlib.Path]:
    """Write report.md, the figures beside it, and report.html, which needs no other file.

    Args:
      output: folder, created if need be.
      rows: lines of results.jsonl.
      runs: folder of the runs' workdirs; what is missing there is left out of the report.
      title: of the report.
      note: free text for its first section.

    Returns:
      Paths of report.md and report.html.

    Raises:
      ConfigError: there are no rows, or the folder can't be written to.
    """
    if not rows:
        raise ConfigError("no runs to report")
    output = pathlib.Path(output)
    require_writable(output, "--output")
    output.mkdir(parents=True, exist_ok=True)
    comparison = compare(rows)
    folder = pathlib.Path(runs) if runs else None
    document = build_report(title, comparison, note, folder, output)
    markdown, page = output / "report.md", output / "report.html"
    write_markdown(markdown, document)
    write_html(page, document)
    return markdown, page


def build_report(
    title: str, comparison: Comparison, note: str, folder: pathlib.Path | None, output: pathlib.Path
) -> Document:
    """Return the report: its sections, and at its beginning what is missing in them.

    Args:
      title: of the report.
      comparison: the runs.
      note: free text for the first section.
      folder: of the runs' workdirs, if there is one.
      output: folder of the report.
    """
    groups = comparison.groups
    parts = [
        quality_section(comparison),
        pareto_section(comparison),
        effects_section(comparison),
        layers_section(comparison),
        ever_active_section(groups),
        overlap_section(groups, folder),
        samples_section(comparison, folder),
        (runs_section(comparison), ""),
        (repeat_section(comparison.runs, output), ""),
    ]
    sections, missing = zip(*parts, strict=True)
    first = Section("", opening(comparison, note, list(filter(None, missing))))
    return number(title, [first, *filter(None, sections)])
