"""What `from sparsejax import sparsity` offers directly."""

import ast
import functools
import importlib
import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsejax import sparsity
from tests.sparsity.strategies import random_like, random_tree

SHAPES = {"conv": {"kernel": (3, 3, 2, 5), "bias": (5,)}, "kernel": (8, 9)}
NAMES = sorted(name for name in sparsity.__all__ if not inspect.ismodule(getattr(sparsity, name)))


def test_every_name_and_every_module_is_there():
    assert set(dir(sparsity)) == set(sparsity.__all__) > set(NAMES) > {"Method", "random_masks"}
    assert all(getattr(sparsity, name) is not None for name in sparsity.__all__)
    with pytest.raises(AttributeError, match="no attribute 'random_mask'"):
        sparsity.random_mask  # noqa: B018


def test_type_checkers_see_the_same_names():
    source = ast.parse(pathlib.Path(sparsity.__file__).read_text())
    (block,) = (node for node in source.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen.keys() == set(sparsity.__all__)
    for name, module in seen.items():
        assert getattr(importlib.import_module(module), name) is getattr(sparsity, name)
    assert {name for name in seen if seen[name] != "sparsejax.sparsity"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_documented_with_an_example(name):
    found = getattr(sparsity, name)
    assert found.__name__ == name
    text = inspect.getdoc(found)
    assert text.splitlines()[0].endswith(".")
    assert not text.startswith(("A ", "An ", "The ", "Like "))
    assert ">>> " in text.split("Examples:")[1]
    sections = "Attributes:" if inspect.isclass(found) else "Args:"
    assert sections in text
    for parameter in inspect.signature(found).parameters:
        assert f"\n  {parameter}: " in text, parameter


def masked_model(seed=0):
    params = random_tree(SHAPES, seed)
    masks = sparsity.random_masks(jax.random.key(seed), params, sparsity.uniform(params, 0.7))
    return sparsity.apply_masks(params, masks), masks


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def moments(state, masks):
    """First moments of adam, whole: those of packed state stand where the mask is True."""
    if not hasattr(state, "indices"):
        return leaves(state[0].mu)
    found = []
    for packed, mask in zip(leaves(state.inner[0].mu), leaves(masks), strict=True):
        found.append(np.zeros(mask.shape, packed.dtype) if mask.ndim else packed)
        if mask.ndim:
            found[-1][mask] = packed
    return found


@pytest.mark.parametrize("wrapper", ["sparse_updates", "packed"])
@pytest.mark.parametrize("name", ["rigl", "static"])
def test_after_a_topology_update_nothing_is_left_to_do(name, wrapper):
    """What stays active keeps value and moments; all else is zero, without a further call."""
    method = sparsity.get_method(name)
    params, before = masked_model()
    wrap = {"sparse_updates": sparsity.sparse_updates, "packed": sparsity.packed}[wrapper]
    optimizer = wrap(optax.adam(0.1), *[before] * (wrapper == "packed"))
    gradients = random_like(params, 1)
    updates, state = optimizer.update(gradients, optimizer.init(params), params, masks=before)
    params = optax.apply_updates(params, updates)
    update = jax.jit(functools.partial(sparsity.update_topology, method, optimizer))
    changed, masks, moved = update(jax.random.key(2), params, before, state, gradients, 0.5)

    assert jax.tree.structure(moved) == jax.tree.structure(state)
    both = moments(moved, masks), moments(state, before)
    for new, old, after, param, moment, first in zip(
        *map(leaves, (masks, before, changed, params)), *both, strict=True
    ):
        assert new.sum() == old.sum()
        assert (new != old).any() == (name == "rigl" and new.ndim > 0)
        np.testing.assert_array_equal(after, np.where(new & old, param, 0))
        np.testing.assert_array_equal(moment, np.where(new & old, first, 0))
        assert moment.any()


def test_a_method_that_forgets_the_masks_leaves_no_weight_behind():
    """It also receives step and density."""
    told = {}

    def update(key, params, masks, gradients, fraction, *, step, density):
        told.update(step=step, density=density)
        return params, jax.tree.map(jnp.logical_not, masks)

    params = {"kernel": jnp.array([[1.0, 2.0], [0.0, 0.0]])}
    masks = {"kernel": params["kernel"] > 0}
    optimizer = sparsity.sparse_updates(optax.sgd(0.1))
    after, flipped, _ = sparsity.update_topology(
        sparsity.Method("flip", update), optimizer, jax.random.key(0), params, masks,
        optimizer.init(params), params, 0.5, step=7, density=0.25,
    )  # fmt: skip
    assert told == {"step": 7, "density": 0.25}
    assert flipped["kernel"].tolist() == [[False, False], [True, True]]
    assert not after["kernel"].any()


def test_packed_state_and_a_method_that_changes_density_do_not_go_together():
    params, masks = masked_model()
    optimizer = sparsity.packed(optax.adam(0.1), masks)
    method = sparsity.Method("grow", lambda *args: args[1:3], changes_density=True)
    state = optimizer.init(params)
    with pytest.raises(ValueError, match="method 'grow' changes density.*accepted: sparse_updates"):
        sparsity.update_topology(
            method, optimizer, jax.random.key(0), params, masks, state, params, 0.5
        )
