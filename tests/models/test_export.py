"""An exported run is the run: weights, masks and config, in both layouts."""

import json
import sys

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from sparsejax.models import export, files
from sparsejax.sparse_files import load_sparse
from sparsejax.training import load_run
from tests.models.test_convert import MIXED, assert_same_trees, numbered, unet_shapes
from tests.training.tiny import tiny_config

WEIGHTS = {
    "unet.safetensors": "masks.safetensors",
    "diffusers/unet/diffusion_pytorch_model.safetensors": "diffusers/unet/masks.safetensors",
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A UNet whose weights in 4-D kernels are half masked, and the folder of its export."""
    folder = tmp_path_factory.mktemp("exported")
    params = jax.tree.map(lambda leaf: leaf + 1, numbered(unet_shapes(MIXED)))
    masks = jax.tree.map(lambda p: p % 2 == 0 if p.ndim > 2 else np.array(True), params)
    params = jax.tree.map(lambda p, mask: np.where(mask, p, np.float32(0)), params, masks)
    written = export.export_unet(
        params, masks, folder, MIXED, sample_size=8, metadata={"sparsity_method": "rigl"}
    )
    return params, masks, folder, written


def test_the_files_written_are_told_and_nothing_else_is_left(exported):
    _, _, folder, written = exported
    there = {path for path in folder.rglob("*") if path.is_file()}
    assert there == set(written)
    names = {str(path.relative_to(folder)) for path in there}
    assert names == {*WEIGHTS, *WEIGHTS.values(), "diffusers/unet/config.json"}


def test_exported_weights_read_back_are_the_params(exported):
    params, _, folder, _ = exported
    assert_same_trees(files.load_unet(folder / "unet.safetensors"), params)
    assert_same_trees(files.load_unet(folder / "diffusers"), params)


@pytest.mark.parametrize(("weights", "masks"), WEIGHTS.items())
def test_masks_are_ones_where_weights_are_active_in_the_weights_shapes(exported, weights, masks):
    _, _, folder, _ = exported
    arrays, ones = load_file(folder / weights), load_file(folder / masks)
    assert arrays.keys() == ones.keys()
    for name, array in arrays.items():
        assert ones[name].dtype == np.uint8
        np.testing.assert_array_equal(ones[name], array != 0, err_msg=name)
    assert sum((1 - mask).sum() for mask in ones.values()) > 0


def test_every_file_says_what_it_is(exported):
    _, _, folder, _ = exported
    for name in (*WEIGHTS, *WEIGHTS.values()):
        with safe_open(folder / name, framework="numpy") as file:
            assert file.metadata() == {"format": "pt", "sparsity_method": "rigl"}
    config = json.loads((folder / "diffusers/unet/config.json").read_text())
    assert config["attention_head_dim"] == 8
    assert config["sample_size"] == 8


def test_an_export_that_fails_leaves_the_files_before_it(exported, tmp_path, monkeypatch):
    params, masks, _, _ = exported
    export.export_unet(params, masks, tmp_path, MIXED)
    before = (tmp_path / "unet.safetensors").read_bytes()

    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(export, "save_file", fail)
    with pytest.raises(OSError, match="no space"):
        export.export_unet(params, masks, tmp_path, MIXED)
    assert (tmp_path / "unet.safetensors").read_bytes() == before


def run_command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
    export.main()


def test_the_command_exports_a_run(tiny_run, tmp_path, monkeypatch, capsys):
    workdir, _ = tiny_run
    for ema, flags in ((True, ()), (False, ("--no-ema",))):
        folder = tmp_path / str(ema)
        run_command(monkeypatch, "--workdir", workdir, "--output", folder, *flags)
        _, params, masks = load_run(workdir, ema=ema)
        assert_same_trees(files.load_unet(folder / "unet.safetensors"), params)
        exported = load_file(folder / "masks.safetensors")
        active = sum(int(mask.sum()) for mask in exported.values())
        shaped = jax.tree.map(lambda p, mask: np.broadcast_to(mask, p.shape), params, masks)
        assert active == sum(int(mask.sum()) for mask in jax.tree.leaves(shaped))
        assert active < 0.5 * sum(mask.size for mask in exported.values())
        printed = capsys.readouterr().out
        for name in (*WEIGHTS, *WEIGHTS.values(), "config.json"):
            assert name in printed
    config = json.loads((folder / "diffusers/unet/config.json").read_text())
    assert config["sample_size"] == tiny_config().task.image_size
    with safe_open(folder / "unet.safetensors", framework="numpy") as file:
        metadata = file.metadata()
    assert metadata["sparsity_method"] == "rigl"
    assert float(metadata["sparsity_level"]) == tiny_config().sparsity.level
    assert metadata["weights"] == "last step"


def test_the_command_writes_a_sparse_file(tiny_run, tmp_path, monkeypatch, capsys):
    """And says how small it is: the tiny run's S is 0.75."""
    workdir, _ = tiny_run
    for ema, flags in ((True, ()), (False, ("--no-ema",))):
        run_command(monkeypatch, "--workdir", workdir, "--output", tmp_path, "--sparse", *flags)
        _, params, masks = load_run(workdir, ema=ema)
        loaded = load_sparse(tmp_path / "model.safetensors")
        assert_same_trees(loaded[0], params)
        assert_same_trees(loaded[1], masks)
        assert loaded[2]["weights"] == ("ema" if ema else "last step")
        assert loaded[2]["steps"] == str(tiny_config().steps)
        assert json.loads(loaded[2]["config"]) == json.loads((workdir / "config.json").read_text())
        assert list(tmp_path.iterdir()) == [tmp_path / "model.safetensors"]
        dense = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        size = (tmp_path / "model.safetensors").stat().st_size
        assert 0.25 < size / dense < 0.35
        printed = capsys.readouterr().out
        for text in ("model.safetensors", f"{size:,}", f"{dense:,}", f"{size / dense:.3f}"):
            assert text in printed


@pytest.mark.parametrize("flags", [(), ("--sparse",)])
def test_the_command_says_where_there_is_no_run(flags, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="error: workdir .* holds no run"):
        run_command(monkeypatch, "--workdir", tmp_path, "--output", tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_the_command_refuses_a_run_of_another_task(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"task": {"name": "strokes"}}))
    with pytest.raises(SystemExit, match="task 'strokes'; accepted: images, latents, or --s"):
        run_command(monkeypatch, "--workdir", tmp_path, "--output", tmp_path / "out")
