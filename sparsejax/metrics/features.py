"""Sets of features [count, dim]: checks, blocks of rows, distances between rows."""

import numpy as np

from sparsejax.types import NumpyArray

BLOCK = 2048  # number of rows that are converted to float64 at once


def checked(
    sets: dict[str, NumpyArray], minimum: int, reason: str = "for a covariance"
) -> list[NumpyArray]:
    """Return sets of features as arrays, checked.

    Args:
      sets: `{name: [count, dim] numbers}`; names are for messages.
      minimum: the smallest number of rows that each needs.
      reason: what the rows are needed for, for the message.

    Raises:
      ValueError: wrong shape, not real numbers, different dims, too few rows, or numbers that
        aren't finite.
    """
    arrays = {name: np.asarray(rows) for name, rows in sets.items()}
    for name, rows in arrays.items():
        if rows.ndim != 2 or 0 in rows.shape[1:]:
            raise ValueError(f"{name} of shape {rows.shape}; accepted: [count, dim]")
        if not np.can_cast(rows.dtype, np.float64, "same_kind"):
            raise ValueError(f"{name} of dtype {rows.dtype}; accepted: real numbers")
    shapes = " and ".join(f"{name} {list(rows.shape)}" for name, rows in arrays.items())
    if len({rows.shape[1] for rows in arrays.values()}) > 1:
        raise ValueError(f"{shapes} differ in dim; accepted: equal dims")
    if min(map(len, arrays.values())) < minimum:
        least = f"{minimum} or more rows" + (" in each" if len(arrays) > 1 else "")
        raise ValueError(f"too few rows, {shapes}; accepted: {least}, {reason}")
    for name, rows in arrays.items():
        bad = sum(np.count_nonzero(~np.isfinite(rows[block]).all(axis=1)) for block in blocks(rows))
        if bad:
            raise ValueError(f"{name} has {bad} rows that aren't finite; accepted: finite numbers")
    return list(arrays.values())


def blocks(rows: NumpyArray) -> list[slice]:
    """Return the slices that cut rows into blocks of `BLOCK`."""
    return [slice(start, start + BLOCK) for start in range(0, len(rows), BLOCK)]


def squared_distances(x: NumpyArray, y: NumpyArray) -> NumpyArray:
    """Return the squared distances [rows of x, rows of y]; rounding errors of equal rows become 0.

    Args:
      x: [count, dim] float64.
      y: [other count, dim] float64.
    """
    norms = np.einsum("id,id->i", x, x)[:, None] + np.einsum("id,id->i", y, y)
    squared = x @ y.T
    squared *= -2
    squared += norms
    norms *= x.shape[1] * np.finfo(np.float64).eps
    squared[squared <= norms] = 0
    return squared
