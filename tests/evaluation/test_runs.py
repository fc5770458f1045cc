"""What a finished run shows, and comparisons of runs: the real thing on tiny models."""

import html
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from sparsejax.configuration import resolve
from sparsejax.errors import ConfigError
from sparsejax.evaluation import closing, comparison, evaluate
from sparsejax.evaluation.comparison import evaluate_runs
from sparsejax.evaluation.evaluate import evaluate_run, meter_of
from sparsejax.families import build_data
from sparsejax.training import loop
from sparsejax.training.plan import build_plan
from sparsejax.training.runs import load_state, read_config
from tests.training.tiny import small_config, tiny_config

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def runs(small_run, tmp_path_factory):
    """Two finished and closed runs: RigL and dense."""
    sparse = tmp_path_factory.mktemp("closed") / "rigl"
    subprocess.run(["cp", "-r", small_run, sparse], check=True)
    dense = sparse.parent / "dense"
    assert loop.train(small_config(**{"sparsity.method": "dense", "sparsity.level": 0.9}), dense)
    return {path.name: (path, closing.close_run(path)) for path in (sparse, dense)}


def test_a_closed_run_has_its_pictures(runs):
    workdir, _ = runs["rigl"]
    for name in ("samples.png", "curves.png", "layers.png"):
        pixels = np.asarray(Image.open(workdir / name).convert("L"))
        assert min(pixels.shape) > 100
        assert pixels.std() > 5


def test_the_summary_counts_dense_and_sparse(runs):
    sparse, dense = runs["rigl"][1], runs["dense"][1]
    for key in ("parameters", "forward_flops_dense", "training_flops_dense"):
        assert sparse[key] == dense[key]
    assert dense["active_parameters"] == dense["parameters"]
    assert dense["training_flops_run"] == dense["training_flops_dense"]
    assert dense["sparsity"] == 0
    assert dense["density"] == 1
    assert sparse["density"] == pytest.approx(0.25, abs=1e-3)
    forward, forward_dense = sparse["forward_flops"], sparse["forward_flops_dense"]
    assert forward < 0.5 * forward_dense
    examples, updates = 40 * 8, 5
    run = 3 * forward * examples + updates * 8 * (2 * forward + forward_dense)
    assert sparse["training_flops_run"] == pytest.approx(run)
    formula = (3 * forward * 5 + 2 * forward + forward_dense) / 6 * examples
    assert sparse["training_flops_formula"] == pytest.approx(formula)
    assert sparse["sampling_flops"] == pytest.approx(5 * forward)
    # So far: after 12 of 40 steps, two of the updates were made.
    model, state = load_state(runs["rigl"][0])
    config = read_config(runs["rigl"][0])
    plan = build_plan(config, model)
    so_far = closing.run_costs(config, model, plan, state.params, state.masks, 12)
    run = 3 * forward * 12 * 8 + 2 * 8 * (2 * forward + forward_dense)
    assert so_far["training_flops_run"] == pytest.approx(run)
    assert so_far["steps"] == 12


def test_a_closed_run_prints_its_table_again(runs, capsys):
    workdir, summary = runs["rigl"]
    assert closing.close_run(workdir) == json.loads(json.dumps(summary))
    printed = capsys.readouterr().out
    assert "rigl, S = 0.75, 40 steps" in printed
    assert "FLOPs, training (paper's formula)" in printed


def test_runs_are_compared_from_the_same_noise(runs, tmp_path):
    workdirs = [str(workdir) for workdir, _ in runs.values()]
    command = [sys.executable, "evaluate.py", f"--workdirs={','.join(workdirs)}", "--samples=60"]
    options = ["--metrics=fd,precision_recall", "--batch=25", "--png", f"--output={tmp_path}"]
    out = subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["run"] for row in rows] == ["rigl", "dense"]
    metric = "FD[classifier:digits]@60"
    assert metric in out
    assert all(row["measures"][metric] > 0 for row in rows)
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert metric in text
        assert "not FID" in text
    for name in ("rigl", "dense"):
        pictures = sorted((tmp_path / "samples" / name).iterdir())
        assert [path.name for path in pictures] == [f"{i:05d}.png" for i in range(60)]
        pixels = np.stack([np.asarray(Image.open(path)) for path in pictures])
        assert pixels.shape == (60, 8, 8)
        assert len(np.unique(pixels, axis=0)) == 60


