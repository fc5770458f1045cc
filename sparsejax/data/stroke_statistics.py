"""What can be counted and measured on pen drawings, and how far two sets of them are apart.

A drawing is an array [length, 3] of absolute x, y and the state of the pen: 0 the stroke goes on,
1 last point of its stroke, 2 no point (padding behind the end). A row that is not finite is no
point either, though a pen state of 1 there still ends the stroke. Lengths are in the units of the
drawings: those of `sparsejax.data.strokes` have their farthest point 10 away from the first.
"""

import numpy as np
from numpy.typing import ArrayLike

from sparsejax.types import NumpyArray

_COMPARED = ("strokes", "ink length", "stroke length", "width", "height")


def stroke_statistics(drawings: ArrayLike) -> dict[str, NumpyArray]:
    """Count and measure drawings, each by itself.

    Args:
      drawings: [count, length, 3] floats, one drawing or more.

    Returns:
      Dictionary of [count] float64:
        strokes: number of strokes; one that no pen state ends, and one of a single point, is a
          stroke too.
        points: number of points.
        ink length: sum of the distances between neighbouring points of a stroke.
        stroke length: ink length over strokes.
        width, height: of the box around all points.
      A drawing without a point has 0 in all.

    Raises:
      ValueError: the shape is another, or there is no drawing.

    Example:
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
    # All points of all drawings, one behind the other.
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
    """Return the Wasserstein-1 distances between what is measured on two sets of drawings.

    The number of points is left out: a sampler draws it from the training data before the network
    runs, so its distance says nothing of the model. As the points of real drawings are evenly
    spaced, the length of the ink has some of this too.

    Args:
      drawings: [count, length, 3] floats, see `stroke_statistics`.
      reference: [other count, other length, 3].

    Returns:
      Dictionary of floats in the units of what is compared: `W1[strokes]`, `W1[ink length]`,
      `W1[stroke length]`, `W1[width]`, `W1[height]`.

    Raises:
      ValueError: as `stroke_statistics`.
    """
    from scipy.stats import wasserstein_distance

    ours, theirs = stroke_statistics(drawings), stroke_statistics(reference)
    return {
        f"W1[{name}]": float(wasserstein_distance(ours[name], theirs[name])) for name in _COMPARED
    }


def _sums(owner: NumpyArray, values: NumpyArray, count: int) -> NumpyArray:
    """Return each drawing's sum of values, [count] float64; `owner` is the drawing of each."""
    return np.bincount(owner, values, minlength=count).astype(np.float64)
