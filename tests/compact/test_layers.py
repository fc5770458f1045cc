"""Layers with options that this project's own networks don't use, as those of other families may.

Each computes the same in the compact network, or stays masked and is named in the log.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.compact.network import find_layers
from sparsejax.compact.states import without_inactive
from sparsejax.families import Model
from sparsejax.models.convolutions import convolve
from sparsejax.models.layers import GroupNorm
from sparsejax.sparsity.blocks import block_of
from sparsejax.training.plan import compact_network
from tests.training.tiny import tiny_config

X = np.random.default_rng(0).standard_normal((2, 6, 5, 8), np.float32)


class Odd(nn.Module):
    """Layers one after another; all but the first have 16 channels."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(16, (3, 3), use_bias=False, name="bare")(x)
        x = nn.tanh(GroupNorm(4, name="norm")(x))
        x = nn.tanh(nn.Conv(16, (3, 2), strides=(2, 1), padding="VALID", name="strided")(x))
        x = nn.tanh(nn.Conv(16, (3, 3), padding=[(0, 1), 1], name="uneven")(x))
        x = nn.tanh(nn.Conv(16, (3, 3), kernel_dilation=2, name="dilated")(x))
        x = nn.tanh(nn.Conv(16, (3, 3), padding="CIRCULAR", name="circular")(x))
        x = nn.tanh(nn.Conv(16, (3, 3), feature_group_count=2, name="grouped")(x))
        x = nn.tanh(nn.DenseGeneral(16, name="general")(x))
        x = nn.tanh(nn.Dense(16, use_bias=False, name="dense")(x))
        return nn.tanh(nn.Conv(16, (3,), name="of_rows")(x))


MASKED = ["circular", "dilated", "general", "grouped", "of_rows"]


def model_of(network, groups=()):
    """A Model of a network, with groups of channels."""
    model = Model(
        network,
        lambda key: network.init(key, X)["params"],
        lambda params, x: network.apply({"params": params}, x),
        *[None] * (len(Model._fields) - 3),
    )
    return model._replace(units=lambda params: dict(groups))


