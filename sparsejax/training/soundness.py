"""Check training states before they are saved: finite, zero where inactive, no weight lost."""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.sparsity.compact_trees import CompactTrees, spread_masks, tree_masks
from sparsejax.sparsity.flat import flat_masks
from sparsejax.sparsity.masks import path_name
from sparsejax.training.state import TrainState
from sparsejax.types import Array, Leaf, Masks, Params, PyTree

Check: TypeAlias = Callable[[TrainState], None]


def make_check(active: Mapping[str, int] | None, trees: CompactTrees | None = None) -> Check:
    """Return `check(state)`, which raises FloatingPointError if a state must not be saved.

    A state is sound if params, optimizer state and EMA are finite, and zero where the masks are
    False (if they are in the structure of params), and every layer has as many active weights as at
    the start. Only the number of faults leaves the devices; it is 0 of a sound state. What is wrong
    with another one is then found on the host.

    Args:
      active: number of active weights by path of the layer; None if the method changes them.
      trees: CompactTrees, if the states are compact.

    Returns:
      Function of a TrainState, whole, flat or compact. In a run of several processes, all of them
      have to call it.
    """

    @jax.jit
    def count(state: TrainState) -> Array:
        faults = jnp.int32(0)
        for tree, masks in _masked(state):
            for leaf, mask in zip(jax.tree.leaves(tree), jax.tree.leaves(masks), strict=True):
                faults += jnp.sum(~jnp.isfinite(leaf) | _is_outside(leaf, mask), dtype=jnp.int32)
        for leaf in _unmasked(state):
            faults += jnp.sum(~jnp.isfinite(leaf), dtype=jnp.int32)
        for _, mask, expected in _counted(state, active or {}, trees):
            if isinstance(mask, np.ndarray):  # a constant of the compact network
                continue
            faults += jnp.sum(mask, dtype=jnp.int32) != expected
        return faults

    def check(state: TrainState) -> None:
        if int(count(state)):
            found = "; ".join(_describe(jax.device_get(state), active or {}, trees))
            raise FloatingPointError(f"the state after step {int(state.step)} isn't sound: {found}")

    return check


def nonfinite(tree: PyTree) -> int:
    """Return how many numbers of a pytree of host arrays are not finite."""
    return sum(int(np.sum(~np.isfinite(leaf))) for leaf in jax.tree.leaves(tree) if _is_float(leaf))


def _describe(
    state: TrainState, active: Mapping[str, int], trees: CompactTrees | None
) -> Iterator[str]:
    """Say what is wrong with a state of host arrays."""
    for name in ("params", "opt_state", "ema_params"):
        number = nonfinite(getattr(state, name))
        if number:
            yield f"{number:,} numbers of {name} are not finite"
    outside = 0
    for tree, masks in _masked(state):
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(masks), strict=True)
        outside += sum(int(np.sum(_is_outside(leaf, np.asarray(mask)))) for leaf, mask in pairs)
    if outside:
        yield f"{outside:,} numbers of inactive weights are not zero"
    for name, mask, expected in _counted(state, active, trees):
        number = int(np.sum(mask))
        if number != expected:
            yield (
                f"{name} has {number:,} active weights, {expected:,} at the start, which only "
                "methods with changes_density=True may change"
            )


def _masked(state: TrainState) -> Iterator[tuple[Params, Masks]]:
    """Yield the trees of a state in the structure of params, each with its masks."""
    whole = tree_masks(state.masks)
    ours = flat_masks(whole, state.indices)
    yield state.params, whole
    yield state.ema_params, ours
    for node in _nodes(state):
        if _is_like(node, state.params):
            yield node, ours


def _unmasked(state: TrainState) -> list[Array]:
    """Return the other floating-point arrays of the optimizer state."""
    nodes = (node for node in _nodes(state) if not _is_like(node, state.params))
    return [node for node in nodes if _is_float(node)]


def _nodes(state: TrainState) -> list[PyTree]:
    """Return the parts of the optimizer state: trees in the structure of params, and arrays."""
    return jax.tree.leaves(state.opt_state, is_leaf=lambda node: _is_like(node, state.params))


def _is_like(node: PyTree, params: Params) -> bool:
    treedef: object = jax.tree.structure(params)
    return treedef == jax.tree.structure(node)


def _is_float(leaf: Leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _is_outside(leaf: Leaf, mask: Leaf) -> Array:
    """Return where a leaf is not zero although its mask is False."""
    return ~mask & (leaf != 0) if mask.ndim else jnp.zeros((), bool)


def _counted(
    state: TrainState, active: Mapping[str, int], trees: CompactTrees | None
) -> Iterator[tuple[str, Array, int]]:
    """Yield path, mask and expected number of active weights of each sparse layer."""
    if not active:
        return
    masks = spread_masks(trees, state.masks) if trees else state.masks
    for path, mask in jax.tree_util.tree_leaves_with_path(masks):
        if mask.ndim:
            yield path_name(path), mask, active[path_name(path)]
