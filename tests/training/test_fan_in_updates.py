"""Constant fan-in in the training state: what a topology update moves, keeps and renews."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsejax.families import Model
from sparsejax.parallel import data_parallel
from sparsejax.sparsity import structure
from sparsejax.sparsity.compact_trees import compact_masks, spread_masks
from sparsejax.sparsity.methods import get_method
from sparsejax.sparsity.transforms import sparse_updates
from sparsejax.training.state import state_from
from sparsejax.training.steps import make_topology_update
from tests.sparsity.strategies import active_counts, random_like, random_tree

SIZE = (2, 8)
# At S = 0.9, one, two and three of 10, 20 and 30 input blocks; "odd" has no blocks.
FAN_INS = {"one": 1, "two": 2, "three": 3}
SHAPES = {
    "one": {"kernel": (20, 32), "bias": (32,)},
    "two": {"kernel": (2, 1, 40, 24)},
    "three": {"kernel": (60, 32)},
    "odd": {"kernel": (10, 10)},
}
# Each with what `init` gives to state of the parameters' shapes.
OPTIMIZERS = {
    "adamw": (optax.adamw(0.1), 0.0),
    "momentum": (optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9)), 0.0),
    "adagrad": (optax.adagrad(0.1, initial_accumulator_value=0.25), 0.25),
    "MultiSteps": (optax.MultiSteps(optax.adamw(0.1), 3).gradient_transformation(), 0.0),
}
KEYS = (jax.random.key(0), jax.random.key(1))


def loss(apply, params, batch, keys, train):
    """A loss whose gradient is the batch."""
    products = jax.tree.map(lambda param, gradient: jnp.sum(param * gradient[0]), params, batch)
    return sum(jax.tree.leaves(products))


MODEL = Model(None, None, None, loss, *[None] * (len(Model._fields) - 4))


class Case(NamedTuple):
    """Functions of one optimizer, compiled."""

    draw: object
    first_state: object
    whole: object
    compact: object
    shrink: object
    expand: object


def is_like(tree):
    """Whether a part of the state mirrors params."""
    return jax.tree.structure(tree) == jax.tree.structure(SHAPES, is_leaf=is_shape)


def is_shape(x):
    return isinstance(x, tuple) and isinstance(x[0], int)


def map_trees(function, state):
    """Map over all trees of the state that mirror params."""
    parts = (state.params, state.opt_state, state.ema_params)
    params, opt_state, ema = jax.tree.map(
        lambda node: function(node) if is_like(node) else node, parts, is_leaf=is_like
    )
    return state._replace(params=params, opt_state=opt_state, ema_params=ema)


@functools.cache
def made(optimizer, method):
    """The Case: the drop fraction is a hundredth of the step."""
    unit = structure.block(SIZE, fan_in=True)
    method, inner = get_method(method, unit), sparse_updates(OPTIMIZERS[optimizer][0])
    shapes = jax.tree.map(lambda shape: jnp.zeros(shape), SHAPES, is_leaf=is_shape)
    sparsities = jax.tree.map(lambda leaf: 0.9 if leaf.ndim > 1 else 0.0, shapes)
    trees = unit.compact_trees(shapes, sparsities)

    def update(trees):
        schedule = lambda step: step / 100  # noqa: E731
        return data_parallel(make_topology_update(MODEL, inner, method, schedule, trees=trees))

    def shrink(state):
        masks = compact_masks(trees, state.masks)
        state = map_trees(lambda tree: trees.shrink(tree, masks.indices), state)
        return state._replace(masks=masks)

    def expand(state):
        masks = spread_masks(trees, state.masks)
        state = map_trees(lambda tree: trees.expand(tree, state.masks.indices), state)
        return state._replace(masks=masks)

    return Case(
        jax.jit(lambda key: method.init(key, shapes, sparsities)),
        jax.jit(lambda params, masks: state_from(params, masks, inner)),
        update(None),
        update(trees),
        jax.jit(shrink),
        jax.jit(expand),
    )


def random_state(case, seed, step, fresh):
    """A state in which all that is active has a number of its own, and nothing else has."""
    masks = case.draw(jax.random.key(seed))
    params = random_tree(SHAPES, seed)
    seeds = iter(range(seed + 1, seed + 9))

    def fill(tree):
        values = jax.tree.map(jnp.abs, random_like(params, next(seeds)))
        is_kept = jax.tree.map(lambda x, mask: np.broadcast_to(mask, x.shape), params, masks)
        return jax.tree.map(np.where, is_kept, values, jax.tree.map(lambda x: x * 0 + rest, params))

    rest = 0.0
    state = case.first_state(params, masks)
    params, ema = fill(params), fill(params)
    rest = fresh
    state = map_trees(fill, state)
    return state._replace(params=params, ema_params=ema, step=jnp.int32(step))


def columns_of(mask):
    """Active input blocks of every output block, by loops and slices; all blocks are whole."""
    grid = [
        [mask[..., i : i + 2, j : j + 8] for j in range(0, mask.shape[-1], 8)]
        for i in range(0, mask.shape[-2], 2)
    ]
    assert all(block.all() or not block.any() for row in grid for block in row)
    return np.sum([[block.all() for block in row] for row in grid], axis=0)


def mirrors(state):
    """The trees of the optimizer's state that mirror params."""
    return [node for node in jax.tree.leaves(state.opt_state, is_leaf=is_like) if is_like(node)]


