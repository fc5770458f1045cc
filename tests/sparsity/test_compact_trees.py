"""Compact trees hold what is active, and a topology update moves them as it moves whole trees."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsejax.sparsity import methods, structure, topology, transforms
from sparsejax.sparsity.compact_trees import compact_masks, spread_masks, tree_masks
from sparsejax.sparsity.masks import apply_masks
from sparsejax.sparsity.topology_update import update_topology
from tests.sparsity import channel_net
from tests.sparsity.strategies import random_like, random_tree

SIZE = (2, 16)
# Of "odd", single weights are active: its 10 outputs are no multiple of 8.
SHAPES = {
    "conv": {"kernel": (3, 3, 8, 32), "bias": (32,)},
    "out": {"kernel": (12, 24)},
    "odd": {"kernel": (6, 10)},
    "dense": {"kernel": (4, 16)},
}
SPARSITIES = {
    "conv": {"kernel": 0.5, "bias": 0.0},
    "out": {"kernel": 2 / 3},
    "odd": {"kernel": 0.5},
    "dense": {"kernel": 0.0},
}
BLOCKS = structure.block(SIZE, fan_in=True)
OPTIMIZERS = {
    "adam": optax.adam(0.1),
    "momentum": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9)),
    "adagrad": optax.adagrad(0.1),
    "MultiSteps": optax.MultiSteps(optax.lion(0.1), 2).gradient_transformation(),
}
CASES = [
    ("block", "rigl", "adam"),
    ("block", "magran", "MultiSteps"),
    pytest.param(("channel", "rigl", "adagrad"), marks=pytest.mark.slow),
    pytest.param(("channel", "magran", "momentum"), marks=pytest.mark.slow),
]


def blocks_setup():
    """The structure, shapes of params and sparsities of blocks."""
    params = random_tree(SHAPES, 0)
    return structure.block(SIZE, fan_in=True), params, SPARSITIES


def channels_setup():
    """The same of channels."""
    params = channel_net.init(jax.random.key(0))
    kind = structure.channel(channel_net.GROUPS, channel_net.init)
    return kind, params, structure.channel_sparsities(channel_net.GROUPS, params, 0.5)


@functools.cache
def made(kind, name, optimizer):
    """Trees, optimizer, and compiled: initial masks, steps, topology updates of both kinds."""
    unit, params, sparsities = {"block": blocks_setup, "channel": channels_setup}[kind]()
    method = methods.get_method(name, unit)
    trees = unit.compact_trees(params, sparsities)
    inner = transforms.sparse_updates(OPTIMIZERS[optimizer])

    def some_steps(params, masks, several):
        """Moments of many values."""
        state = inner.init(params)
        for gradients in several:
            updates, state = inner.update(gradients, state, params, masks=masks)
            params = optax.apply_updates(params, updates)
        return params, state

    def whole(key, params, masks, state, gradients):
        return update_topology(method, inner, key, params, masks, state, gradients, 0.5)

    def compact(key, params, masks, state, gradients):
        ours = compact_masks(trees, masks)
        state = jax.tree.map(
            lambda node: trees.shrink(node, ours.indices) if is_like(params, node) else node,
            state,
            is_leaf=lambda node: is_like(params, node),
        )
        params = trees.shrink(params, ours.indices)
        return update_topology(method, inner, key, params, ours, state, gradients, 0.5, trees=trees)

    draw = jax.jit(lambda key: method.init(key, params, sparsities))
    return trees, inner, draw, *map(jax.jit, (some_steps, whole, compact))


def is_like(params, node):
    return jax.tree.structure(node) == jax.tree.structure(params)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_topology_update_of_compact_trees_is_that_of_whole_trees(case):
    trees, inner, draw, some_steps, whole, compact = made(*case)
    setup = {"block": blocks_setup, "channel": channels_setup}[case[0]]
    shapes = jax.tree.map(np.shape, setup()[1])
    moved = 0
    for seed in range(4):
        masks = draw(jax.random.key(100 + seed))
        params = apply_masks(random_tree(shapes, seed), masks)
        several = [random_like(params, seed + i) for i in range(3)]
        params, state = some_steps(params, masks, several)
        inputs = jax.random.key(seed), params, masks, state, random_like(params, seed + 9)
        expected_params, expected_masks, expected_state = whole(*inputs)
        moved += sum(
            int(np.sum(np.asarray(a) != np.asarray(b)))
            for a, b in zip(*map(jax.tree.leaves, (masks, expected_masks)), strict=True)
        )
        got_params, got_masks, got_state = compact(*inputs)
        jax.tree.map(np.testing.assert_array_equal, spread_masks(trees, got_masks), expected_masks)
        expand = lambda tree, at=got_masks.indices: trees.expand(tree, at)  # noqa: E731
        jax.tree.map(np.testing.assert_array_equal, expand(got_params), expected_params)
        got_state = jax.tree.map(
            lambda node: expand(node) if is_like(params, node) else node,  # noqa: B023
            got_state,
            is_leaf=lambda node: is_like(params, node),  # noqa: B023
        )
        # What is inactive has the state of `init`, which a compact tree doesn't hold.
        got_state = transforms.reset_inactive(inner, got_state, expected_params, expected_masks)
        jax.tree.map(np.testing.assert_array_equal, got_state, expected_state)
    assert moved


def loose(key, params, masks, gradients, fraction):
    """A topology update that counts blocks over whole layers, not in each output block."""
    scores = jax.tree.map(lambda x: jax.random.uniform(key, x.shape), BLOCKS.pool(params))
    units = topology.rewire(BLOCKS.pool(params), BLOCKS.unit_masks(masks), scores, fraction)
    after = BLOCKS.spread(units, params)
    return apply_masks(params, after), after


@pytest.mark.parametrize(("update", "is_kept"), [("magran", True), (loose, False)])
def test_compact_masks_count_what_a_method_left_that_they_cannot_hold(update, is_kept):
    """In all updates so far: against the masks that the method returned, spread by hand."""
    unit, params, sparsities = blocks_setup()
    trees, inner = unit.compact_trees(params, sparsities), transforms.sparse_updates(optax.sgd(0.1))
    method = methods.get_method("magran", unit)
    if not is_kept:
        method = dataclasses.replace(method, update=update)
    drawn = jax.jit(lambda key: method.init(key, params, sparsities))(jax.random.key(0))
    masks = compact_masks(trees, drawn)
    assert int(masks.lost) == 0
    ours = jax.jit(functools.partial(update_topology, method, inner, trees=trees))
    wanted_of = jax.jit(method.update)
    params, state, lost = trees.shrink(params, masks.indices), inner.init(params), 0
    for seed in range(2):
        key, whole = jax.random.key(seed), trees.expand(params, masks.indices)
        _, wanted = wanted_of(key, whole, spread_masks(trees, masks), whole, 0.5)
        params, masks, _ = ours(key, params, masks, state, whole, 0.5)
        held = spread_masks(trees, masks)
        pairs = zip(*map(jax.tree.leaves, (wanted, held)), strict=True)
        lost += sum(int(np.sum(np.asarray(a) != np.asarray(b))) for a, b in pairs)
        assert int(masks.lost) == lost
    assert (lost == 0) == is_kept


def test_compact_trees_of_blocks_against_loops():
    """Every output block lists its active input blocks, one below the other."""
    unit, params, sparsities = blocks_setup()
    trees = unit.compact_trees(params, sparsities)
    masks = methods.get_method("static", unit).init(jax.random.key(3), params, sparsities)
    compact = compact_masks(trees, masks)
    small = trees.shrink(params, compact.indices)
    kernel, mask = np.asarray(params["conv"]["kernel"]), np.asarray(masks["conv"]["kernel"])
    for j in range(2):
        columns = slice(16 * j, 16 * (j + 1))
        active = [i for i in range(4) if mask[0, 0, 2 * i, 16 * j]]
        assert compact.indices["conv"]["kernel"][j].tolist() == active
        blocks = [kernel[:, :, 2 * i : 2 * i + 2, columns] for i in active]
        np.testing.assert_array_equal(small["conv"]["kernel"][j], np.concatenate(blocks, axis=2))
    # (12, 24): the widest multiple of 8 up to 16 that divides 24 is 8.
    assert small["out"]["kernel"].shape == (3, 2 * 2, 8)
    for name in ("odd", "dense"):
        assert small[name]["kernel"] is params[name]["kernel"]
        assert compact.masks[name]["kernel"] is masks[name]["kernel"]
    assert compact.masks["conv"]["kernel"].ndim == 0
    expanded = trees.expand(small, compact.indices)
    masked = apply_masks(params, masks)
    for name in ("conv", "out"):
        np.testing.assert_array_equal(expanded[name]["kernel"], masked[name]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, spread_masks(trees, compact), masks)
    assert tree_masks(compact) is compact.masks
    assert tree_masks(masks) is masks


@pytest.mark.parametrize("setup", [blocks_setup, channels_setup])
def test_moved_entries_keep_their_value_if_they_stay_and_are_fresh_if_they_are_new(setup):
    unit, params, sparsities = setup()
    trees = unit.compact_trees(params, sparsities)
    init = methods.get_method("static", unit).init
    draw = jax.jit(lambda key: init(key, params, sparsities))
    old, new = (draw(jax.random.key(i)) for i in (1, 2))
    before, after = (compact_masks(trees, masks).indices for masks in (old, new))
    minus = jax.tree.map(lambda x: jnp.full_like(x, -1), trees.shrink(params, after))
    moved = trees.expand(trees.move(trees.shrink(params, before), minus, before, after), after)

    def expected(param, was, now):
        was, now = np.broadcast_to(was, param.shape), np.broadcast_to(now, param.shape)
        return np.where(now, np.where(was, param, -1), 0)

    compact = trees.masks(new)
    for got, param, was, now, left in zip(
        *map(jax.tree.leaves, (moved, params, old, new, compact)), strict=True
    ):
        if not left.ndim:  # the others are held as they are
            np.testing.assert_array_equal(got, expected(param, was, now))
