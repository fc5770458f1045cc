"""The unit that is pruned and regrown: single weights, blocks of channels, or whole channels.

A structure converts scores of weights to scores of units, and masks of units to masks of weights.
Prune and regrow (`topology`) work on units without knowing what a unit is. Masks keep their
contract: full-shape booleans, constant within a unit.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.sparsity.masks import apply_masks, is_sparsifiable, path_name, target_active
from sparsejax.types import (
    Array,
    Gradients,
    IsSparsifiable,
    KeyPath,
    Leaf,
    Masks,
    NumpyArray,
    Params,
    PRNGKey,
    PyTree,
    Scores,
    Shape,
)

logger = logging.getLogger(__name__)

Units: TypeAlias = PyTree  # an array [units] for each array of params, or for each group


class Structure(NamedTuple):
    """How weights are grouped into units; all functions are pure and may be traced.

    Attributes:
      name: `weight`, `block` or `channel`.
      pool: `pool(params) -> scores`: magnitude of every unit, a pytree of arrays [units].
      grow_scores: `grow_scores(gradients) -> scores` of the same shapes: mean |gradient|.
      unit_masks: `unit_masks(masks) -> booleans` of the same shapes; 0-d masks stay 0-d.
      spread: `spread(unit_masks, params) -> masks`, full-shape; uses only the shapes of `params`.
      probe: `probe(key, params, masks) -> params` at which the dense gradient is taken: the
        same function of the inputs, with a gradient for every unit that may grow.
      revive: `revive(key, params, before, after) -> params` under the masks `after`, with initial
        values for units that are newly active since `before`; `key` is that of `probe`.
    """

    name: str
    pool: Callable[[Params], Scores]
    grow_scores: Callable[[Gradients], Scores]
    unit_masks: Callable[[Masks], Units]
    spread: Callable[[Units, Params], Masks]
    probe: Callable[[PRNGKey, Params, Masks], Params] = lambda key, params, masks: params
    revive: Callable[[PRNGKey, Params, Masks, Masks], Params] = lambda key, params, before, after: (
        apply_masks(params, after)
    )


def _magnitudes(tree: PyTree) -> Scores:
    return jax.tree.map(jnp.abs, tree)


WEIGHT = Structure(
    "weight", _magnitudes, _magnitudes, lambda masks: masks, lambda units, params: units
)


def block(size: int) -> Structure:
    """Return the structure of blocks: `size` input by `size` output channels, with all taps.

    A block's score is the mean over its weights. Like a weight, it is regrown at zero. In a layer
    whose channels aren't multiples of `size`, single weights move; see `log_exceptions`.

    Args:
      size: side of a block, in channels.

    Returns:
      Structure for kernels [..., input channels, output channels].

    Example:
      >>> kernel = {"kernel": jnp.ones((3, 3, 4, 6))}
      >>> block(2).pool(kernel)["kernel"].shape
      (2, 3)
    """

    def pool(leaf: Array) -> Array:
        if not fits_blocks(leaf.shape, size):
            return jnp.abs(leaf)
        rows, columns = leaf.shape[-2] // size, leaf.shape[-1] // size
        parts = jnp.abs(leaf).reshape(-1, rows, size, columns, size)
        return parts.mean((0, 2, 4), dtype=jnp.promote_types(leaf.dtype, jnp.float32))

    def unit_mask(mask: Array) -> Array:
        if not fits_blocks(mask.shape, size):
            return mask
        return mask.reshape(-1, *mask.shape[-2:])[0, ::size, ::size]

    def spread(units: Array, leaf: Leaf) -> Array:
        if units.ndim == 0 or not fits_blocks(leaf.shape, size):
            return units
        wide = jnp.repeat(jnp.repeat(units, size, axis=0), size, axis=1)
        return jnp.broadcast_to(wide, leaf.shape)

    pool_all = lambda tree: jax.tree.map(pool, tree)  # noqa: E731
    return Structure(
        "block",
        pool_all,
        pool_all,
        lambda masks: jax.tree.map(unit_mask, masks),
        lambda units, params: jax.tree.map(spread, units, params),
    )


def fits_blocks(shape: Shape, size: int) -> bool:
    """Return whether an array of this shape divides into blocks of its last two dimensions."""
    return len(shape) >= 2 and shape[-2] % size == 0 and shape[-1] % size == 0


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


def channel(groups: ChannelGroups, init: Callable[[PRNGKey], Params]) -> Structure:
    """Return the structure of channels: units that extend over several arrays.

    If a unit is inactive, so are all weights that lead into it and out of it: the network is one
    without the unit. A unit's score is the mean over its weights. It is regrown with fresh incoming
    and zero outgoing weights. The gradient of an inactive unit is zero by construction, so growth
    scores are taken with every inactive unit given the incoming weights that it would be regrown
    with: the network's outputs don't change, and the gradient of the outgoing weights measures how
    useful a unit is. Arrays in no group stay dense, as do those of one dimension.

    Args:
      groups: `{name: [Member, ...]}`.
      init: `init(key) -> params`, to draw fresh parameters.

    Returns:
      Structure; its units are `{name: array [units]}`.
    """
    members = _members_by_path(groups)

    def spread(units: Units, params: Params) -> Masks:
        def leaf_mask(path: KeyPath, leaf: Leaf) -> Array:
            name = path_name(path)
            if name not in members or len(leaf.shape) < 2:
                return jnp.asarray(True)
            return jnp.broadcast_to(_along(members[name], units, leaf.shape), leaf.shape)

        return jax.tree_util.tree_map_with_path(leaf_mask, params)

    def begin(key: PRNGKey, params: Params, absent: Units, active: Units) -> Params:
        """Give `absent` units fresh incoming weights from `active` units."""

        def leaf(path: KeyPath, param: Array, fresh: Array) -> Array:
            name = path_name(path)
            if name not in members or param.ndim < 2:
                return param
            parts = members[name]
            into = _along(parts, absent, param.shape, lambda m: m.incoming, otherwise=False)
            out_of = _along(parts, absent, param.shape, lambda m: not m.incoming, otherwise=False)
            there = _along(parts, active, param.shape)
            return jnp.where(into & ~out_of & there, fresh, param)

        fresh = init(jax.random.fold_in(key, _FRESH))
        return jax.tree_util.tree_map_with_path(leaf, params, fresh)

    def probe(key: PRNGKey, params: Params, masks: Masks) -> Params:
        inactive = {name: ~units for name, units in _unit_masks(groups, masks).items()}
        everywhere = {name: jnp.ones_like(units) for name, units in inactive.items()}
        return begin(key, params, inactive, everywhere)

    def revive(key: PRNGKey, params: Params, before: Masks, after: Masks) -> Params:
        old, new = _unit_masks(groups, before), _unit_masks(groups, after)
        returned = {name: new[name] & ~old[name] for name in groups}
        return begin(key, apply_masks(params, after), returned, new)

    return Structure(
        "channel",
        pool=lambda params: _mean_over(groups, params, _any),
        grow_scores=lambda gradients: _mean_over(groups, gradients, lambda m: not m.incoming),
        unit_masks=lambda masks: _unit_masks(groups, masks),
        spread=spread,
        probe=probe,
        revive=revive,
    )


_FRESH = 2**31 - 1  # folded into keys; larger than any index of a layer


def _any(member: Member) -> bool:
    del member
    return True


def _mean_over(
    groups: ChannelGroups, tree: PyTree, accept: Callable[[Member], bool]
) -> dict[str, Array]:
    """Average |values| over the weights that belong to a unit, by group."""
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


def _unit_masks(groups: ChannelGroups, masks: Masks) -> dict[str, Array]:
    """Return which units of each group are active."""
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


def _members_by_path(groups: ChannelGroups) -> dict[str, list[tuple[str, Member]]]:
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
    leaves, members = dict(_named(params)), _members_by_path(groups)
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


def log_exceptions(
    structure: str,
    params: Params,
    size: int | None = None,
    groups: ChannelGroups | None = None,
    *,
    is_sparsifiable: IsSparsifiable = is_sparsifiable,
) -> list[str]:
    """Log which sparsifiable layers a structure can't divide, and how they are treated instead.

    Args:
      structure: `block` or `channel`; nothing is logged for `weight`.
      params: pytree of arrays or `jax.ShapeDtypeStruct`.
      size: side of a block, if `structure` is `block`.
      groups: `{name: [Member, ...]}`, if `structure` is `channel`.
      is_sparsifiable: predicate of path and leaf that selects the layers to check.

    Returns:
      Names of the layers.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    layers = {path_name(path): leaf.shape for path, leaf in leaves if is_sparsifiable(path, leaf)}
    if structure == "block" and size is not None:
        rule = f"move single weights: channels aren't multiples of {size}"
        others = [name for name, shape in layers.items() if not fits_blocks(shape, size)]
    elif structure == "channel":
        rule = "stay dense: they belong to no group of channels"
        others = [name for name in layers if name not in _members_by_path(groups or {})]
    else:
        return []
    if others:
        logger.info("structure %s: %d layers %s: %s", structure, len(others), rule, others)
    return others
