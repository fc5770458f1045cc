"""Networks without what is inactive compute what the masked networks compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsejax.compact import network
from sparsejax.models.chirodiff import BiGRUDenoiser
from sparsejax.models.unet import Downsample
from sparsejax.models.units import bigru_units

HIDDEN = 6
GRU = BiGRUDenoiser(hidden=HIDDEN, layers=2, steps=10)


def masks_of(groups, params, active):
    """Masks of whole units by plain numpy: False where a unit on any axis is inactive."""
    masks = jax.tree.map(lambda x: np.ones(x.shape, bool), params)
    for name, members in groups.items():
        for path, axis, units, _ in members:
            module, layer, leaf = (
                path.split("/") if path.count("/") == 2 else ["", *path.split("/")]
            )
            tree = masks[module][layer] if module else masks[layer]
            dead = [i for i, unit in enumerate(units) if unit >= 0 and unit not in active[name]]
            tree[leaf][(slice(None),) * axis + (dead,)] = False
    return masks


def test_a_gru_without_hidden_units_computes_what_the_masked_one_does():
    points = jax.random.normal(jax.random.key(0), (3, 7, 3))
    t, lengths = jnp.array([0, 4, 9]), jnp.array([7, 3, 5])
    variables = jax.jit(GRU.init)(jax.random.key(1), points, t, lengths)
    constants = {"constants": variables["constants"]}
    params = jax.tree.map(np.asarray, variables["params"])
    groups = bigru_units(params)
    assert sorted(groups) == [f"rnn_l{i}/{d}" for i in range(2) for d in ("backward", "forward")]
    rng = np.random.default_rng(0)
    active = {name: set(rng.permutation(HIDDEN)[:2].tolist()) for name in groups}
    masks = masks_of(groups, params, active)
    # Biases of absent units don't matter.
    with_biases = jax.tree.map(lambda x, m: np.where(m | (x.ndim < 2), x, 0), params, masks)
    params = jax.tree.map(lambda x, mask: np.where(mask, x, 0), params, masks)

    def apply(params, *inputs):
        return GRU.apply({"params": params} | constants, *inputs)

    compact = network.compact_channels(masks, groups)
    small = jax.device_get(compact.shrink(params))
    assert small["rnn_l0"]["forward_hh"]["kernel"].shape == (2, 3 * 2)
    assert small["rnn_l1"]["backward_ih"]["kernel"].shape == (2 + 2, 3 * 2)
    assert small["out_proj"]["kernel"].shape == (2 + 2, HIDDEN)
    expected = jax.jit(apply)(with_biases, points, t, lengths)
    got = jax.jit(compact.bind(apply))(small, points, t, lengths)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.abs(expected[:, :3]).min() > 0
    # The inverse of shrinking.
    jax.tree.map(np.testing.assert_array_equal, compact.expand(small, params), params)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 999), st.floats(0.05, 1))
def test_products_cover_each_active_block_once(rows, columns, seed, p):
    """However columns are grouped: no block is missed, and no output is computed twice."""
    grid = np.random.default_rng(seed).random((rows, columns)) < p
    groups = network.share_products(grid, 64)
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


def test_blocks_lie_in_c_order_and_expand_to_the_same_kernel():
    rng = np.random.default_rng(0)
    grid = np.array([[True, False, True], [False, False, True]])
    mask = np.broadcast_to(np.kron(grid, np.ones((4, 4), bool)), (3, 3, 8, 12))
    kernel = np.where(mask, rng.normal(size=mask.shape), 0).astype(np.float32)
    compact = network.compact_blocks({"conv": {"kernel": mask, "bias": np.True_}}, 4)
    params = {"conv": {"kernel": kernel, "bias": np.ones(12, np.float32)}}
    small = compact.shrink(params)
    assert compact.layers == ("conv/kernel",)
    np.testing.assert_array_equal(small["conv"]["kernel"][1], kernel[:, :, :4, 8:])
    jax.tree.map(np.testing.assert_array_equal, compact.expand(small, params), params)


@pytest.mark.parametrize("structure", ["block", "channel"])
@pytest.mark.parametrize("padding", [0, 1])
def test_a_halving_is_padded_as_the_layer_says(structure, padding):
    """Beside a masked network, at an odd size too: 0 pads below and to the right alone."""
    layer = Downsample(padding=padding)
    x = jax.random.normal(jax.random.key(0), (1, 6, 5, 8))
    params = layer.init(jax.random.key(1), x)["params"]
    grid = np.array([[True, False], [False, False]])
    mask = np.broadcast_to(np.kron(grid, np.ones((4, 4), bool)), (3, 3, 8, 8))
    masks = {"op": {"kernel": mask, "bias": np.True_}}
    params["op"]["kernel"] = jnp.where(mask, params["op"]["kernel"], 0)
    x = x.at[..., 4:].set(0)
    expected = layer.apply({"params": params}, x)
    if structure == "block":
        compact = network.compact_blocks(masks, 4)
    else:
        units = np.repeat([0, 1], 4)
        members = [("op/kernel", 3, units, True), ("op/bias", 0, units, True)]
        inputs = [("op/kernel", 2, units, False)]
        compact = network.compact_channels(masks, {"out": members, "in": inputs})
        x, expected = x[..., :4], expected[..., :4]
    assert compact.layers == ("op/kernel",)
    run = compact.bind(lambda params, x: layer.apply({"params": params}, x))
    got = run(compact.prepare(compact.shrink(params)), x)
    assert got.shape == expected.shape == (1, 3, 2 + padding, expected.shape[-1])
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_layers_that_stay_masked_are_named_in_the_log(caplog):
    """Masks without blocks, and recurrent kernels, which are read whole."""
    rng = np.random.default_rng(0)
    blocks = np.kron(np.eye(2, dtype=bool), np.ones((4, 4), bool))
    masks = {
        "free": {"kernel": rng.random((8, 8)) < 0.5},
        "rnn_l0": {"forward_hh": {"kernel": blocks}},
        "dense": {"kernel": blocks, "bias": np.True_},
    }
    with caplog.at_level("INFO", logger="sparsejax"):
        compact = network.compact_blocks(masks, 4)
    assert compact.layers == ("dense/kernel",)
    assert "stay masked at full size: free/kernel, rnn_l0/forward_hh/kernel" in caplog.text
    assert compact.masks["free"]["kernel"].shape == (8, 8)
    assert compact.masks["dense"]["kernel"].ndim == 0
