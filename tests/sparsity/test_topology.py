"""Prune, regrow, and invariants 1, 3, 4, 5, 6, 7 of the topology updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsejax.sparsity import masks, methods, topology
from sparsejax.sparsity import method as method_module
from tests.sparsity.strategies import active_counts, random_like, random_tree, sparse_models

FRACTIONS = st.sampled_from([0.0, 0.05, 0.3, 0.5, 1.0])


def updates_by(name):
    return jax.jit(methods.get_method(name).update)


regrow_excluding = jax.jit(
    lambda kept, scores, counts, exclude: topology.regrow(kept, scores, counts, exclude=exclude)
)
CONSTANT = [n for n in methods.METHODS if not methods.get_method(n).changes_density]
UPDATES = {name: updates_by(name) for name in CONSTANT}


@settings(max_examples=60, deadline=None)
@given(sparse_models(), st.sampled_from(CONSTANT), FRACTIONS, st.integers(0, 999))
def test_updates_keep_every_layers_number_of_active_weights(model, name, fraction, seed):
    """Invariant 1."""
    params, before = model
    gradients = random_like(params, seed)
    _, after = UPDATES[name](jax.random.key(seed), params, before, gradients, fraction)
    assert active_counts(after) == active_counts(before)
    assert [m.shape for m in jax.tree.leaves(after)] == [m.shape for m in jax.tree.leaves(before)]


@settings(max_examples=60, deadline=None)
@given(sparse_models(), st.sampled_from(["rigl", "magran"]), FRACTIONS, st.integers(0, 999))
def test_grown_weights_start_at_zero_and_survivors_keep_their_values(model, name, fraction, seed):
    """Invariants 2 and 3, for params."""
    params, before = model
    gradients = random_like(params, seed)
    new_params, after = UPDATES[name](jax.random.key(seed), params, before, gradients, fraction)
    for old, new, was, now in zip(
        *map(jax.tree.leaves, (params, new_params, before, after)), strict=True
    ):
        now, was = np.broadcast_to(now, new.shape), np.broadcast_to(was, new.shape)
        assert (np.asarray(new)[~now] == 0).all()
        assert (np.asarray(new)[now & ~was] == 0).all()
        np.testing.assert_array_equal(np.asarray(new)[now & was], np.asarray(old)[now & was])


def numpy_rewire(weights, mask, grow_scores, fraction):
    """The drop-and-grow step of RigL on one layer, by sorting."""
    weights, mask, scores = (np.asarray(x).ravel() for x in (weights, mask, grow_scores))
    active = int(mask.sum())
    kept_count = active - int(np.floor(np.float32(fraction) * np.float32(active)))
    magnitude = np.where(mask, np.abs(weights.astype(np.float64)), -1)
    kept = np.zeros_like(mask)
    kept[np.argsort(-magnitude, kind="stable")[:kept_count]] = True
    candidates = np.where(kept, -np.inf, scores.astype(np.float64))
    grown = np.argsort(-candidates, kind="stable")[: active - kept_count]
    kept[grown] = True
    return kept


@settings(max_examples=60, deadline=None)
@given(sparse_models(), FRACTIONS, st.integers(0, 999))
def test_rigl_equals_a_sort_in_numpy(model, fraction, seed):
    """Invariants 4 and 5: kept weights are no candidates, the just dropped ones are."""
    params, before = model
    gradients = random_like(params, seed)
    _, after = UPDATES["rigl"](jax.random.key(0), params, before, gradients, fraction)
    for p, g, old, new in zip(
        *map(jax.tree.leaves, (params, gradients, before, after)), strict=True
    ):
        if old.ndim:
            expected = numpy_rewire(p, old, np.abs(np.asarray(g)), fraction).reshape(old.shape)
            np.testing.assert_array_equal(new, expected)


@settings(max_examples=30, deadline=None)
@given(sparse_models(), st.integers(0, 999), st.sampled_from([1e-3, 2.0, 2.0**40, 2.0**-100]))
def test_scale_of_gradients_does_not_matter(model, seed, scale):
    """Invariant 4, with a power of two so that scaling is exact in float32."""
    params, before = jax.tree.map(jnp.float32, model[0]), model[1]
    scale = 2.0 ** round(np.log2(scale))
    gradients = random_like(params, seed)
    scaled = jax.tree.map(lambda g: g * scale, gradients)
    _, expected = UPDATES["rigl"](jax.random.key(0), params, before, gradients, 0.5)
    _, ours = UPDATES["rigl"](jax.random.key(0), params, before, scaled, 0.5)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_nan_weights_are_pruned_first_and_never_replaced_by_inactive_ones():
    params = {"kernel": jnp.array([[np.nan, 1.0, 2.0, 0.0, 0.0]])}
    before = {"kernel": jnp.array([[True, True, True, False, False]])}
    kept = topology.prune(params, before, 0.34)["kernel"]
    assert kept.tolist() == [[False, True, True, False, False]]
    kept = topology.prune(params, before, 0.0)["kernel"]
    assert kept.tolist() == before["kernel"].tolist()


def test_nan_gradients_grow_last():
    kept = {"kernel": jnp.array([[True, False, False, False]])}
    scores = {"kernel": jnp.array([[9.0, np.nan, 0.0, -np.inf]])}
    grown = topology.regrow(kept, scores, {"kernel": 2})["kernel"]
    assert grown.tolist() == [[True, False, True, True]]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), st.integers(0, 12))
def test_excluded_weights_grow_only_to_reach_the_count(seed, count):
    """Invariant 5."""
    rng = np.random.default_rng(seed)
    kept, excluded = rng.random(24) < 0.3, rng.random(24) < 0.6
    scores = rng.normal(size=24).astype(np.float32)
    grown = regrow_excluding(
        {"k": jnp.asarray(kept)}, {"k": jnp.asarray(scores)}, {"k": count}, {"k": excluded}
    )["k"]
    new = np.asarray(grown) & ~kept
    order = np.lexsort((np.arange(24), -scores, excluded, kept))
    expected = np.zeros(24, bool)
    expected[order[: min(count, int((~kept).sum()))]] = True
    np.testing.assert_array_equal(new, expected & ~kept)
    assert (np.asarray(grown) | ~kept).all()


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_rigl_update_equals_the_reference(golden, fraction):
    """Their drop score is signed, so pruning goes through `select_top`."""
    vectors = golden("sparsity.json")["vectors"]
    case = next(v for v in vectors if v["name"] == f"rigl_update_f{fraction}")
    inputs = case["inputs"]
    mask = jnp.asarray(inputs["old_mask"], bool)
    drop_score, grow_score = (
        jnp.asarray(inputs[k], jnp.float32) for k in ("drop_score", "grow_score")
    )
    replaced = int(np.floor(inputs["drop_fraction"] * int(mask.sum())))
    kept = topology.select_top(drop_score, mask.sum() - replaced, candidates=mask)
    grown = topology.regrow({"k": kept}, {"k": grow_score}, {"k": replaced})["k"]
    assert grown.astype(int).tolist() == case["expected"]


def test_number_of_replaced_weights_is_the_floor():
    """101 active weights: RigL's own rounding."""
    mask = {"k": jnp.arange(202).reshape(2, 101) < 101}
    params = masks.apply_masks({"k": jnp.arange(1.0, 203).reshape(2, 101)}, mask)
    for fraction, expected in ((0.005, 0), (0.1, 10), (0.2999, 30), (0.5, 50)):
        kept = topology.prune(params, mask, fraction)["k"]
        assert 101 - int(kept.sum()) == expected


