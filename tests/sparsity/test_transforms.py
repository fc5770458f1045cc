"""Invariants 2 and 3 under many optimizers, alone and wrapped."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsejax.sparsity import distributions, masks, methods, transforms
from tests.sparsity.strategies import random_like, random_tree

# Every shape is unique, so a state array tells by its shape which parameter it belongs to.
SHAPES = {
    "block": {"conv": {"kernel": (3, 3, 2, 5), "bias": (5,)}},
    "kernel": (8, 9),
}


def labels(params):
    return {"block": "slow", "kernel": "fast"}


OPTIMIZERS = {
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1, weight_decay=0.3),
    "sgd": optax.sgd(0.1, momentum=0.9),
    "lion": optax.lion(0.1, weight_decay=0.3),
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=2),
    "adafactor_unfactored": optax.adafactor(0.1),
    "rmsprop": optax.rmsprop(0.1, momentum=0.9, initial_scale=0.7),
    "yogi": optax.yogi(0.1),
    "adagrad": optax.adagrad(0.1),
    "rprop": optax.rprop(0.1),
    "chain": optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.1)),
    "multi_steps": optax.MultiSteps(optax.adamw(0.1), 2),
    "inject_hyperparams": optax.inject_hyperparams(optax.adamw)(
        optax.linear_schedule(0.1, 0.0, 10), weight_decay=0.3
    ),
    "multi_transform": optax.multi_transform(
        {"slow": optax.adamw(0.01), "fast": optax.sgd(0.1, momentum=0.9)}, labels
    ),
    "muon": optax.contrib.muon(0.1),
    "sam": optax.contrib.sam(optax.adam(0.1), optax.sgd(0.1)),
    "schedule_free": optax.contrib.schedule_free(optax.adamw(0.1, b1=0.0), 0.1),
    "mechanize": optax.contrib.mechanize(optax.adamw(1.0)),
    "prodigy": optax.contrib.prodigy(0.1),
    "ademamix": optax.contrib.ademamix(0.1, weight_decay=0.3),
    "adopt": optax.contrib.adopt(0.1),
    "apply_if_finite": optax.apply_if_finite(optax.adamw(0.1), 3),
    "lbfgs_without_line_search": optax.lbfgs(0.01, memory_size=3, linesearch=None),
    "split_real_and_imaginary": optax.contrib.split_real_and_imaginary(optax.adam(0.1)),
}
# Their updates of a weight depend on that weight alone.
ELEMENTWISE = ("adam", "adamw", "sgd", "lion", "rmsprop", "yogi", "adagrad", "rprop", "multi_steps")


RIGL_UPDATE = jax.jit(methods.get_method("rigl").update)


@functools.cache
def compiled(name):
    optimizer = transforms.sparse_updates(OPTIMIZERS[name])

    @jax.jit
    def step(params, state, mask, gradients):
        updates, state = optimizer.update(gradients, state, params, masks=mask)
        return optax.apply_updates(params, updates), state

    reset = jax.jit(functools.partial(transforms.reset_inactive, optimizer))

    def rewire(params, state, mask, gradients):
        params, mask = RIGL_UPDATE(jax.random.key(0), params, mask, gradients, 0.4)
        return params, reset(state, params, mask), mask

    return jax.jit(optimizer.init), step, rewire


def masked_model(seed, level=0.6):
    params = random_tree(SHAPES, seed)
    sparsities = distributions.uniform(params, level)
    mask = masks.random_masks(jax.random.key(seed), params, sparsities)
    return masks.apply_masks(params, mask), mask


def assert_fresh_where_inactive(name, state, params, mask):
    fresh = compiled(name)[0](params)
    by_shape = {m.shape: np.asarray(m) for m in jax.tree.leaves(mask) if m.ndim}
    seen = 0
    for ours, new in zip(jax.tree.leaves(state), jax.tree.leaves(fresh), strict=True):
        inactive = ~by_shape.get(np.shape(ours), np.True_)
        if inactive.ndim:
            seen += 1
            np.testing.assert_array_equal(np.asarray(ours)[inactive], np.asarray(new)[inactive])
    return seen


def assert_zero_where_inactive(params, mask):
    for p, m in zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True):
        assert (np.asarray(p)[~np.broadcast_to(m, p.shape)] == 0).all()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_inactive_weights_are_zero_and_their_state_is_fresh(name, seed):
    """Invariant 2, after every step, with a topology update after every second one."""
    init, step, rewire = compiled(name)
    params, mask = masked_model(seed)
    state = init(params)
    for i in range(4):
        gradients = random_like(params, seed + i)
        params, state = step(params, state, mask, gradients)
        assert_zero_where_inactive(params, mask)
        seen = assert_fresh_where_inactive(name, state, params, mask)
        if i % 2:
            before = mask
            params, state, mask = rewire(params, state, mask, gradients)
            assert_zero_where_inactive(params, mask)
            assert_fresh_where_inactive(name, state, params, mask)
            assert (mask["kernel"] != before["kernel"]).any()
    assert seen or name == "adafactor"  # all of whose statistics are factored


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_training_equals_training_of_the_active_weights_alone(name):
    """The same optimizer on vectors that hold nothing but the active weights."""
    init, step, _ = compiled(name)
    params, mask = masked_model(3)
    state = init(params)

    def compact(tree):
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(mask), strict=True)
        return [x[np.broadcast_to(m, x.shape)] for x, m in pairs]

    inner = OPTIMIZERS[name]
    small = compact(params)
    small_state = inner.init(small)
    for i in range(4):
        gradients = random_like(params, i)
        params, state = step(params, state, mask, gradients)
        updates, small_state = inner.update(compact(gradients), small_state, small)
        small = optax.apply_updates(small, updates)
    for ours, expected in zip(compact(params), small, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_a_global_norm_sees_active_weights_only():
    params = {"kernel": jnp.zeros((1, 4))}
    mask = {"kernel": jnp.array([[True, True, False, False]])}
    optimizer = transforms.sparse_updates(
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    )
    gradients = {"kernel": jnp.array([[3.0, 4.0, 100.0, 100.0]])}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params, masks=mask)
    np.testing.assert_allclose(updates["kernel"], [[-0.6, -0.8, 0.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "multi_transform"])
def test_grown_weights_start_fresh_and_regrown_ones_keep_their_state(name):
    """Invariant 3, for optimizer state."""
    init, step, rewire = compiled(name)
    params, mask = masked_model(5)
    state = init(params)
    for i in range(3):
        params, state = step(params, state, mask, random_like(params, i))
    gradients = random_like(params, 9)
    new_params, new_state, new_mask = rewire(params, state, mask, gradients)
    was, now = np.asarray(mask["kernel"]), np.asarray(new_mask["kernel"])
    assert (now & ~was).any()
    fresh = init(params)
    compared = 0
    for old, new, start in zip(*map(jax.tree.leaves, (state, new_state, fresh)), strict=True):
        if np.shape(old) == was.shape:
            compared += 1
            np.testing.assert_array_equal(new[now & ~was], start[now & ~was])
            np.testing.assert_array_equal(new[now & was], old[now & was])
            assert (np.asarray(old)[now & was] != 0).any()
    assert compared
    np.testing.assert_array_equal(
        np.asarray(new_params["kernel"])[now & was], np.asarray(params["kernel"])[now & was]
    )


def test_arguments_that_the_inner_optimizer_wants_reach_it():
    """A learning rate by plateau: `value` decides."""
    inner = optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau(patience=1, factor=0.5))
    optimizer = transforms.sparse_updates(inner)
    params, mask = {"kernel": jnp.ones((2, 2))}, {"kernel": jnp.eye(2) > 0}
    state = optimizer.init(params)
    for _ in range(4):
        updates, state = optimizer.update(params, state, params, masks=mask, value=1.0)
    assert -1 < updates["kernel"][0, 0] < 0


def loss(params):
    """Not separable, so every weight has a gradient that depends on all the others."""
    total = sum(jnp.sum(p) for p in jax.tree.leaves(params))
    return sum(jnp.sum((p - 0.3) ** 2) for p in jax.tree.leaves(params)) + jnp.tanh(total) ** 2


def only_active(tree, mask):
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(mask), strict=True)
    return [x[np.broadcast_to(m, x.shape)] for x, m in pairs]


def whole(vectors, mask, like):
    """The tree whose active weights these are, zero elsewhere."""
    leaves, treedef = jax.tree.flatten(like)
    masks_ = jax.tree.leaves(mask)
    put = lambda v, m, p: jnp.zeros(p.shape).at[np.nonzero(np.broadcast_to(m, p.shape))].set(v)  # noqa: E731
    return treedef.unflatten(map(put, vectors, masks_, leaves))


EVALUATE_AGAIN = {
    "sam_opaque": (
        optax.contrib.sam(
            optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1)),
            optax.chain(optax.contrib.normalize(), optax.sgd(0.5)),
            sync_period=3,
            opaque_mode=True,
        ),
        lambda loss: {"grad_fn": lambda params, i: jax.grad(loss)(params)},
    ),
    "lbfgs": (
        optax.lbfgs(memory_size=3),
        lambda loss: {"value_fn": loss},
    ),
    "backtracking": (
        optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(10)),
        lambda loss: {"value_fn": loss},
    ),
}


@pytest.mark.parametrize(
    "name", ["sam_opaque", "backtracking", pytest.param("lbfgs", marks=pytest.mark.slow)]
)
def test_what_is_evaluated_at_other_params_sees_no_inactive_weight(name):
    """As trained on vectors of the active weights alone; every point of evaluation is sparse."""
    inner, functions = EVALUATE_AGAIN[name]
    optimizer = transforms.sparse_updates(inner)
    params, mask = masked_model(7, level=0.75)
    like = params
    evaluated = []

    def watched(params):
        holes = [
            jnp.sum(jnp.where(m, 0, jnp.abs(p)))
            for p, m in zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True)
        ]
        jax.debug.callback(lambda x: evaluated.append(float(x)), sum(holes))
        return loss(params)

    def small_loss(vectors):
        return loss(whole(vectors, mask, like))

    @jax.jit
    def step(params, state):
        value, gradients = jax.value_and_grad(loss)(params)
        extra = functions(watched)
        if "value_fn" in extra:
            extra |= {"value": value, "grad": gradients}
        updates, state = optimizer.update(gradients, state, params, masks=mask, **extra)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def small_step(params, state):
        value, gradients = jax.value_and_grad(small_loss)(params)
        extra = functions(small_loss)
        if "value_fn" in extra:
            extra |= {"value": value, "grad": gradients}
        extra = optax.with_extra_args_support(inner).update(gradients, state, params, **extra)
        return optax.apply_updates(params, extra[0]), extra[1]

    state, small = optimizer.init(params), only_active(params, mask)
    small_state = inner.init(small)
    for _ in range(4):
        params, state = step(params, state)
        small, small_state = small_step(small, small_state)
        assert_zero_where_inactive(params, mask)
    jax.effects_barrier()
    assert len(evaluated) >= 4
    assert set(evaluated) == {0.0}
    for ours, expected in zip(only_active(params, mask), small, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_the_memory_of_lbfgs_forgets_what_is_inactive():
    """A stack of arrays of the parameter's shape."""
    inner = optax.lbfgs(memory_size=3, linesearch=None)
    params, mask = masked_model(3)
    state = inner.init(params)
    ones = jax.tree.map(jnp.ones_like, state)
    memory = transforms.reset_inactive(inner, ones, params, mask)[0].diff_params_memory["kernel"]
    np.testing.assert_array_equal(memory, np.broadcast_to(mask["kernel"], (3, 8, 9)))


