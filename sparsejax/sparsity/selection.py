"""Exact selection of the k largest scores, by bisection on the bits of the scores.

Sorting a large layer is what makes a topology update slow. The k-th largest value can be found
without it: floats of the same width, viewed as integers, keep their order, so the value is built
bit by bit, with one counting pass per bit. A second bisection over flat indices breaks ties.
`k` may be traced, so one compiled function serves every drop fraction.
"""

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.types import Array, ArrayLike


def _ordered_bits(scores: Array) -> Array:
    """Map floats to unsigned integers in the same order, NaN to 1; 0 is left unused.

    Reads bits, not values: on a CPU a denormal compares equal to zero.
    """
    width = jnp.dtype(scores.dtype).itemsize * 8
    unsigned = jnp.dtype(f"uint{width}")
    sign = jnp.array(1 << (width - 1), unsigned)
    infinity = lax.bitcast_convert_type(jnp.array(jnp.inf, scores.dtype), unsigned)
    bits = lax.bitcast_convert_type(scores, unsigned)
    is_nan = (bits & ~sign) > infinity
    bits = jnp.where(bits == sign, jnp.zeros_like(bits), bits)
    ordered = jnp.where(bits & sign, ~bits, bits | sign)
    ordered = jnp.where(is_nan, jnp.ones_like(bits), ordered)
    return ordered.astype(jnp.promote_types(unsigned, jnp.uint32))


def _kth_largest(keys: Sequence[Array], count: Array, width: int) -> Array:
    """Return the largest threshold that at least `count` of the unsigned `keys` reach."""
    dtype = keys[0].dtype

    def try_bit(i: Array, threshold: Array) -> Array:
        candidate = threshold | (jnp.ones((), dtype) << (width - 1 - i).astype(dtype))
        reached = _count_all([key >= candidate for key in keys])
        return jnp.where(reached >= count, candidate, threshold)

    return lax.fori_loop(0, width, try_bit, jnp.zeros((), dtype))


def _first(ties: Array, count: Array) -> Array:
    """Keep the first `count` True entries of the flat boolean array `ties`."""
    index = jnp.arange(ties.size, dtype=jnp.int32)

    def halve(bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        enough = _count(ties & (index < middle)) >= count
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    size = jnp.int32(ties.size)
    all_wanted = _count(ties) == count
    end, _ = lax.while_loop(
        lambda bounds: bounds[0] < bounds[1], halve, (jnp.where(all_wanted, size, 0), size)
    )
    return ties & (index < end)


def _count(booleans: Array) -> Array:
    return jnp.sum(booleans, dtype=jnp.int32)


def _count_all(arrays: Sequence[Array]) -> Array:
    return functools.reduce(operator.add, map(_count, arrays))


def select_top(scores: ArrayLike, count: ArrayLike, *, candidates: Array | None = None) -> Array:
    """Select exactly `count` of the largest scores.

    Ties go to the lowest flat index; NaN ranks below every number; -0.0 ties with 0.0. Neither the
    scale nor the precision of the scores matters, because their bits are compared and nothing is
    computed with them.

    Args:
      scores: floating-point array of any shape, fewer than 2**31 entries. Integers and
        8-bit floats are compared as float32.
      count: number of entries to select, Python or traced integer; limited to
        `[0, number of candidates]`.
      candidates: boolean array of the same shape; only its True entries can be selected.
        Default: all.

    Returns:
      Boolean array of the shape of `scores` with exactly `count` True entries.

    Examples:
      >>> select_top(jnp.array([1.0, 3.0, 3.0, 2.0]), 2).tolist()
      [False, True, True, False]
      >>> select_top(jnp.array([1.0, 1.0, 1.0]), 2).tolist()
      [True, True, False]
    """
    scores = jnp.asarray(scores)
    among = None if candidates is None else [candidates]
    return select_top_overall([scores], count, candidates=among)[0]


def select_top_overall(
    scores: Sequence[Array], count: ArrayLike, *, candidates: Sequence[Array] | None = None
) -> list[Array]:
    """Select exactly `count` of the largest scores of several arrays together.

    Args:
      scores: arrays as for `select_top`; they have fewer than 2**31 entries in all.
      count: as for `select_top`.
      candidates: boolean arrays of the same shapes. Default: all.

    Returns:
      Boolean arrays of the shapes of `scores`, with `count` True entries in all. Ties go to the
      first array, then to the lowest flat index.

    Examples:
      >>> of_both = select_top_overall([jnp.array([1.0, 5.0]), jnp.array([2.0, 4.0, 3.0])], 3)
      >>> [selected.tolist() for selected in of_both]
      [[False, True], [False, True, True]]
    """
    dtype = jnp.result_type(*scores)
    if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize < 2:
        dtype = jnp.dtype(jnp.float32)
    keys = [_ordered_bits(score.astype(dtype)).reshape(-1) for score in scores]
    if candidates is not None:
        pairs = zip(keys, candidates, strict=True)
        keys = [jnp.where(among.reshape(-1), key, jnp.zeros_like(key)) for key, among in pairs]
    count = jnp.clip(jnp.asarray(count, jnp.int32), 0, _count_all([key > 0 for key in keys]))
    threshold = _kth_largest(keys, count, dtype.itemsize * 8)
    above = [key > threshold for key in keys]
    left, selected = count - _count_all(above), []
    for score, key, larger in zip(scores, keys, above, strict=True):
        ties = key == threshold
        taken = jnp.minimum(left, _count(ties)) if len(keys) > 1 else left
        selected.append((larger | _first(ties, taken)).reshape(score.shape))
        left -= taken
    return selected


def select_top_columns(
    scores: Array, counts: ArrayLike, *, candidates: Array | None = None
) -> Array:
    """Select the largest scores of each column, as `select_top` does of a whole array.

    Args:
      scores: floating-point array [rows, columns].
      counts: number of entries to select in each column, integers [columns], or one for all.
      candidates: boolean array [rows, columns]; only its True entries can be selected.

    Returns:
      Boolean array [rows, columns].

    Examples:
      >>> select_top_columns(jnp.array([[1.0, 3.0], [2.0, 0.0]]), jnp.array([1, 2])).tolist()
      [[False, True], [True, True]]
    """
    if candidates is None:
        candidates = jnp.ones(scores.shape, bool)
    counts = jnp.broadcast_to(jnp.asarray(counts, jnp.int32), scores.shape[1:])

    def select(column: Array, count: Array, among: Array) -> Array:
        return select_top(column, count, candidates=among)

    return jax.vmap(select, (1, 0, 1), 1)(scores, counts, candidates)
