"""Active weights alone: one flat array for each sparsified layer, and the way back.

Indices tell where the active weights are: for a sparsified layer the flat positions of its
active weights, int32 [active], in increasing order; for a layer that stays dense a 0-d True,
as in its mask. The number of active weights of a layer never changes in training, so all
shapes are static.
"""

import jax
import jax.numpy as jnp

from sparsejax.sparsity.masks import path_name

_BLOCK = 2**16
_SORTED = {"indices_are_sorted": True, "unique_indices": True}


def static_counts(masks):
    """Replace each boolean array of the masks by its number of active weights.

    Args:
      masks: masks with values that are known, not traced.

    Returns:
      Pytree with a Python int for each sparsified layer and the 0-d mask for each other one.

    Example:
      >>> static_counts({"kernel": jnp.eye(3, dtype=bool)})
      {'kernel': 3}
    """
    return jax.tree.map(lambda mask: int(jnp.sum(mask)) if jnp.ndim(mask) else mask, masks)


def active_indices(masks, counts=None):
    """Return the flat positions of the active weights.

    Args:
      masks: masks.
      counts: their `static_counts`, if `masks` are traced; counted by default.

    Returns:
      Pytree of int32 arrays [active] in increasing order; a 0-d True where the mask is 0-d.

    Raises:
      ValueError: `masks` are not traced and have other numbers of active weights.

    Example:
      >>> active_indices({"kernel": jnp.eye(3, dtype=bool)})["kernel"].tolist()
      [0, 4, 8]
    """

    def positions(path, mask, count):
        if mask.ndim == 0:
            return jnp.copy(mask)
        if not isinstance(mask, jax.core.Tracer) and (active := int(jnp.sum(mask))) != count:
            raise ValueError(f"{path_name(path)} has {active} active weights; accepted: {count}")
        return _positions(mask.reshape(-1), count)

    counts = static_counts(masks) if counts is None else counts
    return jax.tree_util.tree_map_with_path(positions, masks, counts)


@jax.jit(static_argnums=1)
def _positions(mask, count):
    """Return the positions of the `count` True entries of a flat mask, in increasing order.

    Block after block, which compiles and runs faster than `jnp.flatnonzero`: no running sum
    over the whole layer.
    """
    size = mask.size
    block = min(size, _BLOCK)
    blocks = jnp.pad(mask, (0, -size % block)).reshape(-1, block)

    def write(carry, active):
        found, start, positions = carry
        ranks = jnp.cumsum(active, dtype=jnp.int32)
        places = jnp.where(active, found + ranks - 1, count)
        here = start + jnp.arange(block, dtype=jnp.int32)
        positions = positions.at[places].set(here, mode="drop")
        return (found + ranks[-1], start + block, positions), None

    first = (jnp.int32(0), jnp.int32(0), jnp.full(count, size, jnp.int32))
    return jax.lax.scan(write, first, blocks)[0][2]


def pack(tree, indices):
    """Take the active entries of each leaf.

    Args:
      tree: pytree of arrays of the parameters' shapes.
      indices: as `active_indices` returns them.

    Returns:
      Pytree of the same structure: arrays [active], and leaves of dense layers as they are.
    """

    def take(index, leaf):
        if index.ndim == 0:
            return leaf
        return leaf.reshape(-1).at[index].get(mode="fill", fill_value=0, **_SORTED)

    return jax.tree.map(take, indices, tree)


def unpack(packed, indices, like):
    """Put packed entries back into their places; exact zeros everywhere else.

    Args:
      packed: pytree as `pack` returns it.
      indices: as `active_indices` returns them.
      like: pytree of arrays or `jax.ShapeDtypeStruct` of the shapes to return.

    Returns:
      Pytree of arrays of these shapes and of the dtypes of `packed`.

    Example:
      >>> params = {"kernel": jnp.array([[5.0, 6.0], [7.0, 8.0]])}
      >>> indices = active_indices({"kernel": jnp.eye(2, dtype=bool)})
      >>> unpack(pack(params, indices), indices, params)["kernel"].tolist()
      [[5.0, 0.0], [0.0, 8.0]]
    """

    def put(index, leaf, full):
        if index.ndim == 0:
            return leaf
        zeros = jnp.zeros(full.size, leaf.dtype)
        return zeros.at[index].set(leaf, mode="drop", **_SORTED).reshape(full.shape)

    return jax.tree.map(put, indices, packed, like)


def positions_in(old, new, size):
    """Find where each new index was among the old ones.

    Args:
      old: int32 [active], flat positions.
      new: int32 [active], flat positions.
      size: number of weights of the layer.

    Returns:
      Int32 [active]: `old[result] == new`, or -1 where `old` doesn't hold the new index.
    """
    nowhere = jnp.full(size, -1, jnp.int32)
    order = jnp.arange(old.size, dtype=jnp.int32)
    return nowhere.at[old].set(order, mode="drop", **_SORTED).at[new].get(mode="clip", **_SORTED)
