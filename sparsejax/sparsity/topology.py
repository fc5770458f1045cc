"""Prune and regrow: pure functions from masks to masks.

Each but `keep_overall` works leaf by leaf, and all use only scores, so the caller decides what a
score stands for (here, a single weight): pooled scores of blocks or channels go through the same
functions, and the resulting masks are spread over their weights. Params may be sharded over a mesh
of automatic axes (`jax.sharding.AxisType.Auto`), and masks keep that sharding.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from sparsejax.sparsity.masks import count_active
from sparsejax.sparsity.selection import select_top, select_top_columns, select_top_overall
from sparsejax.types import Array, ArrayLike, Masks, Params, PyTree, Scores

__all__ = [
    "keep",
    "keep_columns",
    "keep_overall",
    "prune",
    "regrow",
    "rewire",
    "rewire_columns",
    "select_top",
]


def prune(params: Params, masks: Masks, fraction: ArrayLike) -> Masks:
    """Deactivate the fraction of each layer's active weights with the smallest magnitude.

    Args:
      params: pytree of arrays; only active weights matter.
      masks: masks of `params`; 0-d masks pass unchanged.
      fraction: drop fraction in [0, 1], Python or traced scalar; `floor(fraction * active)`
        weights are deactivated, computed in float32.

    Returns:
      Masks with fewer active weights. Ties keep the lowest flat index; NaN goes first.

    Raises:
      AssertionError: a full-shape mask doesn't have the shape of its parameter.
    """

    def prune_leaf(param: Array, mask: Array) -> Array:
        if mask.ndim == 0:
            return mask
        chex.assert_equal_shape([param, mask])
        active = jnp.sum(mask, dtype=jnp.int32)
        dropped = jnp.floor(jnp.float32(fraction) * active.astype(jnp.float32)).astype(jnp.int32)
        return select_top(jnp.abs(param), active - dropped, candidates=mask)

    return jax.tree.map(prune_leaf, params, masks)


def keep(params: Params, masks: Masks, counts: PyTree) -> Masks:
    """Keep the given number of active weights of largest magnitude in each layer.

    Args:
      params: pytree of arrays; only active weights matter.
      masks: masks of `params`; 0-d masks pass unchanged.
      counts: pytree of integer scalars, Python or traced; at most as many as are active are kept.

    Returns:
      Masks; ties as in `prune`.

    Examples:
      >>> params, masks = {"kernel": jnp.array([3.0, -4.0, 1.0])}, {"kernel": jnp.ones(3, bool)}
      >>> keep(params, masks, {"kernel": 2})["kernel"].tolist()
      [True, True, False]
    """

    def keep_leaf(param: Array, mask: Array, count: ArrayLike) -> Array:
        if mask.ndim == 0:
            return mask
        chex.assert_equal_shape([param, mask])
        return select_top(jnp.abs(param), count, candidates=mask)

    return jax.tree.map(keep_leaf, params, masks, counts)


def keep_overall(params: Params, masks: Masks, counts: PyTree) -> Masks:
    """Keep the active weights of largest magnitude in all layers together.

    Args:
      params: pytree of arrays; only active weights matter.
      masks: masks of `params`; 0-d masks pass unchanged.
      counts: pytree of integer scalars; their sum over layers is kept, wherever the weights are.

    Returns:
      Masks; ties go to the first layer.

    Examples:
      >>> params = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([1.0, -5.0, 2.0])}
      >>> masks = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
      >>> keep_overall(params, masks, {"a": 1, "b": 1})["b"].tolist()
      [False, True, False]
    """
    layers = zip(*map(jax.tree.leaves, (params, masks, counts)), strict=True)
    sparse = [layer for layer in layers if layer[1].ndim]
    if not sparse:
        return masks
    for param, mask, _ in sparse:
        chex.assert_equal_shape([param, mask])
    weights, candidates, numbers = zip(*sparse, strict=True)
    kept = iter(select_top_overall([*map(jnp.abs, weights)], sum(numbers), candidates=candidates))
    return jax.tree.map(lambda mask: next(kept) if mask.ndim else mask, masks)


def keep_columns(params: Params, masks: Masks, counts: PyTree) -> Masks:
    """Keep as `keep` does, the same number in each column of an array of two dimensions.

    Args:
      params: pytree of arrays; of two dimensions, [rows, columns]. Others are pruned as by `keep`.
      masks: masks of `params`.
      counts: pytree of integer scalars; those of columns are rounded up.

    Returns:
      Masks.
    """

    def keep_leaf(param: Array, mask: Array, count: ArrayLike) -> Array:
        if mask.ndim != 2:
            return keep(param, mask, count)
        chex.assert_equal_shape([param, mask])
        of_column = -(-jnp.asarray(count, jnp.int32) // mask.shape[1])
        return select_top_columns(jnp.abs(param), of_column, candidates=mask)

    return jax.tree.map(keep_leaf, params, masks, counts)


def regrow(masks: Masks, scores: Scores, counts: PyTree, *, exclude: Masks | None = None) -> Masks:
    """Activate in each layer the inactive weights with the largest scores.

    Args:
      masks: masks; their active weights are kept and are never candidates.
      scores: pytree of arrays of the masks' shapes (anything where the mask is 0-d).
      counts: pytree of integer scalars: number of weights to activate in each layer.
      exclude: optional pytree of boolean arrays: these weights rank after all other
        candidates, and are taken only to reach the count.

    Returns:
      Masks with exactly `counts` more active weights, as far as there are candidates.

    Raises:
      AssertionError: a full-shape mask doesn't have the shape of its scores.
    """

    def regrow_leaf(
        mask: Array, score: Array, count: ArrayLike, excluded: Array | None = None
    ) -> Array:
        if mask.ndim == 0:
            return mask
        chex.assert_equal_shape([mask, score])
        if excluded is None:
            return mask | select_top(score, count, candidates=~mask)
        preferred = select_top(score, count, candidates=~mask & ~excluded)
        missing = count - jnp.sum(preferred, dtype=jnp.int32)
        return mask | preferred | select_top(score, missing, candidates=~mask & excluded)

    trees = (masks, scores, counts) if exclude is None else (masks, scores, counts, exclude)
    return jax.tree.map(regrow_leaf, *trees)


def rewire(params: Params, masks: Masks, grow_scores: Scores, fraction: ArrayLike) -> Masks:
    """Prune by magnitude, then regrow the same number of weights by `grow_scores`, per layer.

    The drop-and-grow step of RigL (Evci et al. 2020, algorithm 1) and SET (Mocanu et al.
    2018). Growth candidates are all weights that pruning did not keep, including those just
    dropped.

    Args:
      params: pytree of arrays.
      masks: masks of `params`.
      grow_scores: pytree of scores: |dense gradient| for RigL, random for SET.
      fraction: drop fraction in [0, 1], Python or traced scalar.

    Returns:
      Masks with exactly as many active weights in each layer as before.

    Examples:
      >>> params = {"kernel": jnp.array([[3.0, 1.0], [0.0, 0.0]])}
      >>> masks = {"kernel": jnp.array([[True, True], [False, False]])}
      >>> gradients = {"kernel": jnp.array([[0.1, 0.1], [0.2, 5.0]])}
      >>> rewire(params, masks, gradients, 0.5)["kernel"].tolist()
      [[True, False], [False, True]]
    """
    kept = prune(params, masks, fraction)
    counts = jax.tree.map(jnp.subtract, count_active(params, masks), count_active(params, kept))
    return regrow(kept, grow_scores, counts)


def rewire_columns(params: Params, masks: Masks, grow_scores: Scores, fraction: ArrayLike) -> Masks:
    """Prune by magnitude over each layer, then regrow in each column as many as it lost.

    For layers whose columns must keep their number of active entries (constant fan-in, as in SRigL,
    Lasby et al. 2023). Pruning doesn't look at columns: a floor of a fraction of each column would
    be zero for columns of few entries, and nothing would ever move.

    Args:
      params: pytree of arrays; of two dimensions, [rows, columns], where columns are kept. Others
        are rewired as by `rewire`.
      masks: masks of `params`.
      grow_scores: as for `rewire`, floating-point.
      fraction: as for `rewire`.

    Returns:
      Masks with exactly as many active entries in each column and in each layer as before.

    Examples:
      >>> params = {"grid": jnp.array([[3.0, 1.0], [0.0, 0.0]])}
      >>> masks = {"grid": jnp.array([[True, True], [False, False]])}
      >>> gradients = {"grid": jnp.array([[0.1, 0.1], [5.0, 0.2]])}
      >>> rewire_columns(params, masks, gradients, 0.5)["grid"].tolist()
      [[True, False], [False, True]]
    """

    def rewire_grid(param: Array, mask: Array, score: Array) -> Array:
        kept = prune(param, mask, fraction)
        lost = jnp.sum(mask, 0, dtype=jnp.int32) - jnp.sum(kept, 0, dtype=jnp.int32)
        return kept | select_top_columns(score, lost, candidates=~kept)

    leaves, treedef = jax.tree.flatten(masks)
    layers = list(zip(jax.tree.leaves(params), leaves, jax.tree.leaves(grow_scores), strict=True))
    is_grid = [mask.ndim == 2 for mask in leaves]
    grids = [layer for layer, ours in zip(layers, is_grid, strict=True) if ours]
    rewired = iter(jax.vmap(rewire_grid)(*_stack(grids))) if grids else iter(())
    after = [
        next(rewired)[: mask.shape[0], : mask.shape[1]] if ours else rewire(*layer, fraction)
        for layer, mask, ours in zip(layers, leaves, is_grid, strict=True)
    ]
    return jax.tree.unflatten(treedef, after)


def _stack(layers: Sequence[tuple[Array, Array, Array]]) -> tuple[Array, Array, Array]:
    """Stack params, masks and scores of grids, so that one program selects for all layers.

    What fills up the smaller grids is inactive and ranks last, after their own entries.
    """
    for layer in layers:
        chex.assert_equal_shape(layer)
    rows, columns = (max(mask.shape[axis] for _, mask, _ in layers) for axis in (0, 1))

    def fill(x: Array, value: ArrayLike) -> Array:
        missing = ((0, rows - x.shape[0]), (0, columns - x.shape[1]))
        return jnp.pad(x, missing, constant_values=value)

    params, masks, scores = zip(*layers, strict=True)
    return (
        jnp.stack([fill(x, 0) for x in params]),
        jnp.stack([fill(x, False) for x in masks]),
        jnp.stack([fill(x, jnp.nan) for x in scores]),
    )