def assert_moved(before, after, fresh, is_whole):
    """What stays keeps all it had; what is new begins anew; what is absent has nothing."""
    pairs = [(mirror, now, fresh) for mirror, now in zip(mirrors(before), mirrors(after), strict=1)]
    pairs += [(before.params, after.params, 0.0), (before.ema_params, after.ema_params, 0.0)]
    for tree, now_tree, begin in pairs:
        for old, new, was, now in zip(
            *map(jax.tree.leaves, (tree, now_tree, before.masks, after.masks)), strict=True
        ):
            old, new = np.asarray(old), np.asarray(new)
            was, now = np.broadcast_to(was, old.shape), np.broadcast_to(now, old.shape)
            np.testing.assert_array_equal(new[was & now], old[was & now])
            assert (new[now & ~was] == np.float32(begin)).all()
            # A compact layer holds nothing else, and is expanded with zeros.
            assert np.isin(new[~now], [begin] if is_whole else [0, begin]).all()


@pytest.mark.parametrize(
    "optimizer",
    [
        "adamw",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("momentum", "adagrad", "MultiSteps")),
    ],
)
@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    percent=st.sampled_from([0, 5, 10, 30, 50, 100]),
    is_whole=st.booleans(),
)
def test_fan_ins_and_all_that_stays_are_kept_and_all_that_is_new_begins_anew(
    optimizer, seed, percent, is_whole
):
    method = "magran" if optimizer in ("momentum", "MultiSteps") else "rigl"
    case, fresh = made(optimizer, method), OPTIMIZERS[optimizer][1]
    before = random_state(case, seed, percent, fresh)
    batch = jax.tree.map(lambda x: x[None, None], random_like(before.params, seed + 20))
    if is_whole:
        after, metrics = case.whole(before, batch, KEYS)
    else:
        after, metrics = case.compact(case.shrink(before), batch, KEYS)
        after = case.expand(after)
    assert len(mirrors(before)) == {"adamw": 2, "MultiSteps": 3}.get(optimizer, 1)
    assert active_counts(after.masks) == active_counts(before.masks)
    moved = 0
    for layer, k in FAN_INS.items():
        was, now = (np.asarray(state.masks[layer]["kernel"]) for state in (before, after))
        assert set(columns_of(was)) == set(columns_of(now)) == {k}
        units = k * (now.shape[-1] // 8)
        dropped = np.sum(was & ~now) // (16 * np.prod(now.shape[:-2], dtype=int))
        assert dropped <= np.floor(np.float32(percent / 100) * np.float32(units))
        moved += dropped
    assert moved > 0 or percent < 30
    assert (metrics["replaced"] > 0) == any(
        (np.asarray(a) != np.asarray(b)).any()
        for a, b in zip(*map(jax.tree.leaves, (before.masks, after.masks)), strict=True)
    )
    assert_moved(before, after, fresh, is_whole)
