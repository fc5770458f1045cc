"""The command of a sweep: what it leaves and how it ends where runs fail."""

import json

import pytest

from sparsejax.commands import sweep as command
from sparsejax.evaluation import sweep as sweeping
from tests.reports.test_figures import make_row
from tests.training.tiny import tiny_flags


@pytest.fixture
def failing(monkeypatch):
    """`failing(names)` makes runs fail whose names hold one of these words; others have a row."""

    def fail(*words):
        def run_one(run, workdir, how):
            if any(word in run.name for word in words):
                return "FloatingPointError: the loss is nan"
            workdir.mkdir(parents=True)
            row = make_row(run.method, run.level, 0) | {"run": run.name}
            (workdir / "result.json").write_text(json.dumps(row))
            return None

        monkeypatch.setattr(sweeping, "run_in_own_process", run_one)

    return fail


def flags(folder):
    grid = ["--methods=dense,static", "--levels=0.75", "--samples=40", "--metrics=fd"]
    return ["--config=configs/digits.py", *tiny_flags(), *grid, f"--output={folder}"]


def test_where_some_runs_fail_the_others_are_reported(failing, tmp_path, capsys):
    failing("static")
    with pytest.raises(SystemExit, match=r"^failed: [\w.-]*static[\w.-]*: FloatingPointError: the"):
        command.main([*flags(tmp_path), "--extractor=pixels"])
    (row,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert row["method"] == "dense"
    assert "dense" in (tmp_path / "report.md").read_text()
    assert "report.html" in capsys.readouterr().out


def test_where_all_runs_fail_it_names_them(failing, tmp_path, capsys):
    """Not the report, which has no rows."""
    failing("static", "dense")
    with pytest.raises(SystemExit, match=r"^failed: .*dense.*nan; .*static.*nan$"):
        command.main([*flags(tmp_path), "--extractor=pixels"])
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}
    assert "report" not in capsys.readouterr().out
