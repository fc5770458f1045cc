"""State of active weights alone: equal to `sparse_updates`, and nothing gets lost on the way."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsejax.sparsity import flat, masks, transforms
from tests.sparsity.strategies import DTYPES, random_like, random_tree

SHAPES = {"conv": {"kernel": (3, 3, 2, 5), "bias": (5,)}, "kernel": (8, 9)}
SPARSITIES = {"conv": {"kernel": 0.6, "bias": 0.0}, "kernel": 0.8}
RATE = optax.warmup_cosine_decay_schedule(0.01, 0.1, 2, 6)
OPTIMIZERS = {
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(RATE, weight_decay=0.3),
    "sgd": optax.sgd(RATE),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "nesterov": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "lion": optax.lion(0.1, weight_decay=0.3),
    "rmsprop": optax.rmsprop(0.1, momentum=0.9, initial_scale=0.7),
    "rmsprop_centered": optax.rmsprop(0.1, centered=True),
    "clipped": optax.chain(optax.clip_by_global_norm(0.5), optax.chain(optax.adamw(RATE))),
    "nadam": optax.nadam(0.1),
    "yogi": optax.yogi(0.1),
    "adagrad": optax.adagrad(0.1),
    "MultiSteps": optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    "inject_hyperparams": optax.inject_hyperparams(optax.adamw)(0.1),
}
ACCEPTED = {
    "adabelief": optax.adabelief(0.1),
    "adadelta": optax.adadelta(0.1),
    "adamax": optax.adamax(0.1),
    "adan": optax.adan(0.1),
    "ademamix": optax.contrib.ademamix(0.1),
    "amsgrad": optax.amsgrad(0.1),
    "clip": optax.chain(optax.clip(0.1), optax.zero_nans(), optax.sgd(0.1)),
    "lbfgs": optax.lbfgs(0.1, memory_size=3, linesearch=None),
    "prodigy": optax.contrib.prodigy(0.1),
    "radam": optax.radam(0.1),
    "rprop": optax.rprop(0.1),
    "schedule_free": optax.contrib.schedule_free_adamw(0.1),
    "sign_sgd": optax.sign_sgd(0.1),
}
MULTI_STEPS = pytest.param("MultiSteps", marks=pytest.mark.slow)
LBFGS = pytest.param("lbfgs", marks=pytest.mark.slow)
ARRAYS, STATE, TRIED = "on the array that", "its state isn't of single weights", "it can't be tried"
REFUSED = {
    "adafactor": (optax.adafactor(0.1), ARRAYS),
    "adaptive_grad_clip": (optax.chain(optax.adaptive_grad_clip(1.0), optax.sgd(0.1)), ARRAYS),
    "add_noise": (optax.chain(optax.sgd(0.1), optax.add_noise(1.0, 0.5, 0)), ARRAYS),
    "centralize": (optax.chain(optax.sgd(0.1), optax.centralize()), ARRAYS),
    "clip_by_block_rms": (optax.chain(optax.clip_by_block_rms(1e3), optax.sgd(0.1)), ARRAYS),
    "flatten": (optax.flatten(optax.adam(0.1)), STATE),
    "fromage": (optax.fromage(0.1), ARRAYS),
    "lamb": (optax.lamb(0.1), ARRAYS),
    "lars": (optax.lars(0.1), ARRAYS),
    "lookahead": (optax.lookahead(optax.adam(0.1), 2, 0.5), TRIED),
    "masked": (
        optax.adamw(0.1, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
        ARRAYS,
    ),
    "mean_of_all": (
        optax.chain(
            optax.stateless(
                lambda g, p: jax.tree.map(
                    lambda x: x / sum(jnp.mean(jnp.abs(y)) for y in jax.tree.leaves(g)), g
                )
            ),
            optax.sgd(0.1),
        ),
        ARRAYS,
    ),
    "muon": (optax.contrib.muon(0.1), STATE),
    "sizes": (optax.stateless(lambda g, p: jax.tree.map(lambda x: x * x.size, g)), ARRAYS),
    "novograd": (optax.novograd(0.1), ARRAYS),
    "partition": (
        optax.multi_transform(
            {"slow": optax.sgd(0.1), "fast": optax.sgd(1.0)},
            lambda params: dict(zip(params, ["slow", "fast"], strict=True)),
        ),
        ARRAYS,
    ),
    "plateau": (optax.contrib.reduce_on_plateau(), TRIED),
    "set_to_zero": (optax.set_to_zero(), "it moves no weight in 8 updates"),
    "sm3": (optax.sm3(0.1), STATE),
    "sparse_updates": (transforms.sparse_updates(optax.sgd(0.1)), TRIED),
    "broken": (optax.GradientTransformation(optax.identity().init, lambda u, s, p: 1 / 0), TRIED),
}


def decay(count):
    return jnp.minimum(0.9, (1 + count) / (10 + count))


def masked_model(seed=0):
    params = random_tree(SHAPES, seed)
    mask = masks.random_masks(jax.random.key(seed), params, SPARSITIES)
    return masks.apply_masks(params, mask), mask


def rewire(params, mask, seed):
    """Replace a third of the active weights of each layer, at random; new ones are zero."""
    rng = np.random.default_rng(seed)

    def rewire_layer(m):
        m = np.array(m).reshape(-1)
        if m.size > 1:
            dropped = rng.choice(np.flatnonzero(m), m.sum() // 3, replace=False)
            m[rng.choice(np.flatnonzero(~m), dropped.size, replace=False)] = True
            m[dropped] = False
        return m

    mask = jax.tree.map(lambda m: jnp.asarray(rewire_layer(m).reshape(m.shape)), mask)
    return masks.apply_masks(params, mask), mask


def masked_step(optimizer, params, state, ema, mask, gradients, count):
    """One step of `sparse_updates`, and the EMA of all weights."""
    updates, state = optimizer.update(gradients, state, params, masks=mask)
    params = optax.apply_updates(params, updates)
    return params, state, jax.tree.map(lambda e, p: e - (1 - decay(count)) * (e - p), ema, params)


def packed_step(optimizer, params, state, mask, gradients):
    updates, state = optimizer.update(gradients, state, params, masks=mask)
    return optax.apply_updates(params, updates), state


def assert_same(ours, theirs, **tolerances):
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, **({"rtol": 0} | tolerances))


def compare(name, one, other, compiled, **tolerances):
    """Six steps and two topology updates of both; params, moments and EMA after each."""
    params, mask = masked_model()
    inner = OPTIMIZERS[name]
    whole = transforms.sparse_updates(inner)
    small = transforms.packed(inner, mask, ema_decay=decay)
    masked = params, whole.init(params), params
    packed = params, small.init(params)
    one, other = (compiled(functools.partial(f, o)) for f, o in ((one, whole), (other, small)))
    for i in range(6):
        gradients = random_like(params, i)
        masked = one(*masked, mask, gradients, i + 1)
        packed = other(*packed, mask, gradients)
        if i % 2:
            params, ema, before = masked[0], masked[2], mask
            params, mask = rewire(params, mask, i)
            masked = (
                params,
                transforms.reset_inactive(whole, masked[1], params, mask),
                jax.tree.map(lambda e, new, old: jnp.where(new & old, e, 0), ema, mask, before),
            )
            # The optimizer that was wrapped serves as well as the wrapper.
            caller = small if i == 1 else inner
            packed = params, transforms.reset_inactive(caller, packed[1], params, mask)
        assert_same(packed[0], masked[0], **tolerances)
        assert_same(transforms.ema_params(packed[1], params), masked[2], **tolerances)
        indices = packed[1].indices
        for ours, theirs in zip(*map(jax.tree.leaves, (packed[1].inner, masked[1])), strict=True):
            index = {(3, 3, 2, 5): indices["conv"]["kernel"], (8, 9): indices["kernel"]}
            if theirs.shape in index:
                theirs = np.asarray(theirs).reshape(-1)[index[theirs.shape]]
            assert_same(ours, theirs, **tolerances)


@pytest.mark.parametrize("name", [*sorted(OPTIMIZERS.keys() - {"MultiSteps"}), MULTI_STEPS])
def test_packed_equals_masked_bit_for_bit(name):
    """Operation by operation. The sums of a global norm have another order: rounding differs."""
    tolerances = {"rtol": 1e-5, "atol": 1e-6} if name == "clipped" else {}
    compare(name, masked_step, packed_step, lambda f: f, **tolerances)


def test_packed_equals_masked_when_compiled():
    """A compiler may join a product and a sum, with one rounding, in one but not the other."""
    compare("adamw", masked_step, packed_step, jax.jit, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*sorted(ACCEPTED.keys() - {"lbfgs"}), LBFGS])
def test_what_treats_all_weights_alike_is_accepted(name):
    _, mask = masked_model()
    transforms.packed(ACCEPTED[name], mask)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_looks_at_whole_arrays_is_refused_in_a_line(name):
    inner, reason = REFUSED[name]
    _, mask = masked_model()
    with pytest.raises(ValueError, match=f"^can't keep the state of .* flat: .*{reason}") as error:
        transforms.packed(inner, mask)
    assert re.search("; accepted: .*adamw.* vouched=True", str(error.value))
    assert "\n" not in str(error.value)


def test_statistics_that_only_large_layers_have_are_refused_when_they_are_seen():
    """Adafactor without its means of layers: elementwise, up to the size where it factors."""
    inner = optax.adafactor(
        0.1, multiply_by_parameter_scale=False, clipping_threshold=None, min_dim_size_to_factor=8
    )
    params = {"kernel": jnp.ones((8, 9))}
    mask = {"kernel": params["kernel"].at[0].set(0) > 0}
    optimizer = transforms.packed(inner, mask)
    with pytest.raises(ValueError, match=STATE):
        optimizer.init(params)
    small = {"kernel": params["kernel"][:, :7]}
    transforms.packed(inner, {"kernel": small["kernel"] > 0}).init(small)


def test_whoever_vouches_is_believed():
    params, mask = masked_model()
    inner = optax.chain(optax.sgd(0.1), optax.add_noise(1.0, 0.5, 0))
    optimizer = transforms.packed(inner, mask, vouched=True)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert_same(masks.apply_masks(updates, mask), updates)
    assert all(jnp.any(leaf) for leaf in jax.tree.leaves(updates))


def test_no_array_of_the_state_is_larger_than_what_is_active():
    params, mask = masked_model()
    state = transforms.packed(optax.adam(0.1), mask, ema_decay=decay).init(params)
    moments = 2 * (36 + 15 + 5)
    assert sum(x.size for x in jax.tree.leaves(state.inner)) == moments + 1  # and its count
    assert sum(x.size for x in jax.tree.leaves(state.ema)) == moments / 2
    assert sum(x.size for x in jax.tree.leaves(state.indices)) == 36 + 15 + 1


def test_weights_that_come_back_with_a_value_begin_their_ema_there():
    """As the fresh weights of a channel; those that stay keep EMA and moments."""
    params = {"kernel": jnp.array([[1.0, 2.0, 0.0, 0.0]])}
    mask = {"kernel": jnp.array([[True, True, False, False]])}
    optimizer = transforms.packed(optax.sgd(0.5, momentum=0.9), mask, ema_decay=lambda count: 0.5)
    state = optimizer.init(params)
    updates, state = optimizer.update({"kernel": jnp.ones((1, 4))}, state, params, masks=mask)
    assert transforms.ema_params(state, params)["kernel"].tolist() == [[0.75, 1.75, 0.0, 0.0]]
    params = {"kernel": jnp.array([[0.0, 1.5, 0.0, 7.0]])}
    mask = {"kernel": jnp.array([[False, True, False, True]])}
    state = transforms.reset_inactive(optimizer, state, params, mask)
    assert transforms.ema_params(state, params)["kernel"].tolist() == [[0.0, 1.75, 0.0, 7.0]]
    assert state.inner[0].trace["kernel"].tolist() == [1.0, 0.0]
    assert state.indices["kernel"].tolist() == [1, 3]


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(DTYPES), st.integers(0, 2**16))
def test_making_flat_and_whole_again_is_masking(dtype, seed):
    params, mask = masked_model()
    mask = rewire(params, mask, seed)[1]
    tree = random_tree(SHAPES, seed, dtype)
    indices = flat.active_indices(mask)
    for index, m in zip(*map(jax.tree.leaves, (indices, mask)), strict=True):
        if m.ndim:
            assert index.dtype == jnp.int32
            np.testing.assert_array_equal(index, np.flatnonzero(m))
        else:
            assert index.ndim == 0
    whole = flat.to_whole(flat.to_flat(tree, indices), indices, params)
    assert_same(whole, masks.apply_masks(tree, mask))


@pytest.mark.parametrize("size", [1, 2**16, 2**16 + 1, 200_001])
def test_indices_of_large_layers_are_found_block_by_block(size):
    mask = np.random.default_rng(size).random(size) < 0.1
    mask[[0, -1]] = True
    found = flat.active_indices([jnp.asarray(mask)])[0]
    np.testing.assert_array_equal(found, np.flatnonzero(mask))
    np.testing.assert_array_equal(
        flat.active_indices([jnp.zeros(size, bool).at[-1].set(True)])[0], [size - 1]
    )


def test_counts_serve_where_the_masks_are_traced():
    """As in training, where the optimizer is there before the masks."""
    params, mask = masked_model()
    counts = flat.static_counts(mask)
    assert counts["kernel"] == 15
    optimizer = transforms.packed(optax.sgd(0.1), counts)
    state = jax.jit(lambda p, m: optimizer.init(p, masks=m))(params, mask)
    np.testing.assert_array_equal(state.indices["kernel"], np.flatnonzero(mask["kernel"]))
    with pytest.raises(ValueError, match="init needs masks="):
        optimizer.init(params)
    other = mask | {"kernel": mask["kernel"].at[:].set(True)}
    with pytest.raises(ValueError, match="kernel has 72 active weights; accepted: 15"):
        optimizer.init(params, masks=other)