def params_of(model):
    """Params of which none is zero."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32) / 4, shapes)


def assert_same(model, sparsity, masks):
    """Outputs and gradients are those of the masked network; returns the names of the layers."""
    params = jax.tree.map(lambda x, m: np.where(m, x, np.float32(0)), params_of(model), masks)
    network = compact_network(sparsity, model, masks)
    small_model, small = without_inactive(network, model, params, masks)

    def run(apply, params):
        def loss(params):
            y = apply(params, X)
            return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape))) / 100, y

        gradients, y = jax.jit(jax.grad(loss, has_aux=True))(params)
        return y, gradients

    (got, compact), (expected, gradients) = run(small_model.apply, small), run(model.apply, params)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(got, expected, atol=1e-6)
    whole = network.trees.expand(compact, network.trees.indices(masks))
    for ours, theirs, mask in zip(*map(jax.tree.leaves, (whole, gradients, masks)), strict=True):
        np.testing.assert_allclose(np.where(mask, ours, 0), np.where(mask, theirs, 0), atol=1e-6)
    return network.layers


@pytest.mark.parametrize("fan_in", [True, False])
def test_blocks_of_any_layer_compute_the_same_or_stay_masked(fan_in, caplog):
    model, sparsity = model_of(Odd()), tiny_config().sparsity
    sparsity.structure, sparsity.block_size = "block", (4, 8)
    rng = np.random.default_rng(2)

    def mask(leaf):
        block = block_of(leaf.shape, (4, 8)) if len(leaf.shape) > 1 else None
        if block is None:
            return np.True_
        grid = rng.permuted(np.arange(leaf.shape[-2] // 4)[:, None] < [[1] * 2], axis=0)
        grid[0, 0] |= not fan_in  # of some layers, columns have other numbers then
        return np.broadcast_to(np.kron(grid, np.ones(block, bool)), leaf.shape).astype(bool)

    masks = jax.tree.map(mask, params_of(model))
    with caplog.at_level("INFO", logger="sparsejax"):
        layers = assert_same(model, sparsity, masks)
    assert sorted(layers) == [f"{name}/kernel" for name in ("bare", "dense", "strided", "uneven")]
    masked = ", ".join(f"{name}/kernel" for name in MASKED)
    assert f"these layers stay masked at full size: {masked}" in caplog.text


def channels_after(first, then, norm=None):
    """The group of half the channels between two layers."""
    units = np.repeat(np.arange(4), 4)
    members = [(f"{first}/kernel", -1, units, True)]
    members += [(f"{norm}/{leaf}", 0, units, True) for leaf in ("scale", "bias") if norm]
    return [*members, (f"{then}/kernel", -2, units, False)]


def masks_of(params, members):
    masks = jax.tree.map(lambda x: np.True_, params)
    for path, axis, units, _ in members:
        layer, leaf = path.split("/")
        shape = [1] * params[layer][leaf].ndim
        shape[axis] = -1
        keep = np.isin(units, [0, 3]).reshape(shape)
        masks[layer][leaf] = masks[layer][leaf] & np.broadcast_to(keep, params[layer][leaf].shape)
    return masks


@pytest.mark.parametrize(
    "layers", [("bare", "strided", "norm"), ("uneven", "dilated"), ("dilated", "circular")]
)
def test_channels_of_any_layer_compute_the_same(layers):
    """Biases of absent channels aside, which a compact network has not."""
    network = Odd()
    params = params_of(model_of(network))
    members = channels_after(*layers)
    if "bias" in params[layers[0]]:
        members.append((f"{layers[0]}/bias", 0, members[0][2], True))
    members = [
        (p, a % params[p.split("/")[0]][p.split("/")[1]].ndim, u, i) for p, a, u, i in members
    ]
    sparsity = tiny_config(**{"sparsity.structure": "channel"}).sparsity
    model = model_of(network, {"group": members})
    layers = {f"{layer}/kernel" for layer in layers[:2]}
    assert set(assert_same(model, sparsity, masks_of(params, members))) == layers


@pytest.mark.parametrize("layers", [("circular", "grouped"), ("grouped", "general")])
def test_a_network_of_channels_of_other_layers_stays_masked(layers, caplog):
    params = params_of(model_of(Odd()))
    members = channels_after(*layers)
    model = model_of(Odd(), {"group": members})
    sparsity = tiny_config(**{"sparsity.structure": "channel"}).sparsity
    with caplog.at_level("INFO", logger="sparsejax"):
        assert compact_network(sparsity, model, masks_of(params, members[:1])) is None
    names = [f"{layer}/kernel" for layer in layers if layer != "circular"]
    assert f"the network stays masked: no channels can be removed from {names}" in caplog.text


class Stacked(nn.Module):
    """Two dense layers whose kernels are one array, [2, 8, 8]."""

    @nn.compact
    def __call__(self, x):
        stack = nn.scan(Inner, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return stack(name="stack")(x, None)[0]


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(8, name="dense")(x), None


def test_stacked_layers_stay_masked():
    model, sparsity = model_of(Stacked()), tiny_config().sparsity
    sparsity.structure, sparsity.block_size = "block", 4
    params, layers = find_layers(model.init)
    assert params["stack"]["dense"]["kernel"].shape == (2, 8, 8)
    assert type(layers["stack/dense"]) is nn.Dense
    mask = np.broadcast_to(np.kron(np.eye(2) > 0, np.ones((4, 4), bool)), (2, 8, 8))
    masks = {"stack": {"dense": {"kernel": mask, "bias": np.True_}}}
    assert compact_network(sparsity, model, masks) is None


@pytest.mark.parametrize("dilation", [1, 2])
def test_a_dilated_convolution_of_a_small_map_is_that_of_jax(dilation):
    """Such maps go through products of patches, which know no dilation."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 2, 2, 3), np.float32)
    kernel = rng.standard_normal((3, 3, 3, 4), np.float32)
    options = {"rhs_dilation": (dilation,) * 2, "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    padding = [(dilation, dilation)] * 2
    expected = jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, **options)
    np.testing.assert_allclose(
        convolve(x, kernel, (1, 1), padding, **options), expected, rtol=1e-5, atol=1e-5
    )
