"""Statistics of pen drawings, and distances between those of two sets.

A drawing is an array [length, 3] of absolute x, y and pen state: 0 the stroke continues, 1 last
point of its stroke, 2 no point (padding after the end). Rows that are not finite are skipped, but a
pen state of 1 there still ends the stroke. Lengths are in the units of the drawings: in those of
`sparsejax.data.strokes`, the farthest point is 10 away from the first.
"""

import numpy as np
from numpy.typing import ArrayLike

from sparsejax.types import NumpyArray

_COMPARED = ("strokes", "ink length", "stroke length", "width", "height")


def stroke_statistics(drawings: ArrayLike) -> dict[str, NumpyArray]:
    """Return statistics of each drawing.

    Args:
      drawings: [count, length, 3] floats, at least one drawing.

    Returns:
      Dictionary of [count] float64:
        strokes: number of strokes; a stroke without an end, or of a single point, counts.
        points: number of points.
        ink length: sum of the distances between consecutive points of a stroke.
        stroke length: ink length divided by strokes.
        width, height: size of the bounding box.
      All are 0 for a drawing without points.

    Raises:
      ValueError: the array has another shape, or there is no drawing.

    Examples:
      >>> corner = [[0, 0, 0], [3, 4, 1], [3, 5, 0], [3, 7, 1]]
      >>> {name: values.item() for name, values in stroke_statistics([corner]).items()}
      ... # doctest: +NORMALIZE_WHITESPACE
      {'strokes': 2.0, 'points': 4.0, 'ink length': 7.0, 'stroke length': 3.5, 'width': 3.0,
       'height': 7.0}
    """
    drawings = np.asarray(drawings, np.float64)
    if drawings.ndim != 3 or drawings.shape[-1] != 3 or not drawings.size:
        raise ValueError(
            f"drawings have shape {drawings.shape}; expected [count, length, 3], none of them 0"
        )
    count = len(drawings)
    pen = np.rint(drawings[..., 2])
    present = np.isfinite(drawings).all(-1) & (pen < 2)
    # All points of all drawings, concatenated.
    owner = np.nonzero(present)[0]
    xy = drawings[present][:, :2]
    stroke = (np.cumsum(pen == 1, axis=1) - (pen == 1))[present]
    joined = (np.diff(owner) == 0) & (np.diff(stroke) == 0)
    steps = np.where(joined, np.hypot(*np.diff(xy, axis=0).T), 0)
    first = np.append(True, ~joined)[: len(owner)]
    strokes = _sums(owner, first, count)
    ink = _sums(owner[1:], steps, count)
    low = np.where(present[..., None], drawings[..., :2], np.inf).min(1)
    high = np.where(present[..., None], drawings[..., :2], -np.inf).max(1)
    width, height = np.maximum(high - low, 0).T
    return {
        "strokes": strokes,
        "points": _sums(owner, np.ones(len(owner)), count),
        "ink length": ink,
        "stroke length": ink / np.maximum(strokes, 1),
        "width": width,
        "height": height,
    }


def compare_strokes(drawings: ArrayLike, reference: ArrayLike) -> dict[str, float]:
    """Return the Wasserstein-1 distances between the statistics of two sets of drawings.

    The number of points is left out: it is drawn from the training data before the network runs, so
    its distance says nothing about the model. Since points of real drawings are evenly spaced, this
    partly holds for the ink length too.

    Args:
      drawings: [count, length, 3] floats, see `stroke_statistics`.
      reference: [other count, other length, 3].

    Returns:
      Distances in the units of each statistic: `W1[strokes]`, `W1[ink length]`,
      `W1[stroke length]`, `W1[width]`, `W1[height]`.

    Raises:
      ValueError: see `stroke_statistics`.
    """
    from scipy.stats import wasserstein_distance

    ours, theirs = stroke_statistics(drawings), stroke_statistics(reference)
    return {
        f"W1[{name}]": float(wasserstein_distance(ours[name], theirs[name])) for name in _COMPARED
    }


def _sums(owner: NumpyArray, values: NumpyArray, count: int) -> NumpyArray:
    """Sum values per drawing, [count] float64; `owner` is the drawing of each value."""
    return np.bincount(owner, values, minlength=count).astype(np.float64)
