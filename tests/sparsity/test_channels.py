"""Channels: what is absent is zero everywhere, and compact trees hold the rest, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsejax.sparsity import channels, get_method, reset_inactive, sparse_updates, structure
from sparsejax.sparsity.channel_trees import channel_trees
from sparsejax.sparsity.masks import apply_masks
from sparsejax.training.ema import move_ema
from tests.sparsity.channel_net import GROUPS, forward, init
from tests.sparsity.strategies import random_like

SHAPES = jax.eval_shape(init, jax.random.key(0))
SHARES = {"a": 0.5, "b": 0.5}
COUNTS = {"a": (4, 2), "b": (6, 3)}
TREES = channel_trees(GROUPS, SHAPES, SHARES)
CHANNEL = structure.channel(GROUPS, init)
SPREAD = jax.jit(lambda units: channels.spread(GROUPS, units, SHAPES))
INDICES, SHRINK, EXPAND, MOVE, SPREAD_TREES = map(
    jax.jit, (TREES.indices, TREES.shrink, TREES.expand, TREES.move, TREES.spread)
)
SEEDS = st.integers(0, 2**16)


def units_of(seed):
    """Active units, drawn by numpy."""
    rng = np.random.default_rng(seed)
    return {
        name: np.isin(np.arange(size), rng.permutation(size)[:active])
        for name, (size, active) in COUNTS.items()
    }


def kept_of(units):
    """The positions of every array that belong to what is active, by hand."""
    a, b = np.flatnonzero(np.repeat(units["a"], 2)), np.flatnonzero(units["b"])
    return {
        "a": {"kernel": np.ix_(np.arange(5), a), "bias": a},
        "b": {"kernel": np.ix_(np.arange(5), b)},
        "inner": {"kernel": np.ix_(b, b)},
        "out": {"kernel": np.ix_(np.r_[a, 8 + b], np.arange(3)), "bias": np.arange(3)},
    }


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def by_leaf(function, tree, positions):
    """Map over arrays and the positions of each."""
    return {
        layer: {name: function(np.asarray(x), positions[layer][name]) for name, x in leaves.items()}
        for layer, leaves in tree.items()
    }


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_a_compact_tree_has_what_is_active_and_expands_to_it(seed):
    units, tree = units_of(seed), random_like(init(jax.random.key(0)), seed)
    kept = kept_of(units)
    masks = SPREAD(units)
    indices = INDICES(masks)
    assert {x.dtype for x in jax.tree.leaves(indices)} == {jnp.dtype("int32")}
    assert_equal(indices, {name: np.flatnonzero(active) for name, active in units.items()})
    assert_equal(SPREAD_TREES(indices, TREES.masks(masks)), masks)
    compact = SHRINK(tree, indices)
    assert_equal(compact, by_leaf(lambda x, places: x[places], tree, kept))

    def zeroed(x, places):
        whole = np.zeros_like(x)
        whole[places] = x[places]
        return whole

    whole = EXPAND(compact, indices)
    assert_equal(whole, by_leaf(zeroed, tree, kept))
    assert_equal(whole, apply_masks(tree, masks))
    assert_equal(SHRINK(whole, indices), compact)


@settings(max_examples=20, deadline=None)
@given(SEEDS, SEEDS)
def test_moving_is_expanding_resetting_and_shrinking(seed, other):
    """An entry stays if it was active along all axes; any other is fresh."""
    before, after = units_of(seed), units_of(other)
    old, new = (INDICES(SPREAD(units)) for units in (before, after))
    tree, fresh = (random_like(SHRINK(init(jax.random.key(0)), old), s) for s in (seed, other))
    was, now = kept_of(before), kept_of(after)
    full = init(jax.random.key(0))

    def placed(compact, positions):
        def put(x, places):
            whole = np.full(x.shape, np.nan, np.float32)
            whole[places] = 0
            return whole

        whole = by_leaf(put, full, positions)
        for layer, leaves in compact.items():
            for name, x in leaves.items():
                whole[layer][name][positions[layer][name]] = x
        return whole

    theirs = jax.tree.map(
        lambda x, y: np.where(np.isnan(x), y, x), placed(tree, was), placed(fresh, now)
    )
    assert_equal(MOVE(tree, fresh, old, new), by_leaf(lambda x, at: x[at], theirs, now))


OPTIMIZER = sparse_updates(optax.adagrad(0.1))


@jax.jit
def update_whole(key, params, masks, state, ema):
    after_params, after = get_method("magran", CHANNEL).update(key, params, masks, params, 0.5)
    state = reset_inactive(OPTIMIZER, state, after_params, after)
    return after_params, after, state, move_ema(ema, after_params, masks, after)


@jax.jit
def update_compact(key, params, old, sums, ema):
    whole, masks = TREES.expand(params, old), TREES.spread(old, True)
    after_params, after = get_method("magran", CHANNEL).update(key, whole, masks, whole, 0.5)
    new = TREES.indices(after)
    params = TREES.shrink(after_params, new)
    fresh = OPTIMIZER.init(params)[0].sum_of_squares
    return new, params, TREES.move(sums, fresh, old, new), TREES.move(ema, params, old, new)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_an_update_of_channel_trees_is_that_of_masked_ones(seed):
    """Params, EMA and moments; and what returns begins anew, its bias included."""
    key, units = jax.random.key(seed), units_of(seed)
    masks = SPREAD(units)
    params, ema = (apply_masks(random_like(SHAPES, seed + i), masks) for i in range(2))
    sums = jax.tree.map(
        lambda mask, x: jnp.where(mask, jnp.abs(x), 0.1), masks, random_like(params, seed + 2)
    )
    state = OPTIMIZER.init(params)
    state = (state[0]._replace(sum_of_squares=sums), *state[1:])
    old = INDICES(masks)
    ours = update_compact(key, *(SHRINK(params, old), old), *(SHRINK(x, old) for x in (sums, ema)))
    params, after, state, ema = update_whole(key, params, masks, state, ema)
    new = INDICES(after)
    sums = state[0].sum_of_squares
    assert_equal(ours, (new, *(SHRINK(tree, new) for tree in (params, sums, ema))))
    now, was = (np.asarray(tree["a"]["bias"]) for tree in (after, masks))
    back = now & ~was
    assert (np.asarray(params["a"]["bias"])[back] >= 1).all()
    np.testing.assert_array_equal(ema["a"]["bias"][back], params["a"]["bias"][back])
    for tree, value in ((params, 0), (ema, 0), (sums, np.float32(0.1))):
        assert (np.asarray(tree["a"]["bias"])[~now] == value).all()
    assert (np.asarray(sums["a"]["bias"])[back] == np.float32(0.1)).all()


def test_the_net_computes_the_same_without_the_biases_of_absent_units_and_compact():
    masks = SPREAD(units_of(0))
    params = apply_masks(init(jax.random.key(1)), masks)
    expected = forward(params)
    with_biases = params | {"a": params["a"] | {"bias": init(jax.random.key(1))["a"]["bias"]}}
    assert (with_biases["a"]["bias"] != params["a"]["bias"]).any()
    np.testing.assert_array_equal(forward(with_biases), expected)
    np.testing.assert_allclose(
        forward(SHRINK(params, INDICES(masks))), expected, rtol=1e-6, atol=1e-5
    )


def test_masks_of_a_compact_tree_are_true_everywhere():
    masks = TREES.masks(SPREAD(units_of(0)))
    assert jax.tree.structure(masks) == jax.tree.structure(SHAPES)
    assert all(mask.ndim == 0 and mask for mask in jax.tree.leaves(masks))


@pytest.mark.parametrize("units", [[0, 0, 1], [0, 1, 1]])
def test_units_of_different_widths_have_no_channel_trees(units):
    groups = {"a": [channels.Member("kernel", 0, np.array(units), True)]}
    shapes = {"kernel": jax.ShapeDtypeStruct((3, 2), jnp.float32)}
    assert channel_trees(groups, shapes, {"a": 0.5}) is None


def test_an_index_of_two_groups_has_no_channel_trees():
    groups = {name: [channels.Member("kernel", 0, np.arange(3), True)] for name in "ab"}
    shapes = {"kernel": jax.ShapeDtypeStruct((3, 2), jnp.float32)}
    assert channel_trees(groups, shapes, SHARES) is None


def test_older_masks_get_those_of_biases():
    masks = SPREAD(units_of(3))
    older = jax.tree.map(lambda mask: mask if mask.ndim > 1 else jnp.asarray(True), masks)
    assert_equal(channels.complete(GROUPS, older, SHAPES), masks)
    assert channels.complete(GROUPS, masks, SHAPES) is masks
    dense = jax.tree.map(lambda _: jnp.asarray(True), masks)
    assert channels.complete(GROUPS, dense, SHAPES) is dense