def test_magran_grows_at_random_from_all_candidates():
    """Over many keys every candidate is grown equally often, whatever the gradients."""
    params = {"kernel": jnp.array([[4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]])}
    mask = {"kernel": params["kernel"] > 0}
    gradients = {"kernel": jnp.arange(8.0)[None]}
    keys = jax.random.split(jax.random.key(0), 600)
    update = jax.vmap(lambda k: UPDATES["magran"](k, params, mask, gradients, 0.5)[1]["kernel"][0])
    share = np.asarray(update(keys)).mean(axis=0)
    assert (share[:2] == 1).all()
    assert np.abs(share[2:] - 2 / 6).max() < 5 * np.sqrt(2 / 6 * 4 / 6 / 600)


def test_magran_draws_for_every_layer_anew():
    mask = {name: jnp.arange(256).reshape(16, 16) < 128 for name in ("a", "b")}
    params = jax.tree.map(jnp.float32, mask)
    _, after = UPDATES["magran"](jax.random.key(0), params, mask, params, 1.0)
    assert (after["a"] != after["b"]).sum() > 64


def test_the_drop_fraction_is_traced():
    """Invariant 7: one compilation serves every fraction."""
    params = random_tree({"kernel": (13, 7)}, 0)
    mask = masks.random_masks(jax.random.key(0), params, {"kernel": 0.5})
    params = masks.apply_masks(params, mask)
    update = jax.jit(lambda *args: methods.get_method("rigl").update(*args))
    for fraction in np.linspace(0, 1, 5, dtype=np.float32):
        update(jax.random.key(0), params, mask, params, fraction)
    assert update._cache_size() == 1


