"""Samples of a run, on the command line and from Python."""

import json
import math
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import sparsejax
from sparsejax.__main__ import run
from sparsejax.configuration import resolve, to_json
from sparsejax.families import build_model
from sparsejax.sparse_files import save_sparse
from sparsejax.training import load_run, save_sparse_run
from sparsejax.training.keys import named_key
from sparsejax.training.sampling import make_sampler
from tests.training.tiny import forget_copies, tiny_config

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def sparse_file(small_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("sparse") / "model.safetensors"
    save_sparse_run(small_run, path)
    return path


def sample(*flags):
    run("sample", [str(flag) for flag in flags])


@pytest.mark.usefixtures("own_logging")
def test_a_workdir_and_its_sparse_file_give_the_same_samples(
    small_run, sparse_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    sample("--run", small_run, "--count=6", "--seed=3", "--batch=4")
    sample("--run", sparse_file, "--count=6", "--seed=3", "--batch=4", "--output=other", "--png")
    ours, theirs = (dict(np.load(f"{folder}/samples.npz")) for folder in ("samples/small", "other"))
    assert list(ours) == ["images"]
    assert ours["images"].shape == (6, 8, 8, 1)
    np.testing.assert_array_equal(ours["images"], theirs["images"])
    assert {path.name for path in pathlib.Path("samples/small").iterdir()} == {
        "grid.png",
        "samples.npz",
    }
    assert {path.name for path in pathlib.Path("other").iterdir()} == {"png", "samples.npz"}
    pictures = [np.asarray(Image.open(f"other/png/{i:05d}.png")) for i in range(6)]
    np.testing.assert_array_equal(pictures, ours["images"][..., 0])
    assert capsys.readouterr().out.splitlines()[-1] == "In other: samples.npz, png/"


@pytest.mark.usefixtures("own_logging")
def test_the_pictures_are_those_that_evaluate_measures(small_run, tmp_path):
    evaluate = ["--samples=6", "--batch=4", "--metrics=fd", "--extractor=pixels", "--seed=3"]
    run("evaluate", [f"--workdirs={small_run}", "--png", f"--output={tmp_path}", *evaluate])
    sample(f"--run={small_run}", f"--output={tmp_path}", "--count=6", "--batch=4", "--seed=3")
    measured = [np.asarray(Image.open(tmp_path / f"samples/small/{i:05d}.png")) for i in range(6)]
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npz")["images"][..., 0], measured)


def test_a_run_is_sampled_in_two_lines(small_run, sparse_file):
    """Those of `Model.sample` itself, the masked network, whatever the batches."""
    key = jax.random.key(7)
    trained = sparsejax.load(sparse_file)
    assert not trained.is_compact
    samples = trained.sample(key, 6)
    model, params, _ = load_run(small_run)
    expected = make_sampler(model, (), key, 6)(params)
    np.testing.assert_array_equal(samples, expected)
    np.testing.assert_allclose(trained.sample(key, 6, batch=4), samples, atol=1e-5)
    assert np.abs(trained.sample(named_key(0, "samples"), 6) - samples).max() > 0.1


def in_blocks(shapes):
    """Random params of these shapes, and masks of half of the blocks of 8 by 8 channels."""
    rng = np.random.default_rng(0)

    def mask(leaf):
        if len(leaf.shape) < 2 or leaf.shape[-2] % 8 or leaf.shape[-1] % 8:
            return np.array(True)
        blocks = rng.random((leaf.shape[-2] // 8, leaf.shape[-1] // 8)) < 0.5
        return np.broadcast_to(np.kron(blocks, np.ones((8, 8), bool)), leaf.shape).astype(bool)

    def param(leaf, mask):
        fan_in = math.prod(leaf.shape[:-1])
        drawn = rng.standard_normal(leaf.shape, np.float32) / fan_in**0.5
        return np.where(mask, drawn, 0).astype(np.float32)

    masks = jax.tree.map(mask, shapes)
    return jax.tree.map(param, shapes, masks), masks


def test_blocks_are_sampled_through_the_compact_network(tmp_path):
    """It computes what the masked network does."""
    changes = {"model.num_res_blocks": 1, "sample.steps": 2, "sparsity.block_size": 8}
    config = resolve(tiny_config(**changes, **{"sparsity.structure": "block"}))
    model = build_model(config)
    params, masks = in_blocks(jax.eval_shape(model.init, jax.random.key(0)))
    metadata = {"config": to_json(config), "facts": "{}"}
    save_sparse(tmp_path / "model.safetensors", params, masks, metadata)
    trained, key = sparsejax.load(tmp_path / "model.safetensors"), jax.random.key(7)
    assert trained.is_compact
    expected = make_sampler(model, (), key, 4)(params)
    np.testing.assert_allclose(trained.sample(key, 4), expected, rtol=1e-4, atol=1e-4)


def test_steps_and_eta_change_the_sampler(sparse_file):
    key = jax.random.key(7)
    runs = [sparsejax.load(sparse_file, steps=steps, eta=eta) for steps, eta in ((2, None), (2, 1))]
    assert [one.model.passes_per_sample for one in runs] == [2, 2]
    assert [one.config.sample.eta for one in runs] == [0, 1]
    one, other = (trained.sample(key, 4) for trained in runs)
    assert np.abs(one - other).max() > 0.01


def test_spacing_changes_the_steps_of_a_finished_run(sparse_file):
    key = jax.random.key(7)
    leading, again, trailing = (
        sparsejax.load(sparse_file, steps=4, spacing=spacing).sample(key, 4)
        for spacing in (None, "leading", "trailing")
    )
    np.testing.assert_array_equal(leading, again)
    assert np.abs(leading - trailing).max() > 0.01


def test_another_sampler_takes_its_own_steps(sparse_file):
    """From the same noise, DPM-Solver++ ends close to where DDIM ends, but elsewhere."""
    key = jax.random.key(7)
    one, other = (
        sparsejax.load(sparse_file, sampler=sampler, steps=20).sample(key, 8)
        for sampler in ("dpmpp_2m", "ddim")
    )
    assert 1e-4 < np.abs(one - other).mean() < 0.1 * np.abs(other).mean()
    assert sparsejax.load(sparse_file, sampler="ddpm").model.passes_per_sample == 1000


def test_what_only_the_runs_own_sampler_has_is_left_out_with_another(small_run, tmp_path):
    """Churn is of EDM's heun; a bound that another sampler needs can be given."""
    workdir = shutil.copytree(small_run, tmp_path / "edm")
    forget_copies(workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["diffusion"]["process"] = "edm"
    config["sample"] |= {"sampler": "heun", "churn": 10.0, "clip": None}
    (workdir / "config.json").write_text(json.dumps(config))
    assert sparsejax.load(workdir).config.sample.churn == 10
    assert sparsejax.load(workdir, churn=3).config.sample.churn == 3
    other = sparsejax.load(workdir, sampler="euler", clip=0.5)
    assert (other.config.sample.churn, other.config.sample.clip) == (0, 0.5)
    assert np.abs(other.sample(jax.random.key(0), 4)).max() <= 0.501


@pytest.mark.usefixtures("own_logging")
def test_pictures_of_earlier_samples_do_not_stay_among_the_new(sparse_file, tmp_path):
    folder = tmp_path / "png"
    for count in (6, 3):
        sample("--run", sparse_file, f"--count={count}", f"--output={tmp_path}", "--png")
        (folder / "mine.png").touch()
        written = sorted(path.name for path in folder.iterdir())
        assert written == [*(f"{i:05d}.png" for i in range(count)), "mine.png"]


def test_an_empty_folder_with_nothing_but_a_sparse_file(tiny_run, tmp_path):
    save_sparse_run(tiny_run[0], tmp_path / "model.safetensors")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path / "home")}
    environment["TF_CPP_MIN_LOG_LEVEL"] = "3"  # XLA may complain of its compilation cache
    command = [sys.executable, "-m", "sparsejax", "sample", "--run", "model.safetensors"]
    done = subprocess.run(
        [*command, "--count=4"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "In samples/model: samples.npz, grid.png"
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "samples"}
    assert np.load(tmp_path / "samples/model/samples.npz")["images"].shape == (4, 8, 8, 1)


def test_import_sparsejax_stays_light():
    source = "import sys, sparsejax; assert 'jax' not in sys.modules; sparsejax.load"
    assert subprocess.run([sys.executable, "-c", source], cwd=ROOT).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = sparsejax.lod


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--run=nowhere"], "workdir 'nowhere' holds no run"),
        (["--run=other.txt"], "other.txt is damaged or not a safetensors file"),
        (["--run={file}", "--count=0"], "--count is '0'; accepted: a whole number, 1 or more"),
        (["--run={file}", "--eta=2"], "config.sample.eta is 2.0; accepted: [0, 1]"),
        (["--run={file}", "--sampler=euler"], "config.sample.sampler is 'euler'; accepted: ddim"),
        (["--run={file}", "--sampler=dpmpp_2m", "--eta=1"], "config.sample.eta is 1.0; accepted"),
        (["--run={file}", "--spacing=even"], "spacing is 'even'; accepted: leading, trailing, "),
        (["--run={file}", "--sampler=ddpm", "--spacing=karras"], "spacing is 'karras'; accepted"),
        (["--run={file}", "--churn=1"], "sample.churn is 1.0; accepted: the default of a run whos"),
        (["--run={file}", "--guidance-interval=0,1"], "guidance_interval is (0.0, 1.0); accepted"),
        (["--run={file}", "--guidance-interval=a"], "--guidance-interval is 'a'; accepted: numbe"),
        (["--run={file}", "--sampler=ddpm", "--steps=9"], "config.sample.steps is 9; accepted"),
        (["--run={file}", "--eta=nan"], "--eta is 'nan'; accepted: a finite number"),
        (["--run={file}", "--steps=1001"], "config.sample.steps is 1001; accepted: 1 to 1000"),
        (["--run={file}", "--gif"], "--gif is for drawings"),
        (["--run={file}", "--first-stage=x"], "config.task.name is 'small'; accepted: latents"),
        (["--run={file}", "--output=other.txt"], "--output is 'other.txt', where nothing can"),
        (["--run={file}", "--sed=1"], "there is no flag --sed; nearest: --seed"),
        ([], "--run must be given"),
    ],
)
def test_what_is_wrong_is_one_line(flags, message, sparse_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("other.txt").write_text("nothing")
    with pytest.raises(SystemExit) as exit_of:
        sample(*(flag.format(file=sparse_file) for flag in flags))
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert (exit_of.value.code, printed.out) == (2, "")
    assert [path.name for path in tmp_path.iterdir()] == ["other.txt"]