def test_evaluation_repeats_whatever_the_batch(runs):
    """The same samples in one batch of 60 or in batches of 25, 25 and 10."""
    workdir, _ = runs["rigl"]
    meter = meter_of(read_config(workdir), count=60, metrics=["fd"])
    first, again, other = (
        evaluate_run(workdir, meter, batch=batch)["measures"] for batch in (60, 60, 25)
    )
    assert first == again
    metric = "FD[classifier:digits]@60"
    assert other[metric] == pytest.approx(first[metric], rel=1e-3)


@pytest.mark.parametrize(("batch", "starts"), [(25, [0, 0]), (10, [0, 10])])
def test_the_time_of_a_sample_is_not_that_of_compiling(runs, monkeypatch, batch, starts):
    """The first call compiles, so there are two calls at least."""
    made, make_sampler = [], evaluate.make_sampler

    def counted(*args):
        draw = make_sampler(*args)
        return lambda params, start: made.append(start) or draw(params, start)

    monkeypatch.setattr(evaluate, "make_sampler", counted)
    workdir, _ = runs["rigl"]
    meter = meter_of(read_config(workdir), count=20, metrics=["fd"])
    assert evaluate_run(workdir, meter, batch=batch)["sampling_seconds"] > 0
    assert made == starts


@pytest.fixture(scope="module")
def wild(tiny_run, tmp_path_factory):
    """The tiny run, sampled without clipping: its pixels go far beyond [-1, 1]."""
    workdir = tmp_path_factory.mktemp("unclipped") / "wild"
    shutil.copytree(tiny_run[0], workdir)
    config = json.loads((workdir / "config.json").read_text())
    assert config["sample"]["clip"] == 1.0
    config["sample"]["clip"] = None
    (workdir / "config.json").write_text(json.dumps(config))
    return workdir


@pytest.mark.parametrize(
    "extractor", [pytest.param("classifier", marks=pytest.mark.slow), "pixels"]
)
def test_pngs_read_back_have_the_measures_that_were_reported(wild, tmp_path, extractor):
    """To the last bit: what is measured is what a picture can hold."""
    meter = meter_of(read_config(wild), count=40, extractor=extractor, subset_size=20)
    row = evaluate_run(wild, meter, batch=25, png=tmp_path)
    paths = sorted(tmp_path.iterdir())
    pictures = np.stack([np.asarray(Image.open(path)) for path in paths])[..., None]
    assert pictures.shape == (40, 8, 8, 1)
    assert meter.measure(iter([pictures[:25], pictures[25:]])) == row["measures"]
    assert row["pictures"] == "8-bit"
    # The grid shows the same ones, each pixel 6 times as large.
    grid = np.asarray(Image.open(wild / "evaluation" / "samples.png"))
    shown = grid[4:, 4:, 0].reshape(5, 52, 5, 52)[:, :48:6, :, :48:6].swapaxes(1, 2)
    np.testing.assert_array_equal(shown.reshape(25, 8, 8), pictures[:25, ..., 0])
    # And the samples are wild: every value that a picture can't hold is at an end.
    assert ((pictures == 0) | (pictures == 255)).mean() > 0.1


@pytest.fixture
def poisoned(monkeypatch):
    """`poisoned(name)` makes the last sample of each batch of the run in the workdir not finite."""
    load = evaluate.runs.load_state

    def poison(name):
        def load_state(workdir):
            model, state = load(workdir)

            def sample(apply, params, frozen, key, count, start=0):
                drawn = model.sample(apply, params, frozen, key, count, start)
                return drawn.at[count - 1, 2, 2].set(np.nan)

            return (model._replace(sample=sample) if workdir.name == name else model), state

        monkeypatch.setattr(evaluate.runs, "load_state", load_state)

    return poison


OPTIONS = {"count": 12, "metrics": ["fd"], "extractor": "pixels", "batch": 6}


