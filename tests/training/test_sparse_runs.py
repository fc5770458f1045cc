"""A sparse file of a run is the run: it loads alone, and another run may begin with it."""

import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax
from sparsejax.configuration import resolve
from sparsejax.errors import ConfigError
from sparsejax.families import build_model
from sparsejax.models.unet import UNet
from sparsejax.sparse_files import load_sparse, save_sparse
from sparsejax.training import load_run, load_sparse_run, save_sparse_run
from sparsejax.training.init_from import other_weights, same_masks
from sparsejax.training.keys import run_keys
from sparsejax.training.optimizers import build_optimizer
from sparsejax.training.plan import build_plan
from sparsejax.training.state import create_state
from tests.training.tiny import tiny_config


@pytest.fixture(scope="module")
def path(tiny_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("sparse") / "model.safetensors"
    save_sparse_run(tiny_run[0], path)
    return path


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def begin(init_from, **changes):
    """The state that training begins with; only `loop.train` itself is left out."""
    config = resolve(tiny_config(**{"checkpoint.init_from": str(init_from)} | changes))
    model = build_model(config)
    plan, optimizer = build_plan(config, model), build_optimizer(config)
    return create_state(run_keys(config.seed), model, plan, optimizer, other_weights(config, model))


def test_the_file_alone_rebuilds_network_weights_and_masks(tiny_run, path):
    model, *weights = load_sparse_run(path)
    theirs, *their_weights = load_run(tiny_run[0])
    assert_equal(weights, their_weights)
    assert jax.tree.structure(weights) == jax.tree.structure(their_weights)
    x, t = jnp.ones((1, 8, 8, 1)), jnp.zeros(1, jnp.int32)
    ours, expected = jax.jit(model.apply), jax.jit(theirs.apply)
    assert_equal(ours(weights[0], x, t), expected(their_weights[0], x, t))


@pytest.mark.slow
def test_a_run_begins_with_a_file_as_with_the_workdir_it_is_of(tiny_run, path):
    ours, theirs = begin(path), begin(tiny_run[0])
    assert_equal(ours, theirs)
    assert_equal((ours.params, ours.masks), load_run(tiny_run[0])[1:])


@pytest.mark.slow
def test_a_dense_run_takes_the_weights_and_no_masks(path):
    state = begin(path, **{"sparsity.method": "dense"})
    assert {mask.ndim for mask in jax.tree.leaves(state.masks)} == {0}
    assert_equal(state.params, load_sparse(path)[0])


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"method": "magran", "drop_fraction": 0.1}, True),
        ({"block_size": 8}, True),
        ({"level": 0.5}, False),
        ({"distribution": "uniform"}, False),
        ({"custom": (("qkv", 0.5),)}, False),
        ({"structure": "channel"}, False),
        ({"method": "dense"}, False),
    ],
)
def test_masks_are_taken_where_sparsity_is_the_same(change, same):
    """The method may be another: what differs is how masks go on from there."""
    ours = tiny_config().sparsity
    theirs = tiny_config(**{f"sparsity.{key}": value for key, value in change.items()}).sparsity
    assert same_masks(ours, theirs) == same_masks(theirs, ours) == same


def test_blocks_of_another_size_are_other_masks():
    blocks = [
        tiny_config(**{"sparsity.structure": "block", "sparsity.block_size": size}).sparsity
        for size in (8, 16)
    ]
    assert same_masks(blocks[0], blocks[0])
    free = tiny_config(**{"sparsity.structure": "block", "sparsity.block_size": 8})
    free.sparsity.fan_in = False
    assert not same_masks(blocks[0], free.sparsity)
    assert not same_masks(*blocks)


def test_weights_in_bfloat16_are_widened_to_the_networks_own_type(path, tmp_path):
    params, masks, metadata = load_sparse(path)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    save_sparse(tmp_path / "half", half, masks, metadata)
    state = begin(tmp_path / "half")
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
    assert_equal(state.params, half)


