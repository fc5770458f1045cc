"""Blocks and channels: invariants of the topology updates on units, and what a unit is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsejax.sparsity import blocks, masks, methods, structure, topology
from tests.sparsity.channel_net import GROUPS, forward, init
from tests.sparsity.strategies import active_counts, random_like, random_tree

SHAPES = {"conv": {"kernel": (3, 3, 8, 12), "bias": (12,)}, "out": {"kernel": (12, 10)}}
FRACTIONS = st.sampled_from([0.0, 0.3, 0.5, 1.0])
LEVELS = st.sampled_from([0.3, 0.5, 0.75])

BLOCK, CHANNEL = structure.block(4), structure.channel(GROUPS, init)
BUILT = {
    (name, kind.name): methods.get_method(name, kind)
    for name in ("rigl", "magran")
    for kind in (BLOCK, CHANNEL)
}
PROBE = jax.jit(BUILT["rigl", "channel"].probe)
GRADIENT = jax.jit(jax.grad(lambda params: jnp.sum(forward(params) ** 2)))
UPDATES = {key: jax.jit(method.update) for key, method in BUILT.items()}
rewire_columns = jax.jit(topology.rewire_columns)


@functools.cache
def block_init(level):
    sparsities = {"conv": {"kernel": level, "bias": 0.0}, "out": {"kernel": level}}
    method = methods.get_method("static", BLOCK)
    return jax.jit(lambda key, params: method.init(key, params, sparsities))


@functools.cache
def channel_init(level):
    sparsities = structure.channel_sparsities(
        GROUPS, jax.eval_shape(init, jax.random.key(0)), level
    )
    method = methods.get_method("static", CHANNEL)
    return jax.jit(lambda key, params: method.init(key, params, sparsities))


def is_constant_within_blocks(mask, size):
    """By loops and slices, not by the library."""
    rows, columns = mask.shape[-2] // size, mask.shape[-1] // size
    return all(
        len(np.unique(mask[..., i * size : (i + 1) * size, j * size : (j + 1) * size])) == 1
        for i in range(rows)
        for j in range(columns)
    )


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 999), LEVELS, st.sampled_from(["rigl", "magran"]), FRACTIONS)
def test_blocks_move_whole_and_keep_their_number(seed, level, name, fraction):
    key = jax.random.key(seed)
    params = random_tree(SHAPES, seed)
    before = block_init(level)(key, params)
    units = 2 * 3
    assert before["conv"]["kernel"].sum() == (units - int(units * level)) * 9 * 16
    params = masks.apply_masks(params, before)
    gradients = random_like(params, seed + 1)
    after_params, after = UPDATES[name, "block"](key, params, before, gradients, fraction)
    assert active_counts(after) == active_counts(before)
    assert is_constant_within_blocks(np.asarray(after["conv"]["kernel"]), 4)
    assert after["conv"]["bias"].ndim == 0
    # (12, 10) has no blocks of 4: single weights move there.
    assert after["out"]["kernel"].sum() == 120 - int(120 * level)
    for old, new, was, now in zip(
        *map(jax.tree.leaves, (params, after_params, before, after)), strict=True
    ):
        now, was = np.broadcast_to(now, new.shape), np.broadcast_to(was, new.shape)
        assert (np.asarray(new)[~(now & was)] == 0).all()
        np.testing.assert_array_equal(np.asarray(new)[now & was], np.asarray(old)[now & was])


def test_blocks_are_dropped_and_grown_by_their_means():
    """Against sums taken by hand; the signs must not cancel."""
    kernel = np.zeros((1, 1, 8, 8), np.float32)
    kernel[0, 0, :4, :4], kernel[0, 0, 4:, 4:] = 1.0, 0.5
    kernel[0, 0, 0, 0] = -1.0
    gradient = np.zeros_like(kernel)
    gradient[0, 0, :4, 4:] = np.where(np.arange(4) % 2, 0.3, -0.3)
    gradient[0, 0, 4, 0] = 4.0  # the largest weight, the smaller mean: 4 / 16
    gradient[0, 0, 4:, 4:] = 0.1
    before = {"kernel": jnp.asarray(kernel != 0)}
    _, after = UPDATES["rigl", "block"](
        jax.random.key(0), {"kernel": jnp.asarray(kernel)}, before, {"kernel": gradient}, 0.5
    )
    assert after["kernel"][0, 0, ::4, ::4].tolist() == [[True, True], [False, False]]


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 999), LEVELS, st.sampled_from(["rigl", "magran"]), FRACTIONS)
def test_channels_move_whole_through_all_their_arrays(seed, level, name, fraction):
    key = jax.random.key(seed)
    params = init(key)
    before = channel_init(level)(key, params)
    params = masks.apply_masks(params, before)
    gradients = GRADIENT(PROBE(key, params, before))
    after_params, after = UPDATES[name, "channel"](key, params, before, gradients, fraction)
    assert active_counts(after) == active_counts(before)
    a = np.asarray(after["a"]["kernel"]).all(0).reshape(4, 2).all(1)
    b = np.asarray(after["inner"]["kernel"]).any(0)
    assert (np.asarray(after["a"]["kernel"]) == np.repeat(a, 2)).all()
    assert (np.asarray(after["b"]["kernel"]) == b).all()
    assert (np.asarray(after["inner"]["kernel"]) == b[:, None] & b).all()
    assert (np.asarray(after["out"]["kernel"]) == np.r_[np.repeat(a, 2), b][:, None]).all()
    assert (np.asarray(after["a"]["bias"]) == np.repeat(a, 2)).all()
    assert after["out"]["bias"].ndim == 0
    new = jax.tree.map(np.asarray, after_params)
    was, now = jax.tree.map(np.asarray, (before, after))
    for layer in ("a", "b", "inner", "out"):
        kernel, mask, old = new[layer]["kernel"], now[layer]["kernel"], was[layer]["kernel"]
        assert (kernel[~mask] == 0).all()
        kept = mask & old
        np.testing.assert_array_equal(kernel[kept], np.asarray(params[layer]["kernel"])[kept])
    bias, was_there = new["a"]["bias"], was["a"]["bias"]
    assert (bias[~now["a"]["bias"]] == 0).all()
    kept = now["a"]["bias"] & was_there
    np.testing.assert_array_equal(bias[kept], np.asarray(params["a"]["bias"])[kept])
    # Back with fresh incoming and zero outgoing weights, and fresh biases.
    assert (bias[now["a"]["bias"] & ~was_there] >= 1).all()
    for layer in ("a", "b"):
        assert (new[layer]["kernel"][now[layer]["kernel"] & ~was[layer]["kernel"]] >= 1).all()
    assert (new["out"]["kernel"][now["out"]["kernel"] & ~was["out"]["kernel"]] == 0).all()
    returned = b & ~np.asarray(before["inner"]["kernel"]).any(0)
    assert (new["inner"]["kernel"][returned] == 0).all()
    assert (new["inner"]["kernel"][np.ix_(b & ~returned, returned)] >= 1).all()


def test_an_inactive_channel_has_a_growth_score_that_is_not_zero_by_construction():
    """Without the probe it is zero; with it the net computes the same and the score is exact."""
    key = jax.random.key(3)
    before = channel_init(0.5)(key, init(key))
    params = masks.apply_masks(init(key), before)
    inactive = {name: ~units for name, units in CHANNEL.unit_masks(before).items()}
    plain = CHANNEL.grow_scores(GRADIENT(params))
    assert (plain["b"][inactive["b"]] == 0).all()
    probe = PROBE(key, params, before)
    np.testing.assert_array_equal(forward(probe), forward(params))
    scores = CHANNEL.grow_scores(GRADIENT(probe))
    for name in GROUPS:
        assert inactive[name].any()
        assert (scores[name][inactive[name]] > 0).all()
    # The mean over the outgoing weights, by hand.
    gradient = np.abs(GRADIENT(probe)["out"]["kernel"])
    np.testing.assert_allclose(scores["a"], gradient[:8].reshape(4, -1).mean(1), rtol=1e-6)


def test_a_channels_magnitude_is_the_mean_over_all_its_weights():
    params = jax.tree.map(np.asarray, init(jax.random.key(5)))
    kernels = {name: layer["kernel"] for name, layer in params.items()}
    scores = CHANNEL.pool(params)
    for unit in range(4):
        columns = [2 * unit, 2 * unit + 1]
        weights = np.r_[kernels["a"][:, columns].ravel(), kernels["out"][columns].ravel()]
        np.testing.assert_allclose(scores["a"][unit], np.abs(weights).mean(), rtol=1e-6)
    inner = kernels["inner"]
    weights = np.r_[kernels["b"][:, 2], inner[:, 2], inner[2], kernels["out"][8 + 2]]
    np.testing.assert_allclose(scores["b"][2], np.abs(weights).mean(), rtol=1e-6)


@pytest.mark.parametrize("level", [0.0, 0.3, 0.5, 0.75])
def test_the_share_of_units_comes_as_near_to_the_sparsity_as_whole_units_can(level):
    params = init(jax.random.key(0))
    covered = ["a", "b", "inner", "out"]
    total = sum(params[name]["kernel"].size for name in covered)

    def active(a, b):
        return 5 * 2 * a + 5 * b + b * b + 3 * (2 * a + b)

    drawn = channel_init(level)(jax.random.key(1), params)
    got = sum(
        int(np.broadcast_to(drawn[n]["kernel"], params[n]["kernel"].shape).sum()) for n in covered
    )
    possible = [active(4 - int(4 * i / 6), 6 - int(6 * (i / 6))) for i in range(6)]
    assert abs(got - (1 - level) * total) == min(abs(p - (1 - level) * total) for p in possible)


def test_layers_that_do_not_fit_are_named_in_the_log(caplog):
    with caplog.at_level("INFO", logger="sparsejax"):
        left = structure.log_exceptions("block", random_tree(SHAPES, 0), 4)
    assert left == ["out/kernel"]
    assert "move single weights: channels aren't multiples of 4: ['out/kernel']" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", logger="sparsejax"):
        params = init(jax.random.key(0)) | {"other": {"kernel": jnp.ones((2, 2))}}
        left = structure.log_exceptions("channel", params, groups=GROUPS)
    assert left == ["other/kernel"]
    assert "stay dense" in caplog.text


# Grids of 10 x 4, 10 x 2 and 5 x 2 blocks; "out" has none.
FAN_IN_SHAPES = {
    "conv": {"kernel": (2, 1, 40, 16), "bias": (16,)},
    "dense": {"kernel": (40, 16)},
    "out": {"kernel": (40, 10)},
}
FAN_IN_SIZES = {4: "float32", (4, 8): "bfloat16", (8, 8): "float32"}


@functools.cache
def fan_in_method(name, size):
    return methods.get_method(name, structure.block(size, fan_in=True))


@functools.cache
def fan_in_update(name, size):
    return jax.jit(fan_in_method(name, size).update)


def columns_of(mask, size):
    """Active input blocks of every output block, by loops and slices."""
    inputs, outputs = size if isinstance(size, tuple) else (size, size)
    return [
        sum(mask[..., i : i + inputs, j : j + outputs].all() for i in range(0, 40, inputs))
        for j in range(0, 16, outputs)
    ]


@functools.cache
def fan_in_init(size, level):
    def draw(key, params):
        sparsities = jax.tree.map(lambda leaf: level if leaf.ndim > 1 else 0.0, params)
        return fan_in_method("static", size).init(key, params, sparsities)

    return jax.jit(draw)


@functools.cache
def fan_in_model(size, level, seed):
    """Masked params and masks."""
    params = random_tree(FAN_IN_SHAPES, seed, FAN_IN_SIZES[size])
    drawn = fan_in_init(size, level)(jax.random.key(seed), params)
    return masks.apply_masks(params, drawn), drawn


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 3),
    st.sampled_from([("rigl", 4, 0.5), ("rigl", (4, 8), 0.75), ("magran", (8, 8), 0.9)]),
    st.sampled_from([0.0, 0.1, 0.3, 1.0]),
)
def test_fan_in_blocks_keep_their_number_in_every_output_block(seed, kind, fraction):
    name, size, level = kind
    params, before = fan_in_model(size, level, seed)
    rows = 40 // (size[0] if isinstance(size, tuple) else size)
    k = max(1, round((1 - level) * rows))
    gradients = random_like(params, seed + 1)
    update, key = fan_in_update(name, size), jax.random.key(seed)
    after_params, after = update(key, params, before, gradients, fraction)
    assert active_counts(after) == active_counts(before)
    for layer in ("conv", "dense"):
        for drawn in (before, after):
            mask = np.asarray(drawn[layer]["kernel"])
            assert set(columns_of(mask, size)) == {k}
            # All that is active is in whole blocks.
            assert mask.sum() == k * mask.size // rows
    assert before["out"]["kernel"].sum() == 400 - int(400 * level)
    assert after["conv"]["bias"].ndim == 0
    again = update(key, params, before, gradients, fraction)[1]
    jax.tree.map(np.testing.assert_array_equal, after, again)
    for old, new, was, now in zip(
        *map(jax.tree.leaves, (params, after_params, before, after)), strict=True
    ):
        now, was = np.broadcast_to(now, new.shape), np.broadcast_to(was, new.shape)
        assert (np.asarray(new)[~(now & was)] == 0).all()
        np.testing.assert_array_equal(np.asarray(new)[now & was], np.asarray(old)[now & was])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999), st.sampled_from([0.1, 0.3, 0.5]), st.integers(1, 3))
def test_columns_are_pruned_as_a_layer_and_grow_by_their_own_largest_scores(seed, fraction, k):
    """Against numpy's sort; dropped blocks are candidates, ties go to the lowest row.

    Three layers in one call, the smaller of which mustn't see what the largest has more.
    """
    rng = np.random.default_rng(seed)
    layers = [_rewired_by_numpy(rng, shape, fraction, k) for shape in [(10, 6), (4, 9), (7, 2)]]
    scores, masks, grow, expected = zip(*layers, strict=True)
    got = rewire_columns(scores, jax.tree.map(jnp.asarray, masks), grow, fraction)
    for mask, numpys in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mask, numpys)


def _rewired_by_numpy(rng, shape, fraction, k):
    """Return random scores, mask and growth scores of a layer, and its mask after the update."""
    rows, columns = shape
    mask = np.zeros(shape, bool)
    for column in mask.T:
        column[rng.choice(rows, k, replace=False)] = True
    scores = rng.uniform(1, 2, shape).astype(np.float32)
    grow = rng.integers(-4, 4, shape).astype(np.float32)
    grow[rng.random(shape) < 0.3] = np.nan
    after = mask.copy()
    weakest = np.argsort(np.where(mask, scores, np.inf), axis=None)
    after.reshape(-1)[weakest[: int(np.float32(fraction) * np.float32(columns * k))]] = False
    for column, kept in enumerate(after.T.copy()):
        order = np.argsort(-np.nan_to_num(grow[:, column], nan=-9.0), kind="stable")
        free = [row for row in order if not kept[row]]
        after[free[: k - kept.sum()], column] = True
    return scores * mask, mask, grow, after


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("name", "fraction"), [("rigl", 0.3), ("magran", 0.3), ("magran", 0.1)])
def test_blocks_move_even_where_an_output_block_has_only_one(name, fraction, k):
    """S = 0.9: floors of a fraction of each column would freeze all of them."""
    params = {"kernel": random_tree({"kernel": (40 * k, 48)}, k)["kernel"]}
    before = fan_in_init(4, 0.9)(jax.random.key(0), params)
    assert before["kernel"].sum() == 12 * k * 16
    params = masks.apply_masks(params, before)
    gradients = random_like(params, 7)
    after = fan_in_update(name, 4)(jax.random.key(1), params, before, gradients, fraction)[1]
    moved = np.sum(np.asarray(before["kernel"]) & ~np.asarray(after["kernel"])) / 16
    assert 0 < moved <= int(np.float32(fraction) * np.float32(12 * k))


def test_fan_ins_are_rounded_jointly_to_the_number_of_weights_asked():
    shapes = {f"{i}": (3, 3, 16 * i, 64) for i in range(5, 17)} | {"dense": (64, 64), "odd": (9, 9)}
    params = random_tree(shapes, 0)
    for level in (0.5, 0.75, 0.9):
        asked = {name: 0.0 if name == "dense" else level for name in params}
        got = blocks.fan_in_sparsities(params, asked, (16, 64))
        assert (got["dense"], got["odd"]) == (0.0, level)
        counts = {name: round((1 - s) * int(name), 9) for name, s in got.items() if name.isdigit()}
        assert all(k == int(k) >= 1 for k in counts.values())
        had = sum(k * 16 * 64 * 9 for k in counts.values())
        asks = (1 - level) * sum(params[name].size for name in counts)
        # As near as one block of inputs allows, and each layer within one of what it asks.
        assert abs(had - asks) <= 16 * 64 * 9 / 2 + 1
        assert all(abs(k - max(1, (1 - level) * int(name))) <= 1 for name, k in counts.items())
        assert all(blocks.fan_in(int(name), got[name]) == k for name, k in counts.items())


def test_what_the_minimum_of_one_block_adds_is_taken_from_other_layers():
    params = {"small": jnp.ones((16, 64)), "large": jnp.ones((640, 64))}
    got = blocks.fan_in_sparsities(params, {"small": 0.9, "large": 0.9}, (16, 64))
    assert {name: round(s, 6) for name, s in got.items()} == {"small": 0.0, "large": 0.925}
    assert blocks.fan_in_sparsities(params, {"small": 0.0, "large": 0.9}, 64)["large"] == 0.9