def test_samples_that_are_not_finite_are_refused(runs, tmp_path, poisoned):
    """In a line that names the run, however few there are; nothing is measured of the others."""
    poisoned("dense")
    with pytest.raises(ConfigError, match=r"dense: 1 of samples 0 to 5 .* the first is 5;") as told:
        evaluate_runs([runs["dense"][0]], tmp_path, **OPTIONS)
    assert "\n" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_be_measured_costs_the_others_nothing(runs, tmp_path, poisoned, capsys):
    """They have rows and a report; both it and the error name the run."""
    poisoned("rigl")
    with pytest.raises(ConfigError) as told:
        evaluate_runs([workdir for workdir, _ in runs.values()], tmp_path, **OPTIONS)
    line = "1 of samples 0 to 5 hold values that aren't finite, the first is 5"
    assert str(told.value).startswith(f"1 of 2 runs weren't measured: rigl: {line}")
    assert f"\nrigl failed: {line}" in "\n" + capsys.readouterr().out
    (row,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert row["run"] == "dense"
    assert row["measures"]["FD[pixels:8x8]@12"] > 0
    for report in ("report.md", "report.html"):
        text = html.unescape((tmp_path / report).read_text())
        assert "1 of 2 runs weren't measured: rigl" in text


def test_rows_are_written_as_runs_are_measured(runs, tmp_path, monkeypatch):
    """Whatever ends the evaluation, the rows before it are there."""

    def measured_then_killed(workdir, *_, **__):
        if workdir.name == "dense":
            raise KeyboardInterrupt
        return {"run": workdir.name}

    monkeypatch.setattr(comparison, "evaluate_run", measured_then_killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate_runs([runs["rigl"][0], runs["dense"][0]], tmp_path, **OPTIONS)
    assert json.loads((tmp_path / "results.jsonl").read_text()) == {"run": "rigl"}


def test_a_run_that_is_not_finished_is_named_and_the_steps_of_all_are_shown(
    runs, tmp_path, capsys, caplog
):
    (finished, _), (other, _) = runs.values()
    begun = shutil.copytree(other, tmp_path / "begun")
    config = json.loads((begun / "config.json").read_text())
    (begun / "config.json").write_text(json.dumps(config | {"steps": 5000}))
    evaluate_runs([finished, begun], tmp_path / "out", count=30, metrics=["fd"])
    assert [record.message for record in caplog.records if "finished" in record.message] == [
        "begun isn't finished: step 40 of 5,000"
    ]
    report = (tmp_path / "out/report.md").read_text()
    assert "begun isn't finished: step 40 of 5,000" in " ".join(report.split())
    printed = capsys.readouterr().out
    assert re.search(r"steps", printed)
    assert re.search(r"begun\W+40\b", printed)


def test_what_cannot_be_evaluated_is_refused_at_once(runs, tmp_path):
    workdir, _ = runs["dense"]
    for batch in (0, -1):
        with pytest.raises(ConfigError, match=f"batch is {batch}; accepted: 1 or more"):
            evaluate_runs([workdir], tmp_path / "out", batch=batch)
    with pytest.raises(
        ConfigError, match="several runs 'dense'; accepted: folders with different names"
    ):
        evaluate_runs([workdir, workdir], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("process", "flow"), ("times", "uniform"), ("sigma_data", 0.3)]
)
def test_losses_of_different_processes_do_not_stand_in_one_column(key, value):
    splits = {"task.split": "train[:1000]", "task.reference_split": "train[1000:]"}
    ours = resolve(tiny_config(**splits))
    other = ConfigDict(ours.to_dict())
    other.diffusion[key] = value
    with pytest.raises(
        ConfigError, match=f"diffusion.{key} is '?{value}'?; accepted: .* to compare"
    ):
        comparison.check_comparable(["ours", "other"], [ours, other], build_data(ours))
    other.diffusion[key] = ours.diffusion[key]
    comparison.check_comparable(["ours", "other"], [ours, other], build_data(ours))


def test_a_run_without_a_checkpoint_is_refused_before_the_others_are_measured(
    tiny_run, tmp_path, monkeypatch
):
    (tmp_path / "begun").mkdir()
    shutil.copy(tiny_run[0] / "config.json", tmp_path / "begun")
    monkeypatch.setattr(comparison, "evaluate_run", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(ConfigError, match="begun' has no complete checkpoint yet"):
        evaluate_runs([tiny_run[0], tmp_path / "begun"], tmp_path / "out", count=8, metrics=["fd"])
    assert not (tmp_path / "out").exists()


def test_a_missing_workdir_is_refused():
    command = [sys.executable, "evaluate.py", "--workdirs=/nowhere/at/all"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.startswith("error: workdir '/nowhere/at/all' holds no run")