def test_files_that_cannot_be_begun_with_are_refused_by_key(path, tmp_path):
    params, masks, metadata = load_sparse(path)
    save_sparse(tmp_path / "alone", params, masks)
    with pytest.raises(ConfigError, match="init_from is .*alone.* no config of a run"):
        begin(tmp_path / "alone")
    with pytest.raises(ValueError, match="alone holds weights and masks, but no config"):
        load_sparse_run(tmp_path / "alone")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    (tmp_path / "damaged").write_bytes(content)
    with pytest.raises(ConfigError, match="init_from is .*damaged is damaged: the checksum of"):
        begin(tmp_path / "damaged")
    more = {"extra": np.ones(2, np.float32)}
    save_sparse(tmp_path / "other", params | more, masks | {"extra": np.array(True)}, metadata)
    with pytest.raises(ConfigError, match="init_from is .* network of the same shape"):
        begin(tmp_path / "other")
    with pytest.raises(ValueError, match="other holds weights that don.t fit the network"):
        load_sparse_run(tmp_path / "other")


@pytest.mark.parametrize(
    ("key", "value"), [("norm_groups", 16), ("num_head_channels", 16), ("norm_eps", 1e-6)]
)
def test_weights_of_a_network_that_computes_something_else_are_refused_by_key(path, key, value):
    """Though their shapes fit."""
    ours = tiny_config().model.get(key, getattr(UNet(), key))
    with pytest.raises(ConfigError, match=rf"^config.model.{key} is {value}; acc.* {ours}, as in"):
        begin(path, **{f"model.{key}": value})


@pytest.mark.slow
def test_of_what_changes_nothing_without_training_anything_goes(path):
    begin(path, **{"model.remat": True, "model.dropout": 0.3})


@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [
        ("model.num_res_blocks", 10**7, "tensors in the file"),
        ("model.model_channels", 10**9, "largest width in the file"),
        ("model.norm_groups", 10**9, "largest width in the file"),
        ("model.num_head_channels", 10**12, "largest width in the file"),
        ("model.in_channels", 10**9, "largest width in the file"),
        ("model.channel_mult", [10**9], "largest width in the file"),
        *(
            pytest.param(key, [1] * 10**5, "tensors in the file", marks=pytest.mark.slow)
            for key in ("model.channel_mult", "model.attention_resolutions")
        ),
        ("diffusion.steps", 10**11, "2 to 1000000"),
        ("sample.steps", 10**11, "1 to 1000"),
        ("task.image_size", 10**9, "67,108,864 pixels"),
        ("task.image_size", -8, "0 or more"),
        ("sparsity.block_size", [16, 10**12], "largest width in the file"),
        ("sparsity.block_size", 0, "largest width in the file"),
        ("task.name", "x", "images, autoencoder, latents, strokes"),
    ],
)
def test_sizes_are_checked_against_the_tensors_before_anything_is_built(
    key, value, accepted, path, tmp_path
):
    params, masks, metadata = load_sparse(path)
    config = json.loads(metadata["config"])
    section, name = key.split(".")
    config[section][name] = value
    config["sparsity"]["structure"] = "block"
    file = tmp_path / "model.safetensors"
    save_sparse(file, params, masks, metadata | {"config": json.dumps(config)})
    tracemalloc.start()
    try:
        for load in (load_sparse_run, sparsejax.load):
            with pytest.raises(ConfigError, match=f"^{file}.*({accepted})"):
                load(file)
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("depth", [600, 950, 100_000])
def test_a_config_that_is_nested_deeply_is_refused(depth, path, tmp_path):
    params, masks, metadata = load_sparse(path)
    config = '{"model": ' + '{"a": ' * depth + "1" + "}" * (depth + 1)
    file = tmp_path / "model.safetensors"
    save_sparse(file, params, masks, metadata | {"config": config})
    with pytest.raises(ConfigError, match=f"^{file}"):
        sparsejax.load(file)