REFUSED = {
    "lookahead": optax.lookahead(optax.adam(0.1), 2, 0.5),
    "lookahead inside": optax.MultiSteps(optax.lookahead(optax.adam(0.1), 2, 0.5), 2),
    "flatten": optax.flatten(optax.adam(0.1)),
    "flatten inside": optax.multi_transform(
        {"slow": optax.chain(optax.flatten(optax.adam(0.1))), "fast": optax.sgd(0.1)}, labels
    ),
    "flatten by a factory": optax.inject_hyperparams(lambda rate: optax.flatten(optax.adam(rate)))(
        0.1
    ),
}
if hasattr(optax.contrib, "galore"):  # not in the oldest optax
    REFUSED["galore"] = optax.contrib.galore(0.1)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_keep_weights_apart_is_refused_by_name(name):
    params, _ = masked_model(0)
    with pytest.raises(ValueError, match=f"^can't wrap {name.split()[0]}: [^\n]*; accepted: ") as e:
        transforms.sparse_updates(REFUSED[name]).init(params)
    assert "\n" not in str(e.value)
    if name == "lookahead":
        pairs = optax.LookaheadParams.init_synced(params)
        with pytest.raises(ValueError, match="can't wrap lookahead"):
            transforms.sparse_updates(REFUSED[name]).init(pairs)


