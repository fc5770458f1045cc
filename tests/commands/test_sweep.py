"""The command of a sweep: what it leaves and how it ends where runs fail."""

import json
import shlex

import pytest

from sparsejax.commands import sweep as command
from sparsejax.configuration import resolve
from sparsejax.evaluation import sweep as sweeping
from tests.reports.test_figures import make_row
from tests.training.tiny import tiny_flags


@pytest.fixture
def failing(monkeypatch):
    """`failing(names)` makes runs fail whose names hold one of these words; others have a row."""

    def fail(*words):
        def run_one(run, workdir, how, guard):
            if any(word in run.name for word in words):
                return "FloatingPointError: the loss is nan"
            row = make_row(run.method, run.level, 0) | {"run": run.name}
            row["evaluation"] = {key: how[key] for key in how if key != "weights"}
            row |= {"config": resolve(run.config).to_dict()}
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
    assert list(tmp_path.iterdir()) == []
    assert "report" not in capsys.readouterr().out


def test_missing_runs_are_listed_as_commands_that_do_one_run_each(monkeypatch, tmp_path, capsys):
    """However the flags of axes are written; all other flags stay."""
    swept, output = [], tmp_path / "with 'spaces'"

    def sweep(runs, folder, workdirs, **options):
        swept.append((runs, folder, options))
        return {}

    monkeypatch.setattr(sweeping, "sweep", sweep)
    argv = ["--config=configs/digits.py", *tiny_flags(), "--config.sparsity.block_size", "8"]
    argv += ["--samples", "40", "--metrics=fd", "--extractor=pixels", f"--output={output}"]
    argv += ["--methods", "dense,rigl", "--levels=0.75", "--seeds", "3,1"]
    argv += ["--structures=weight,block", "--drop_fractions=0.05", "--update-intervals=5"]
    command.main(argv)
    command.main([*argv, "--list"])
    assert not output.exists()
    for line in capsys.readouterr().out.splitlines():
        words = shlex.split(line)
        assert words[:4] == ["python", "-m", "sparsejax", "sweep"]
        command.main(words[4:])
    (runs, *others), *single = swept
    assert [run for ((run,), *_) in single] == runs
    assert all(rest == others for (_, *rest) in single)

    how = {"seed": 0} | {key: value for key, value in others[1].items() if key != "weights"}
    row = make_row() | {"run": runs[0].name, "config": resolve(runs[0].config).to_dict()}
    output.mkdir()
    (output / "results.jsonl").write_text(json.dumps(row | {"evaluation": how}) + "\n")
    command.main([*argv, "--list"])
    assert len(capsys.readouterr().out.splitlines()) == len(runs) - 1
