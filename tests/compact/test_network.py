"""Networks without what is inactive compute what the masked networks compute."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsejax.compact.blocks import bind_blocks, compact_blocks
from sparsejax.compact.channels import compact_channels
from sparsejax.compact.free_blocks import compact_free_blocks, has_fan_in, share_products
from sparsejax.models.chirodiff import BiGRUDenoiser
from sparsejax.models.layers import dense
from sparsejax.models.unet import Downsample, UNet
from sparsejax.models.units import bigru_units, unet_units
from sparsejax.sparsity.blocks import block_of
from sparsejax.sparsity.channels import Member

HIDDEN = 6
GRU = BiGRUDenoiser(hidden=HIDDEN, layers=2, steps=10)
HEAD, NORM = 8, 4  # channels of an attention head, groups of a GroupNorm
# Two resolutions; attention in the middle alone.
UNET = UNet(1, 1, 16, 1, (), (1, 2), HEAD, norm_groups=NORM)
X, T = np.random.default_rng(1).standard_normal((3, 4, 4, 1), np.float32), np.array([0, 10, 999])
BLOCKS = {"square": 8, "rectangular": (4, 16), "free": 8}


def with_gradients(apply):
    """Compile outputs and gradients of an apply, for params and inputs."""

    def run(params, *inputs):
        def loss(params):
            y = apply(params, *inputs)
            return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape))), y

        gradients, y = jax.grad(loss, has_aux=True)(params)
        return y, gradients

    return jax.jit(run)


def compiled(trees):
    """`indices`, `shrink` and `expand` of CompactTrees, one program each."""
    return map(jax.jit, (trees.indices, trees.shrink, trees.expand))


def members_of(groups):
    return {name: [Member(*member) for member in members] for name, members in groups.items()}


def masks_of(groups, params, active):
    """Masks of whole units by plain numpy: False where a unit on any axis is inactive."""
    masks = jax.tree.map(lambda x: np.ones(x.shape, bool), params)
    for name, members in groups.items():
        for path, axis, units, _ in members:
            tree, (*modules, leaf) = masks, path.split("/")
            for module in modules:
                tree = tree[module]
            dead = [i for i, unit in enumerate(units) if unit >= 0 and unit not in active[name]]
            tree[leaf][(slice(None),) * axis + (dead,)] = False
    return masks


def draw_units(groups, rng, count):
    """A number of active units of each group."""
    sizes = {name: max(members[0][2]) + 1 for name, members in groups.items()}
    return {name: set(rng.permutation(size)[:count].tolist()) for name, size in sizes.items()}


def draw_blocks(params, size, rng, *, free=False):
    """Masks of a quarter of the blocks, as many in every column unless they are free."""

    def mask(leaf):
        block = block_of(leaf.shape, size)
        if block is None:
            return np.True_
        grid = np.zeros((leaf.shape[-2] // block[0], leaf.shape[-1] // block[1]), bool)
        for column in grid.T:
            column[rng.permutation(len(column))[: max(1, round(len(column) / 4))]] = True
        if free:
            grid = rng.permutation(grid.ravel()).reshape(grid.shape)
        return np.broadcast_to(np.kron(grid, np.ones(block, bool)), leaf.shape).astype(bool)

    return jax.tree.map(mask, params)


def masked(params, masks):
    return jax.tree.map(lambda x, mask: np.where(mask, x, 0).astype(x.dtype), params, masks)


@functools.cache
def unet():
    """Params of the UNet, none of them zero, and its masked outputs and gradients."""
    shapes = jax.eval_shape(lambda: UNET.init(jax.random.key(0), X, T))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.2 * rng.standard_normal(x.shape, np.float32), shapes)
    return params, with_gradients(lambda params, *inputs: UNET.apply({"params": params}, *inputs))


def compact_unet(structure, params, masks):
    if structure == "free":
        return compact_free_blocks(masks, BLOCKS["free"])
    if structure == "channel":
        groups = members_of(unet_units(params, NORM, HEAD))
        # Half of the groups of a norm, and of the heads of an attention.
        return compact_channels(params, dict.fromkeys(groups, 0.5), groups)
    sparsities = jax.tree.map(lambda mask: 0.75 if np.ndim(mask) else 0.0, masks)
    return compact_blocks(params, sparsities, BLOCKS[structure])


def draw_masks(structure, params, seed):
    rng = np.random.default_rng(seed)
    if structure == "channel":
        groups = unet_units(params, NORM, HEAD)
        active = {
            name: set(rng.permutation(n := max(members[0][2]) + 1)[: n // 2].tolist())
            for name, members in groups.items()
        }
        return masks_of(groups, params, active)
    return draw_blocks(params, BLOCKS[structure], rng, free=structure == "free")


@pytest.mark.parametrize(
    "structure",
    [
        pytest.param("square", marks=pytest.mark.slow),
        pytest.param("rectangular", marks=pytest.mark.slow),
        "channel",
        pytest.param("free", marks=pytest.mark.slow),
    ],
)
def test_the_unet_without_inactive_parts_is_the_masked_one(structure):
    """Outputs and gradients; but for free blocks, one program runs all topologies."""
    params, run_masked = unet()
    masks = draw_masks(structure, params, 0)
    network = compact_unet(structure, params, masks)
    apply = lambda params, *inputs: UNET.apply({"params": params}, *inputs)  # noqa: E731
    run = jax.jit(
        lambda compact, indices, *inputs: with_gradients(network.bind(apply, indices))(
            compact, *inputs
        )
    )
    indices_of, shrink, expand = compiled(network.trees)
    topologies = [masks] if structure == "free" else [masks, draw_masks(structure, params, 1)]
    for masks in topologies:
        ours = masked(params, masks)
        expected, gradients = run_masked(ours, X, T)
        indices = indices_of(masks)
        small = shrink(ours, indices)
        # Of a layer that became smaller, nothing but what is active is held.
        sizes = [
            (leaf.size, mask.sum() if np.ndim(mask) else full.size)
            for leaf, mask, full in zip(*map(jax.tree.leaves, (small, masks, params)), strict=True)
        ]
        assert all(ours == active for ours, active in sizes)
        got, compact_gradients = run(small, indices, X, T)
        assert jnp.abs(expected).max() > 0.1
        np.testing.assert_allclose(got, expected, atol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            expand(compact_gradients, indices),
            masked(gradients, masks),
        )
    assert run._cache_size() == 1
    assert len(network.layers) == sum(
        np.ndim(mask) > 1 and not mask.all() for mask in jax.tree.leaves(masks)
    )


def test_the_gru_without_hidden_units_is_the_masked_one():
    """Outputs and gradients; one program runs all topologies."""
    points = jax.random.normal(jax.random.key(0), (3, 7, 3))
    t, lengths = jnp.array([0, 4, 9]), jnp.array([7, 3, 5])
    variables = jax.jit(GRU.init)(jax.random.key(1), points, t, lengths)
    constants = {"constants": variables["constants"]}
    params = jax.tree.map(np.asarray, variables["params"])
    groups = bigru_units(params)
    assert sorted(groups) == [f"rnn_l{i}/{d}" for i in range(2) for d in ("backward", "forward")]

    def apply(params, *inputs):
        return GRU.apply({"params": params} | constants, *inputs)

    network = compact_channels(params, dict.fromkeys(groups, 2 / 3), members_of(groups))
    run, run_masked = with_gradients(network.bind(apply, ())), with_gradients(apply)
    indices_of, shrink, expand = compiled(network.trees)
    for seed in range(2):
        masks = masks_of(groups, params, draw_units(groups, np.random.default_rng(seed), 2))
        ours = masked(params, masks)
        indices = indices_of(masks)
        small = shrink(ours, indices)
        assert small["rnn_l0"]["forward_hh"]["kernel"].shape == (2, 3 * 2)
        assert small["rnn_l1"]["backward_ih"]["kernel"].shape == (2 + 2, 3 * 2)
        assert small["out_proj"]["kernel"].shape == (2 + 2, HIDDEN)
        expected, gradients = run_masked(ours, points, t, lengths)
        got, compact_gradients = run(small, points, t, lengths)
        assert np.abs(expected[:, :3]).min() > 0
        np.testing.assert_allclose(got, expected, atol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            expand(compact_gradients, indices),
            masked(gradients, masks),
        )
    assert run._cache_size() == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 999), st.floats(0.05, 1))
def test_products_cover_each_active_block_once(rows, columns, seed, p):
    """However columns are grouped: no block is missed, and no output is computed twice."""
    grid = np.random.default_rng(seed).random((rows, columns)) < p
    groups = share_products(grid, 64)
    outputs = [j for _, outputs in groups for j in outputs]
    assert sorted(outputs) == [j for j in range(columns) if grid[:, j].any()]
    for inputs, group in groups:
        assert set(inputs) == set(np.flatnonzero(grid[:, list(group)].any(1)))
    # Columns of equal inputs always share a product.
    keys = [tuple(grid[:, j]) for j in range(columns)]
    of = {j: i for i, (_, group) in enumerate(groups) for j in group}
    for i in of:
        for j in of:
            assert keys[i] != keys[j] or of[i] == of[j]


def test_free_blocks_lie_in_c_order_and_expand_to_the_same_kernel():
    rng = np.random.default_rng(0)
    grid = np.array([[True, False, True], [False, False, True]])
    mask = np.broadcast_to(np.kron(grid, np.ones((4, 8), bool)), (3, 3, 8, 24))
    kernel = np.where(mask, rng.normal(size=mask.shape), 0).astype(np.float32)
    network = compact_free_blocks({"conv": {"kernel": mask, "bias": np.True_}}, (4, 8))
    params = {"conv": {"kernel": kernel, "bias": np.ones(24, np.float32)}}
    small = network.trees.shrink(params, ())
    assert network.layers == ("conv/kernel",)
    np.testing.assert_array_equal(small["conv"]["kernel"][1], kernel[:, :, :4, 16:])
    jax.tree.map(np.testing.assert_array_equal, network.trees.expand(small, ()), params)


def test_masks_with_as_many_blocks_in_every_column_have_fan_in():
    def masks(grid):
        return {"kernel": np.kron(np.array(grid, bool), np.ones((4, 8), bool)), "bias": np.True_}

    assert has_fan_in(masks([[1, 0, 1], [0, 1, 0]]), (4, 8))
    assert not has_fan_in(masks([[1, 1, 1], [0, 1, 0]]), (4, 8))
    # Single weights.
    assert not has_fan_in(masks([[1, 0, 1], [0, 1, 0]]), (8, 8))


@pytest.mark.parametrize("structure", ["block", "free", "channel"])
@pytest.mark.parametrize("padding", [0, 1])
def test_a_halving_is_padded_as_the_layer_says(structure, padding):
    """Beside a masked network, at an odd size too: 0 pads below and to the right alone."""
    layer = Downsample(padding=padding)
    x = jax.random.normal(jax.random.key(0), (1, 6, 5, 8))
    params = layer.init(jax.random.key(1), x)["params"]
    grid = np.array([[True, structure == "block"], [False, False]])
    mask = np.broadcast_to(np.kron(grid, np.ones((4, 4), bool)), (3, 3, 8, 8))
    masks = {"op": {"kernel": mask, "bias": np.True_}}
    params["op"]["kernel"] = jnp.where(mask, params["op"]["kernel"], 0)
    x = x.at[..., 4:].set(0)
    expected = layer.apply({"params": params}, x)
    if structure == "block":
        network = compact_blocks(params, {"op": {"kernel": 0.5, "bias": 0.0}}, 4)
    elif structure == "free":
        network = compact_free_blocks(masks, 4)
    else:
        units = np.repeat([0, 1], 4)
        members = [("op/kernel", 3, units, True), ("op/bias", 0, units, True)]
        groups = members_of({"out": members, "in": [("op/kernel", 2, units, False)]})
        network = compact_channels(params, {"out": 0.5, "in": 0.5}, groups)
        masks["op"]["bias"] = np.arange(8) < 4
        x, expected = x[..., :4], expected[..., :4]
    assert network.layers == ("op/kernel",)
    indices = network.trees.indices(masks)
    run = network.bind(lambda params, x: layer.apply({"params": params}, x), indices)
    got = run(network.trees.shrink(params, indices), x)
    assert got.shape == expected.shape == (1, 3, 2 + padding, expected.shape[-1])
    np.testing.assert_allclose(got, expected, atol=1e-6)


class Recomputed(nn.Module):
    """A dense layer in bfloat16 whose inside the backward pass computes again."""

    @nn.compact
    def __call__(self, x):
        return nn.remat(Inner)(name="inner")(x)


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
        return dense(x, 8, "layer", dtype=jnp.bfloat16)


def test_layers_keep_their_dtype_and_are_recomputed():
    """Computed in bfloat16, with gradients in float32, as the masked layer."""
    x = jax.random.normal(jax.random.key(0), (5, 8))
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((2, 4, 4), np.float32)  # of output blocks
    full = np.zeros((8, 8), np.float32)
    full[4:, :4], full[:4, 4:] = kernel
    bias = rng.standard_normal(8, np.float32)
    tree = lambda kernel: {"inner": {"layer": {"kernel": kernel, "bias": bias}}}  # noqa: E731
    apply = lambda params, x: Recomputed().apply({"params": params}, x)  # noqa: E731
    run = jax.jit(
        lambda compact, index: with_gradients(bind_blocks(apply, tree(index)))(compact, x)
    )
    got, gradients = run(tree(kernel), jnp.array([[1], [0]]))
    expected, expected_gradients = with_gradients(apply)(tree(full), x)
    assert (got.dtype, expected.dtype) == (jnp.bfloat16, jnp.bfloat16)
    np.testing.assert_allclose(got.astype(np.float32), expected.astype(np.float32), rtol=2**-7)
    ours, theirs = (g["inner"]["layer"]["kernel"] for g in (gradients, expected_gradients))
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, [theirs[4:, :4], theirs[:4, 4:]], rtol=2**-7, atol=2**-7)


def test_layers_that_stay_masked_are_named_in_the_log(caplog):
    """Masks without blocks, and layers that are said to need their kernels whole."""
    rng = np.random.default_rng(0)
    blocks = np.kron(np.eye(2, dtype=bool), np.ones((4, 4), bool))
    masks = {
        "free": {"kernel": rng.random((8, 9)) < 0.5},
        "rnn_l0": {"forward_hh": {"kernel": blocks}},
        "dense": {"kernel": blocks, "bias": np.True_},
    }
    sparsities = jax.tree.map(lambda mask: 0.5 if np.ndim(mask) else 0.0, masks)
    params = jax.tree.map(np.zeros_like, masks)
    for network in (
        lambda: compact_free_blocks(masks, 4, lambda name: "_hh" not in name),
        lambda: compact_blocks(params, sparsities, 4, lambda name: "_hh" not in name),
    ):
        caplog.clear()
        with caplog.at_level("INFO", logger="sparsejax"):
            compact = network()
        assert compact.layers == ("dense/kernel",)
        assert "stay masked at full size: free/kernel, rnn_l0/forward_hh/kernel" in caplog.text
        small = compact.trees.masks(masks)
        assert small["free"]["kernel"].shape == (8, 9)
        assert small["rnn_l0"]["forward_hh"]["kernel"].shape == (8, 8)
        assert small["dense"]["kernel"].ndim == 0
