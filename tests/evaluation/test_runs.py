"""What a finished run shows, and comparisons of runs: the real thing on tiny models."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sparsejax.data.images import load_images, to_unit_range
from sparsejax.evaluation import closing, report
from sparsejax.evaluation.classifier import feature_extractor
from sparsejax.evaluation.distances import frechet_distance
from sparsejax.training import loop
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
    examples, updates = 40 * 8, 6
    run = 3 * forward * examples + updates * 8 * (2 * forward + forward_dense)
    assert sparse["training_flops_run"] == pytest.approx(run)
    formula = (3 * forward * 5 + 2 * forward + forward_dense) / 6 * examples
    assert sparse["training_flops_formula"] == pytest.approx(formula)
    assert sparse["sampling_flops"] == pytest.approx(5 * forward)


def test_a_closed_run_prints_its_table_again(runs, capsys):
    workdir, summary = runs["rigl"]
    assert closing.close_run(workdir) == json.loads(json.dumps(summary))
    printed = capsys.readouterr().out
    assert "rigl, S = 0.75, 40 steps" in printed
    assert "FLOPs, training (paper's formula)" in printed


def test_runs_are_compared_from_the_same_noise(runs, tmp_path):
    workdirs = [str(workdir) for workdir, _ in runs.values()]
    command = [sys.executable, "evaluate.py", f"--workdirs={','.join(workdirs)}", "--samples=60"]
    out = subprocess.run(
        [*command, f"--output={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    text = (tmp_path / "report.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [row[1] for row in rows[2:]] == ["rigl", "dense"]
    column = rows[0].index("FD[classifier:digits]@60")
    assert all(float(row[column]) > 0 for row in rows[2:])
    assert "FID" in text
    assert "FD[classifier:digits]@60" in out
    assert np.asarray(Image.open(tmp_path / "comparison.png").convert("L")).std() > 5


def test_evaluation_repeats(runs, tmp_path):
    workdir, _ = runs["rigl"]
    first, second = (
        report.evaluate_runs([workdir], tmp_path / str(i), samples=60)[0] for i in range(2)
    )
    metric = "FD[classifier:digits]@60"
    assert first[metric] == second[metric]


def test_a_missing_workdir_is_refused():
    command = [sys.executable, "evaluate.py", "--workdirs=/nowhere/at/all"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.startswith("error: workdir '/nowhere/at/all' holds no run")


def test_the_classifiers_features_tell_digits_from_noise():
    settings = tiny_config().task
    images, labels = load_images(settings, "train")
    features = feature_extractor("digits", images, labels)
    real = to_unit_range(images)
    half = frechet_distance(features(real[::2]), features(real[1::2]))
    noise = np.clip(np.random.default_rng(0).normal(size=real.shape), -1, 1).astype(np.float32)
    assert frechet_distance(features(noise), features(real)) > 20 * half
    # Nearest class mean in feature space, on images that the mean was not made of.
    means = np.stack([features(real[::2][labels[::2] == digit]).mean(0) for digit in range(10)])
    squared = ((features(real[1::2])[:, None] - means) ** 2).sum(-1)
    assert (squared.argmin(1) == labels[1::2]).mean() > 0.95
