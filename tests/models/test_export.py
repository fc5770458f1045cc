"""An exported UNet is the UNet: weights, masks and config, in both layouts."""

import json

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from sparsejax.models import export, published
from sparsejax.models.arguments import network_arguments
from tests.models.test_convert import MIXED, assert_same_trees, numbered, unet_shapes

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
    assert_same_trees(published.load_unet(folder / "unet.safetensors"), params)
    assert_same_trees(published.load_unet(folder / "diffusers"), params)


@pytest.mark.parametrize(("weights", "masks"), WEIGHTS.items())
def test_masks_are_ones_where_weights_are_active_in_the_weights_shapes(exported, weights, masks):
    _, _, folder, _ = exported
    arrays, ones = load_file(folder / weights), load_file(folder / masks)
    assert arrays.keys() == ones.keys()
    for name, array in arrays.items():
        assert ones[name].dtype == np.uint8
        np.testing.assert_array_equal(ones[name], array != 0, err_msg=name)
    assert sum((1 - mask).sum() for mask in ones.values()) > 0


def test_a_network_that_diffusers_does_not_have_is_written_in_compvis_layout(tmp_path):
    model = MIXED.clone(channel_mult=(2, 4), attention_resolutions=())
    params = numbered(unet_shapes(model))
    masks = jax.tree.map(lambda param: np.array(True), params)
    written = export.export_unet(params, masks, tmp_path, model)
    assert {path.name for path in written} == {"unet.safetensors", "masks.safetensors"}
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(written)
    assert_same_trees(published.load_unet(tmp_path / "unet.safetensors"), params)


def test_an_exported_file_that_says_it_is_of_another_network_is_refused(exported, tmp_path):
    params, masks, _, _ = exported
    metadata = {"model": json.dumps(network_arguments(MIXED))}
    export.export_unet(params, masks, tmp_path, MIXED, metadata=metadata)
    path = tmp_path / "unet.safetensors"
    assert_same_trees(published.load_unet(path, model=MIXED), params)
    with pytest.raises(ValueError, match=r"norm_groups is 8; accepted: 16, as in the model$"):
        published.load_unet(path, model=MIXED.clone(norm_groups=16))


def test_epsilon_and_its_like_are_compvis_own_where_a_file_states_no_other(exported, tmp_path):
    params, masks, _, _ = exported
    older = {k: v for k, v in network_arguments(MIXED).items() if k != "norm_eps"}
    other = MIXED.clone(norm_eps=1e-6)
    for metadata in ({"model": json.dumps(older)}, None):  # CompVis's own files say nothing
        export.export_unet(params, masks, tmp_path, MIXED, metadata=metadata)
        published.load_unet(tmp_path / "unet.safetensors", model=MIXED)
        with pytest.raises(ValueError, match="norm_eps is 1e-05; accepted: 1e-06, as in the mod"):
            published.load_unet(tmp_path / "unet.safetensors", model=other)
    export.export_unet(params, masks, tmp_path, other)
    for name in ("unet.safetensors", "diffusers"):
        assert_same_trees(published.load_unet(tmp_path / name, model=other), params)
        with pytest.raises(ValueError, match="norm_eps is 1e-06; accepted: 1e-05, as in the mod"):
            published.load_unet(tmp_path / name, model=MIXED)


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
