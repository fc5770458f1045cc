"""The committed reports say what the code makes of their results today."""

import pathlib

import pytest

from sparsejax.reports.documents import Code, Folded, Items, Plot, Table, Text
from sparsejax.reports.groups import compare
from sparsejax.reports.report import build_report
from sparsejax.reports.results import read_results

RESULTS = pathlib.Path(__file__).parents[2] / "docs" / "results"
# Rows of evidence are of several data sets; tests/test_evidence.py has its report.
FOLDERS = sorted({path.parent for path in RESULTS.glob("*/results.jsonl")} - {RESULTS / "evidence"})


def lines_of(block):
    """Yield the texts of a block as they stand in Markdown."""
    if isinstance(block, Folded):
        for part in block.blocks:
            yield from lines_of(part)
    elif isinstance(block, Items):
        yield from block.texts
    elif isinstance(block, Table):
        yield block.caption
        yield from (" | ".join(line) for line in [block.header, *block.body])
    elif isinstance(block, Plot):
        yield block.caption
    elif isinstance(block, Text | Code):
        yield block.text


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_is_written_is_what_would_be_written(folder):
    """All but what needs the masks and pictures of the runs, which are too large to commit."""
    committed = (folder / "report.md").read_text(encoding="utf-8")
    document = build_report("", compare(read_results(folder)), "", None, folder)
    assert len(document.sections) >= 6
    for section in document.sections:
        assert section.heading in committed
        for line in [line for block in section.blocks for line in lines_of(block)]:
            if not line.startswith("Not shown"):
                assert line in committed
