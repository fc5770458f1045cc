"""What a finished run shows, and comparisons of runs: the real thing on tiny models."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sparsejax.evaluation import closing
from sparsejax.evaluation.evaluate import evaluate_run, meter_of
from sparsejax.training import loop
from sparsejax.training.runs import load_state, read_config
from tests.training.tiny import tiny_config

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def runs(tiny_run, tmp_path_factory):
    """Two finished and closed runs: RigL and dense."""
    sparse = tmp_path_factory.mktemp("closed") / "rigl"
    subprocess.run(["cp", "-r", tiny_run[0], sparse], check=True)
    dense = sparse.parent / "dense"
    assert loop.train(tiny_config(**{"sparsity.method": "dense", "sparsity.level": 0.9}), dense)
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
    task, state = load_state(runs["rigl"][0])
    config = read_config(runs["rigl"][0])
    so_far = closing.run_costs(config, task, state.params, state.masks, 12)
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
        assert "no FID" in text
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


def test_a_missing_workdir_is_refused():
    command = [sys.executable, "evaluate.py", "--workdirs=/nowhere/at/all"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.startswith("error: workdir '/nowhere/at/all' holds no run")
