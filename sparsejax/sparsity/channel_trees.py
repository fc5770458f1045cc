"""Compact trees of channels: arrays that are narrower along the axes of their groups.

Indices are `{group: int32 [active units]}`, ascending. Along each of its axes, a compact array has
the positions of active units and those of no unit, in ascending order.
"""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.sparsity import channels
from sparsejax.sparsity.channels import ChannelGroups
from sparsejax.sparsity.compact_trees import CompactTrees
from sparsejax.sparsity.flat import active_indices, positions_in
from sparsejax.sparsity.masks import path_name, target_active
from sparsejax.types import Array, KeyPath, Masks, NumpyArray, Params, PyTree, Sparsities, Units

_Key: TypeAlias = tuple[tuple[str, bytes], ...]  # of axes on which units lie alike


class _Axis(NamedTuple):
    """Where units lie on an axis.

    Attributes:
      length: number of positions.
      tables: `{group: positions of each unit}`, int32 [units, positions of a unit].
      others: positions of no unit, int32.
    """

    length: int
    tables: Mapping[str, NumpyArray]
    others: NumpyArray


def channel_trees(
    groups: ChannelGroups, params: Params, sparsities: Sparsities
) -> CompactTrees | None:
    """Return the functions of compact trees of channels (see `CompactTrees`).

    Args:
      groups: `{name: [Member, ...]}`.
      params: pytree of arrays or `jax.ShapeDtypeStruct`, for their shapes.
      sparsities: share of inactive units, `{group: float}`.

    Returns:
      CompactTrees; None if the shapes would depend on which units are active, since a group has
      units of different widths, or an index belongs to units of two groups.
    """
    sizes = {name: channels.number_of_units(group) for name, group in groups.items()}
    counts = {name: target_active(size, sparsities[name]) for name, size in sizes.items()}
    keys, axes = _keys(groups), _axes(groups, sizes)
    if axes is None:
        return None

    def spread(indices: Units, masks: Masks) -> Masks:
        del masks  # no layer is held as it is
        units = {
            name: jnp.zeros(size, bool).at[indices[name]].set(True) for name, size in sizes.items()
        }
        return channels.spread(groups, units, params)

    def positions(indices: Units) -> dict[_Key, Array]:
        return {key: _positions(axis, indices) for key, axis in axes.items()}

    def shrink(tree: PyTree, indices: Units) -> PyTree:
        kept = positions(indices)

        def leaf(path: KeyPath, x: Array) -> Array:
            for axis, key in keys.get(path_name(path), {}).items():
                x = jnp.take(x, kept[key], axis, mode="clip", indices_are_sorted=True)
            return x

        return jax.tree_util.tree_map_with_path(leaf, tree)

    def expand(compact: PyTree, indices: Units) -> PyTree:
        old = positions(indices)
        everywhere = {key: jnp.arange(axis.length) for key, axis in axes.items()}
        zeros = jax.tree.map(lambda x: jnp.zeros((), x.dtype), compact)
        return moved(compact, zeros, old, everywhere)

    def move(compact: PyTree, fresh: PyTree, old: Units, new: Units) -> PyTree:
        return moved(compact, fresh, positions(old), positions(new))

    def moved(
        compact: PyTree, fresh: PyTree, old: dict[_Key, Array], new: dict[_Key, Array]
    ) -> PyTree:
        places = {key: positions_in(old[key], new[key], axis.length) for key, axis in axes.items()}

        def leaf(path: KeyPath, x: Array, other: Array) -> Array:
            ours = keys.get(path_name(path), {})
            return _take({axis: places[key] for axis, key in ours.items()}, x, other)

        return jax.tree_util.tree_map_with_path(leaf, compact, fresh)

    return CompactTrees(
        indices=lambda masks: active_indices(channels.unit_masks(groups, masks), counts),
        spread=spread,
        shrink=shrink,
        expand=expand,
        move=move,
        masks=lambda masks: jax.tree.map(lambda _: jnp.asarray(True), masks),
    )


def _keys(groups: ChannelGroups) -> dict[str, dict[int, _Key]]:
    """Return the key of each axis of each array, `{path: {axis: key}}`."""
    keys: dict[str, dict[int, _Key]] = {}
    for path, members in channels.members_by_path(groups).items():
        for name, member in members:
            ours = keys.setdefault(path, {})
            units = np.asarray(member.units, np.int32).tobytes()
            ours[member.axis] = (*ours.get(member.axis, ()), (name, units))
    return keys


def _axes(groups: ChannelGroups, sizes: Mapping[str, int]) -> dict[_Key, _Axis] | None:
    """Return the axes by key; None if the number of active positions isn't constant."""
    axes: dict[_Key, _Axis] = {}
    for key in dict.fromkeys(key for ours in _keys(groups).values() for key in ours.values()):
        units = {name: np.frombuffer(data, np.int32) for name, data in key}
        owners = np.sum([of >= 0 for of in units.values()], axis=0)
        tables = {}
        for name, of in units.items():
            found = [np.flatnonzero(of == unit) for unit in range(sizes[name])]
            if len({len(places) for places in found}) > 1 or owners.max() > 1:
                return None
            tables[name] = np.array(found, np.int32)
        axes[key] = _Axis(len(owners), tables, np.flatnonzero(owners == 0).astype(np.int32))
    return axes


def _positions(axis: _Axis, indices: Units) -> Array:
    """Return the positions that a compact array has, int32, ascending."""
    active = [jnp.take(table, indices[name], 0).ravel() for name, table in axis.tables.items()]
    return jnp.sort(jnp.concatenate([axis.others, *active]))


def _take(places: Mapping[int, Array], x: Array, other: Array) -> Array:
    """Take entries of `x` along axes; those of `other` where a place is -1."""
    if not places:
        return x
    found = jnp.ones((1,) * x.ndim, bool)
    for axis, place in places.items():
        x = jnp.take(x, jnp.maximum(place, 0), axis, mode="clip")
        found &= jnp.expand_dims(place >= 0, [i for i in range(x.ndim) if i != axis])
    return jnp.where(found, x, other)
