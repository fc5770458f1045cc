"""Channels as units: which parts of which arrays belong to a channel.

Units of channels are `{group: array [units]}`. If a unit is inactive, so are all weights that lead
into it and out of it, its biases and scales included: the network is one without the unit.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.sparsity.masks import apply_masks, path_name, target_active
from sparsejax.types import (
    Array,
    KeyPath,
    Leaf,
    Masks,
    NumpyArray,
    Params,
    PRNGKey,
    PyTree,
    Shape,
    Units,
)

_FRESH = 2**31 - 1  # folded into keys; larger than any index of a layer


class Member(NamedTuple):
    """The part of a group of channels in one array.

    Attributes:
      path: path of the array, names joined by slashes.
      axis: the axis whose indices belong to units.
      units: the unit of each index, [length of the axis] int; -1 for none.
      incoming: whether the weights lead into the unit or out of it.
    """

    path: str
    axis: int
    units: NumpyArray
    incoming: bool


ChannelGroups: TypeAlias = Mapping[str, Sequence[Member]]


def spread(groups: ChannelGroups, units: Units, params: Params) -> Masks:
    """Return the full-shape masks of units; uses only the shapes of `params`.

    Biases and scales of a unit have masks, too; arrays in no group have a 0-d True.
    """
    members = members_by_path(groups)

    def leaf_mask(path: KeyPath, leaf: Leaf) -> Array:
        name = path_name(path)
        if name not in members:
            return jnp.asarray(True)
        return jnp.broadcast_to(_along(members[name], units, leaf.shape), leaf.shape)

    return jax.tree_util.tree_map_with_path(leaf_mask, params)


def complete(groups: ChannelGroups, masks: Masks, params: Params) -> Masks:
    """Add the masks of biases and scales, which older versions left dense.

    Args:
      groups: `{name: [Member, ...]}`.
      masks: masks of whole units, some of them 0-d.
      params: pytree of arrays or `jax.ShapeDtypeStruct`, for their shapes.

    Returns:
      Masks as `spread` returns them; `masks` themselves if nothing is missing.
    """
    leaves = dict(_named(masks))
    sizes = {leaves[name].ndim for name in members_by_path(groups)}
    if 0 not in sizes or len(sizes) == 1:  # complete, or dense
        return masks
    whole = spread(groups, unit_masks(groups, masks), params)
    return jax.tree.map(lambda mask, full: mask if mask.ndim else full, masks, whole)


def probe(
    groups: ChannelGroups,
    init: Callable[[PRNGKey], Params],
    key: PRNGKey,
    params: Params,
    masks: Masks,
) -> Params:
    """Return the same network with fresh incoming weights in every inactive unit.

    Args:
      groups: `{name: [Member, ...]}`.
      init: `init(key) -> params`, to draw fresh parameters.
      key: PRNG key of the topology update.
      params: pytree of arrays, masked.
      masks: masks of `params`.

    Returns:
      Params; outgoing weights of inactive units stay zero.
    """
    inactive = {name: ~units for name, units in unit_masks(groups, masks).items()}
    everywhere = {name: jnp.ones_like(units) for name, units in inactive.items()}
    return _begin(groups, init, key, params, inactive, everywhere)


def revive(
    groups: ChannelGroups,
    init: Callable[[PRNGKey], Params],
    key: PRNGKey,
    params: Params,
    before: Masks,
    after: Masks,
) -> Params:
    """Return params under the masks `after`, with fresh incoming weights in revived units.

    Args:
      groups: `{name: [Member, ...]}`.
      init: `init(key) -> params`, to draw fresh parameters.
      key: PRNG key, that of `probe`.
      params: pytree of arrays, masked.
      before: masks before the topology update.
      after: masks after it.

    Returns:
      Params, masked by `after`.
    """
    old, new = unit_masks(groups, before), unit_masks(groups, after)
    returned = {name: new[name] & ~old[name] for name in groups}
    return _begin(groups, init, key, apply_masks(params, after), returned, new)


def _begin(
    groups: ChannelGroups,
    init: Callable[[PRNGKey], Params],
    key: PRNGKey,
    params: Params,
    absent: Units,
    active: Units,
) -> Params:
    """Give `absent` units fresh incoming weights from `active` units."""
    members = members_by_path(groups)

    def leaf(path: KeyPath, param: Array, fresh: Array) -> Array:
        name = path_name(path)
        if name not in members:
            return param
        parts = members[name]
        into = _along(parts, absent, param.shape, lambda m: m.incoming, otherwise=False)
        out_of = _along(parts, absent, param.shape, lambda m: not m.incoming, otherwise=False)
        there = _along(parts, active, param.shape)
        return jnp.where(into & ~out_of & there, fresh, param)

    fresh = init(jax.random.fold_in(key, _FRESH))
    return jax.tree_util.tree_map_with_path(leaf, params, fresh)


def _any(member: Member) -> bool:
    del member
    return True


def mean_over(
    groups: ChannelGroups, tree: PyTree, accept: Callable[[Member], bool] = _any
) -> dict[str, Array]:
    """Average |values| over the weights that belong to a unit, by group; not biases and scales.

    Args:
      groups: `{name: [Member, ...]}`.
      tree: pytree of arrays in the structure of params.
      accept: which members count (default: all).

    Returns:
      `{name: float32 [units]}`.
    """
    leaves = dict(_named(tree))
    sums: dict[str, Array] = {name: jnp.zeros(()) for name in groups}
    sizes = dict.fromkeys(groups, 0)
    for name, group in groups.items():
        for member in filter(accept, group):
            leaf = leaves[member.path]
            if len(leaf.shape) < 2:
                continue
            other = tuple(axis for axis in range(leaf.ndim) if axis != member.axis)
            by_index = jnp.abs(leaf).sum(other, dtype=jnp.float32)
            count = number_of_units(group)
            sums[name] += jnp.zeros(count + 1).at[member.units].add(by_index)[:count]
            indices = np.sum(member.units >= 0) // count
            sizes[name] += indices * leaf.size // leaf.shape[member.axis]
    return {name: sums[name] / sizes[name] for name in groups}


def unit_masks(groups: ChannelGroups, masks: Masks) -> dict[str, Array]:
    """Return which units of each group are active.

    Args:
      groups: `{name: [Member, ...]}`.
      masks: full-shape masks, made of whole units.

    Returns:
      `{name: booleans [units]}`.
    """
    leaves = dict(_named(masks))

    def of(group: Sequence[Member]) -> Array:
        member = next(m for m in group if leaves[m.path].ndim)
        other = tuple(i for i in range(leaves[member.path].ndim) if i != member.axis)
        by_index = jnp.any(leaves[member.path], other)
        count = number_of_units(group)
        return jnp.zeros(count + 1, bool).at[member.units].max(by_index)[:count]

    return {name: of(group) for name, group in groups.items()}


def _along(
    members: Sequence[tuple[str, Member]],
    units: Units,
    shape: Shape,
    accept: Callable[[Member], bool] = _any,
    *,
    otherwise: bool = True,
) -> Array:
    """Spread units over one array: an array that broadcasts to `shape`."""
    result = jnp.full((1,) * len(shape), otherwise)
    for name, member in members:
        if accept(member):
            by_index = jnp.append(units[name], otherwise)[member.units]
            other = [axis for axis in range(len(shape)) if axis != member.axis]
            by_index = jnp.expand_dims(by_index, other)
            result = result & by_index if otherwise else result | by_index
    return result


def _named(tree: PyTree) -> list[tuple[str, Leaf]]:
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def members_by_path(groups: ChannelGroups) -> dict[str, list[tuple[str, Member]]]:
    """Return the members that each array has, with the names of their groups."""
    members: dict[str, list[tuple[str, Member]]] = {}
    for name, group in groups.items():
        for member in group:
            members.setdefault(member.path, []).append((name, member))
    return members


def number_of_units(group: Sequence[Member]) -> int:
    """Return the number of units of a group."""
    return int(group[0].units.max()) + 1


def channel_sparsities(groups: ChannelGroups, params: Params, sparsity: float) -> dict[str, float]:
    """Return the share of units to remove from every group, the same for all, for a sparsity.

    If both sides of a kernel are units, removing half of them leaves a quarter of the weights.
    Among the shares that whole units allow, this is the one that comes closest to `sparsity` of
    the weights in groups.

    Args:
      groups: `{name: [Member, ...]}`.
      params: pytree of arrays or `jax.ShapeDtypeStruct`.
      sparsity: in [0, 1).

    Returns:
      `{name: float}`, for a method's `init`.
    """
    leaves, members = dict(_named(params)), members_by_path(groups)
    counts = {name: number_of_units(group) for name, group in groups.items()}
    covered = [path for path in members if len(leaves[path].shape) >= 2]

    def active(share: float) -> float:
        total = 0.0
        for path in covered:
            density: dict[int, float] = {}
            for name, member in members[path]:
                # Members of one axis, such as both directions before a layer, share its length.
                kept = target_active(counts[name], share) / counts[name]
                part = float(np.mean(member.units >= 0))
                density[member.axis] = density.get(member.axis, 0.0) + kept * part
            total += math.prod(leaves[path].shape) * math.prod(density.values())
        return total

    budget = (1 - sparsity) * sum(math.prod(leaves[path].shape) for path in covered)
    finest = max(counts.values())
    shares = [i / finest for i in range(finest)]
    share = min(shares, key=lambda share: abs(active(share) - budget)) if sparsity else 0.0
    return dict.fromkeys(groups, share)