@pytest.mark.parametrize("name", ["dense", "static"])
def test_dense_and_static_leave_everything_alone(name):
    params = random_tree({"kernel": (5, 7)}, 0)
    mask = masks.random_masks(jax.random.key(0), params, {"kernel": 0.5})
    method = methods.get_method(name)
    out = method.update(jax.random.key(0), params, mask, params, 0.5)
    assert out == (params, mask)
    assert not method.is_dynamic


def test_a_dense_model_has_no_full_shape_masks():
    params = random_tree({"kernel": (5, 7), "bias": (7,)}, 0)
    drawn = methods.get_method("dense").init(jax.random.key(0), params, {"kernel": 0.5, "bias": 0})
    assert [m.ndim for m in jax.tree.leaves(drawn)] == [0, 0]


def test_an_update_gets_step_and_density_if_it_takes_them():
    """By name, in any way of taking arguments; five arguments are enough."""
    ones, got = {"kernel": jnp.ones((2, 2))}, {}

    def five(key, params, masks, gradients, fraction):
        return params, masks

    def only_step(key, params, masks, gradients, fraction, step):
        got["only_step"] = step
        return params, masks

    def both(key, params, masks, gradients, fraction, *, step=None, density=None):
        got["both"] = (step, density)
        return params, masks

    def anything(key, params, masks, gradients, fraction, **said):
        got["anything"] = said
        return params, masks

    args = (jax.random.key(0), ones, ones, ones, 0.5)
    for update in (five, only_step, both, anything, jax.jit(five), *UPDATES.values()):
        method = methods.Method("mine", update)
        out = method.update(*args, step=3, density=0.25)
        assert jax.tree.structure(out) == jax.tree.structure((ones, ones))
    assert got == {"only_step": 3, "both": (3, 0.25), "anything": {"step": 3, "density": 0.25}}
    methods.Method("mine", both).update(*args)
    assert got["both"] == (None, None)


@pytest.mark.parametrize(
    "update",
    [
        lambda *, key, params, masks, gradients, fraction: (params, masks),
        lambda key, params, masks, gradients: (params, masks),
        lambda key, params, masks, gradients, fraction, history: (params, masks),
        lambda key, params, masks, gradients, fraction, step, density, /: (params, masks),
        lambda key, params, masks, gradients, step: (params, masks),
        "rigl",
    ],
)
def test_an_update_that_cannot_be_called_is_refused_when_the_method_is_built(update):
    """Not by a traceback at the first topology update, long after training began."""
    with pytest.raises(ValueError, match=r"^update of method 'mine' can't be called: .*density="):
        methods.Method("mine", update)


def test_the_signature_is_inspected_when_the_method_is_built(monkeypatch):
    method = methods.Method("mine", lambda key, params, masks, gradients, fraction: (params, masks))
    monkeypatch.setattr(method_module.inspect, "signature", None)
    assert method.update(None, 1, 2, 3, 0.5, step=1, density=None) == (1, 2)


def test_a_method_that_changes_density_is_dynamic():
    changing = {n for n in methods.METHODS if methods.get_method(n).changes_density}
    assert changing == {"gradual", "one_shot"}
    with pytest.raises(ValueError, match="method 'mine' changes density; accepted: is_dynamic=Tr"):
        methods.Method("mine", lambda *args: None, is_dynamic=False, changes_density=True)


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match="'snip'; accepted: dense, static, rigl, magran"):
        methods.get_method("snip")
