"""The command that writes a report again, from a results file alone."""

import json

import pytest

from sparsejax.commands import report
from sparsejax.errors import ConfigError
from tests.reports.test_figures import make_row


def test_it_writes_beside_the_results(tmp_path, capsys):
    row = make_row("dense", 0.0, layers=2)
    (tmp_path / "results.jsonl").write_text(json.dumps(row))
    report.main(["--results", str(tmp_path / "results.jsonl"), "--title", "Two & two"])
    assert "report.md, report.html" in capsys.readouterr().out
    assert (tmp_path / "report.md").read_text(encoding="utf-8").startswith("# Two &amp; two\n")
    assert "<h1>Two &amp; two</h1>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_it_says_what_is_wrong(tmp_path):
    with pytest.raises(ConfigError, match="^results "):
        report.main([f"--results={tmp_path}"])
