"""Methods from outside: `register_method` and `get_method`."""

import functools

import jax
import numpy as np
import pytest

from sparsejax.sparsity import (
    Method,
    get_method,
    masks,
    methods,
    register_method,
    structure,
    topology,
)
from tests.sparsity.strategies import random_tree


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))


def keep(key, params, masks, gradients, fraction):
    return params, masks


def made(structure):
    """MagRan by the functions that a method of one's own has at hand."""

    def update(key, params, masks, gradients, fraction):
        units = structure.unit_masks(masks)
        scores = jax.tree.map(lambda m: jax.random.uniform(key, m.shape), units)
        return methods.drop_and_grow(structure, key, params, masks, scores, fraction)

    return Method("made", update, methods.random_topology(structure))


def test_a_registered_method_is_found_under_its_name():
    register_method("kept", Method("another", keep, uses_gradients=True))
    assert get_method("kept").name == "kept"
    assert get_method("kept").uses_gradients
    masks_now = {"kernel": np.eye(2, dtype=bool)}
    params, after = get_method("kept").update(None, masks_now, masks_now, None, 0.5, step=1)
    assert params is after is masks_now


def test_a_method_of_units_moves_blocks():
    register_method("made", made)
    method = get_method("made", structure.block(2))
    params = random_tree({"kernel": (8, 12)}, 0)
    before = method.init(jax.random.key(0), params, {"kernel": 0.5})
    params = masks.apply_masks(params, before)
    _, after = jax.jit(method.update)(jax.random.key(1), params, before, params, 0.5)
    blocks = np.asarray(after["kernel"]).reshape(4, 2, 6, 2).transpose(0, 2, 1, 3).reshape(24, 4)
    assert (blocks.all(1) == blocks.any(1)).all()
    assert blocks[:, 0].sum() == 12
    assert (after["kernel"] != before["kernel"]).any()


def test_a_method_of_single_weights_says_that_it_moves_nothing_else():
    register_method("kept", Method("kept", keep))
    with pytest.raises(ValueError, match="'kept' moves single weights; accepted: structure weight"):
        get_method("kept", structure.block(2))


def test_names_that_are_taken_or_malformed_and_what_is_no_method_raise_in_a_line():
    for name, method, message in (
        ("rigl", made, "method 'rigl' is sparsejax.sparsity.methods.rigl already; accepted: anoth"),
        ("a,b", made, "name of a method is 'a,b'; accepted: letters, digits, _ and -, a letter f"),
        (3, made, "name of a method is 3; accepted"),
        ("mine", "made", "method 'mine' is 'made'; accepted: a Method, or a function"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            register_method(name, method)
        assert "\n" not in str(error.value)
    assert [*methods.METHODS][:4] == ["dense", "static", "rigl", "magran"]
    assert [*methods.METHODS][4:] == ["gradual", "one_shot"]
    register_method("mine", lambda structure: None)
    with pytest.raises(ValueError, match="method 'mine' returns None; accepted: a Method"):
        get_method("mine")


def test_a_reloaded_module_registers_its_method_again():
    register_method("made", made)
    again = functools.wraps(made)(lambda structure: Method("made", keep))
    register_method("made", again)
    assert methods.METHODS["made"] is again
    with pytest.raises(ValueError, match="method 'made' is .*made already; accepted: another name"):
        register_method("made", Method("made", keep))


@pytest.mark.parametrize("sizes", [(3, 20_000, 40), (20_000,)], ids=["small and large", "large"])
def test_the_random_scores_of_a_layer_are_drawn_with_its_own_key(sizes):
    params = random_tree({f"{i}": (size,) for i, size in enumerate(sizes)}, 0)
    method, key = get_method("magran"), jax.random.key(5)
    before = method.init(jax.random.key(1), params, jax.tree.map(lambda _: 0.5, params))
    params = masks.apply_masks(params, before)
    _, after = jax.jit(method.update)(key, params, before, params, 0.4)
    scores = {
        name: jax.random.uniform(jax.random.fold_in(key, int(name)), leaf.shape)
        for name, leaf in params.items()
    }
    expected = jax.jit(topology.rewire)(params, before, scores, 0.4)
    assert jax.tree.all(jax.tree.map(np.array_equal, after, expected))