@pytest.mark.parametrize("name", ["adafactor", "adam", "mechanize"])
def test_state_of_other_shapes_is_no_reason_to_refuse(name):
    """Rows, columns, a handful of scales: of params as a dictionary, or a single array."""
    for params in ({"kernel": jnp.ones((2, 3))}, jnp.ones((2, 3)), [jnp.ones(6), jnp.ones(())]):
        transforms.sparse_updates(OPTIMIZERS[name]).init(params)


def test_state_that_grows_with_the_first_update_is_kept():
    """What `optax.monitor` measures is no state that `init` could make anew."""
    params, mask = masked_model(0)
    measured = optax.monitor({"update": lambda updates: updates})
    optimizer = transforms.sparse_updates(optax.chain(optax.adam(0.1), measured))
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(params, state, params, masks=mask)
        assert_zero_where_inactive(updates, mask)
        assert_zero_where_inactive(state[0][0].mu, mask)
    assert jax.tree.structure(state[1].measurements["update"]) == jax.tree.structure(params)


def test_a_parameter_is_not_taken_for_another_with_the_same_last_name():
    """`mu/kernel` and `block/mu/kernel`: the longest path wins, and attributes aren't names."""
    params = {"mu": {"kernel": jnp.ones((2, 2))}, "kernel": jnp.ones((2, 2))}
    mask = {"mu": {"kernel": jnp.eye(2) > 0}, "kernel": jnp.eye(2) == 0}
    adam = optax.adam(0.1)
    ones = jax.tree.map(jnp.ones_like, adam.init(params))
    state = transforms.reset_inactive(adam, ones, params, mask)[0]
    np.testing.assert_array_equal(state.mu["mu"]["kernel"], jnp.eye(2))
    np.testing.assert_array_equal(state.mu["kernel"], 1 - jnp.eye(2))
    np.testing.assert_array_equal(state.nu["kernel"], 1 - jnp.eye(2))


def test_params_may_be_lists_tuples_or_a_single_array():
    for params in (
        [jnp.ones((2, 2)), (jnp.ones((2, 2)),)],
        (jnp.ones((2, 2)), [jnp.ones((2, 2))]),
        jnp.ones((2, 2)),
    ):
        mask = jax.tree.map(lambda _: jnp.eye(2) > 0, params)
        adam = optax.adam(0.1)
        ones = jax.tree.map(jnp.ones_like, adam.init(params))
        state = transforms.reset_inactive(adam, ones, params, mask)[0]
        for leaf in jax.tree.leaves((state.mu, state.nu)):
            np.testing.assert_array_equal(leaf, jnp.eye(2))
