"""Flat trees: only the active weights, one array [active] per sparsified layer, and the inverse.

Indices record where the active weights are. For a flat layer they are the flat positions of its
active weights, int32 [active], in ascending order; for a layer that stays whole they are a 0-d
True. So every tree of params has indices, and a tree whose indices are all 0-d is whole. The number
of active weights of a flat layer never changes, so all shapes are static.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.sparsity.masks import path_name
from sparsejax.types import Array, KeyPath, Leaf, Masks, Params, PyTree

_BLOCK = 2**16
_SORTED: dict[str, Any] = {"indices_are_sorted": True, "unique_indices": True}


def static_counts(masks: Masks) -> PyTree:
    """Replace each boolean array of the masks by its number of active weights.

    Args:
      masks: masks with concrete values, not traced.

    Returns:
      Pytree with a Python int for each sparsified layer and the 0-d mask for each other one.

    Examples:
      >>> static_counts({"kernel": jnp.eye(3, dtype=bool)})
      {'kernel': 3}
    """
    return jax.tree.map(lambda mask: int(jnp.sum(mask)) if jnp.ndim(mask) else mask, masks)


def counts_of(indices: PyTree) -> PyTree:
    """Return the counts that indices were made with: those of `static_counts`, for a flat tree."""
    return jax.tree.map(lambda index: index.size if index.ndim else index, indices)


def is_flat(indices: PyTree) -> bool:
    """Return whether a tree with these indices has flat layers."""
    return any(index.ndim for index in jax.tree.leaves(indices))


def whole_indices(params: Params) -> PyTree:
    """Return the indices of a whole tree: 0-d True for every leaf of `params`."""
    return jax.tree.map(lambda _: jnp.array(True), params)


def active_indices(masks: Masks, counts: PyTree | None = None) -> PyTree:
    """Return the flat positions of the active weights.

    Args:
      masks: masks.
      counts: number of active weights per layer, an int; a 0-d True for layers that stay whole.
        Default: `static_counts(masks)`, for which `masks` must not be traced.

    Returns:
      Pytree of int32 arrays [active] in ascending order; a 0-d True for layers that stay whole.

    Raises:
      ValueError: `masks` are concrete and have other numbers of active weights.

    Examples:
      >>> active_indices({"kernel": jnp.eye(3, dtype=bool)})["kernel"].tolist()
      [0, 4, 8]
    """

    def positions(path: KeyPath, mask: Array, count: int | Array) -> Array:
        if not isinstance(count, int):
            return jnp.copy(count)
        if not isinstance(mask, jax.core.Tracer) and (active := int(jnp.sum(mask))) != count:
            raise ValueError(f"{path_name(path)} has {active} active weights; accepted: {count}")
        return _positions(mask.reshape(-1), count)

    counts = static_counts(masks) if counts is None else counts
    return jax.tree_util.tree_map_with_path(positions, masks, counts)


@jax.jit(static_argnums=1)
def _positions(mask: Array, count: int) -> Array:
    """Return the positions of the `count` True entries of a flat mask, in ascending order.

    Works block by block, which compiles and runs faster than `jnp.flatnonzero`: there is no
    running sum over the whole layer.
    """
    size = mask.size
    block = min(size, _BLOCK)
    blocks = jnp.pad(mask, (0, -size % block)).reshape(-1, block)

    def write(carry: PyTree, active: Array) -> tuple[PyTree, None]:
        found, start, positions = carry
        ranks = jnp.cumsum(active, dtype=jnp.int32)
        places = jnp.where(active, found + ranks - 1, count)
        here = start + jnp.arange(block, dtype=jnp.int32)
        positions = positions.at[places].set(here, mode="drop")
        return (found + ranks[-1], start + block, positions), None

    first = (jnp.int32(0), jnp.int32(0), jnp.full(count, size, jnp.int32))
    return jax.lax.scan(write, first, blocks)[0][2]


def to_flat(tree: PyTree, indices: PyTree) -> PyTree:
    """Take the active entries of each leaf.

    Args:
      tree: pytree of arrays of the parameters' shapes.
      indices: from `active_indices` or `whole_indices`.

    Returns:
      Pytree of the same structure: arrays [active], and leaves of whole layers as they are.
    """

    def take(index: Array, leaf: Array) -> Array:
        if index.ndim == 0:
            return leaf
        return leaf.reshape(-1).at[index].get(mode="fill", fill_value=0, **_SORTED)

    return jax.tree.map(take, indices, tree)


def to_whole(flat: PyTree, indices: PyTree, like: Params) -> PyTree:
    """Put the entries of a flat tree back in their places, with exact zeros everywhere else.

    Args:
      flat: pytree from `to_flat`.
      indices: from `active_indices` or `whole_indices`.
      like: pytree of arrays or `jax.ShapeDtypeStruct` of the shapes to return.

    Returns:
      Pytree of arrays of these shapes and of the dtypes of `flat`.

    Examples:
      >>> params = {"kernel": jnp.array([[5.0, 6.0], [7.0, 8.0]])}
      >>> indices = active_indices({"kernel": jnp.eye(2, dtype=bool)})
      >>> to_whole(to_flat(params, indices), indices, params)["kernel"].tolist()
      [[5.0, 0.0], [0.0, 8.0]]
    """

    def put(index: Array, leaf: Array, full: Leaf) -> Array:
        if index.ndim == 0:
            return leaf
        zeros = jnp.zeros(full.size, leaf.dtype)
        return zeros.at[index].set(leaf, mode="drop", **_SORTED).reshape(full.shape)

    return jax.tree.map(put, indices, flat, like)


def flat_masks(masks: Masks, indices: PyTree) -> Masks:
    """Return the masks of a tree with these indices.

    Args:
      masks: masks of the whole tree.
      indices: from `active_indices` or `whole_indices`.

    Returns:
      `masks` if all layers are whole. Otherwise a constant 0-d True for dense layers and for flat
      layers, which are entirely active: the compiled program then does no masking.
    """
    if not is_flat(indices):
        return masks
    return jax.tree.map(
        lambda index, mask: jnp.array(True) if index.ndim or not mask.ndim else mask, indices, masks
    )


def places_among(old: PyTree, new: PyTree, like: Params) -> PyTree:
    """Find where each of the new indices was among the old ones.

    Args:
      old: indices.
      new: indices of the same layers, with the same counts.
      like: pytree of arrays or `jax.ShapeDtypeStruct` of whole shapes.

    Returns:
      Pytree, for `move`: int32 [active] with `old[result] == new`, or -1 where `old` doesn't have
      the new index; a 0-d True for layers that are whole.
    """

    def places(old: Array, new: Array, full: Leaf) -> Array:
        return positions_in(old, new, full.size) if new.ndim else new

    return jax.tree.map(places, old, new, like)


def move(leaf: Array, fresh: Array, place: Array) -> Array:
    """Move flat entries to new indices.

    Args:
      leaf: [..., active], at the old indices.
      fresh: [..., active], the entries of weights that weren't active before.
      place: leaf of the result of `places_among`.

    Returns:
      Array [..., active] at the new indices; `leaf` itself if the layer is whole.
    """
    return leaf if place.ndim == 0 else jnp.where(place >= 0, leaf[..., place], fresh)


def positions_in(old: Array, new: Array, size: int) -> Array:
    """Find where each new index was among the old ones.

    Args:
      old: int32 [active], flat positions.
      new: int32 [active], flat positions.
      size: number of weights of the layer.

    Returns:
      Int32 [active]: `old[result] == new`, or -1 where `old` doesn't have the new index.
    """
    nowhere = jnp.full(size, -1, jnp.int32)
    order = jnp.arange(old.size, dtype=jnp.int32)
    return nowhere.at[old].set(order, mode="drop", **_SORTED).at[new].get(mode="clip", **_SORTED)
