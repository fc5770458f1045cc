"""One pen drawing as a sequence: ChiroDiff's preprocessing, and its two representations.

A preprocessed drawing is an array [points, 4] of x, y, pen, time: absolute coordinates, y down,
the first point at the origin, the farthest 10 away from it; pen 1 on the last point of each
stroke; time from 0 to 1. From it come `threeseqabs` (the points themselves) and `threeseqdel`
(the steps between them), both [points - 1, 4].

Das et al. (2023), ChiroDiff, and its published code.
"""

from collections.abc import Sequence

import numpy as np

from sparsejax.types import NumpyArray

VERSION = "chirodiff-1"  # changes with the preprocessing
REPRESENTATIONS = ("threeseqdel", "threeseqabs")
MAX_STROKES = 25
MAX_POINTS = 300  # as many or more: the drawing is left out
SPACING = 0.05  # of resampled points, in radii of the drawing
SCALE = 10.0
_TOO_MANY = f"{MAX_POINTS} points or more after resampling"
PEN_UP = 0.8  # a sampled pen value above is the end of a stroke


class UnusableDrawingError(ValueError):
    """A drawing that the preprocessing leaves out; the message says why."""


def preprocess(strokes: Sequence[NumpyArray]) -> NumpyArray:
    """Bring a drawing to ChiroDiff's scale and resample it evenly along its strokes.

    The first 25 strokes, of these the ones of two points or more; origin at the first point;
    each stroke resampled to `max(2, int(length / 0.05))` points where the drawing has radius 1;
    then radius 10.

    Args:
      strokes: list of arrays [points, 3] of x, y (y down) and time, in any units.

    Returns:
      [points, 4] float32: x, y, pen, time, in [0, 1].

    Raises:
      UnusableDrawingError: no stroke of two points, values that aren't finite, no extent, or 300
        points or more after resampling.

    Example:
      >>> line = np.array([[5, 5, 0], [5, 6, 100.0]])
      >>> preprocess([line])[[0, -1]]
      array([[ 0.,  0.,  0.,  0.],
             [ 0., 10.,  1.,  1.]], dtype=float32)
    """
    kept = [stroke for stroke in strokes[:MAX_STROKES] if len(stroke) > 1]
    if not kept:
        raise UnusableDrawingError("no stroke of two points or more")
    kept = [np.asarray(stroke, np.float64) for stroke in kept]
    if not all(np.isfinite(stroke).all() for stroke in kept):
        raise UnusableDrawingError("values that aren't finite")
    kept = [stroke - kept[0][0] for stroke in kept]
    radius = _radius(kept)
    if not np.isfinite(radius):
        raise UnusableDrawingError("coordinates too large to compute with")
    if not radius > 0:
        raise UnusableDrawingError("no extent: all points are the same")
    resampled = [_resample(stroke / [radius, radius, 1]) for stroke in kept]
    count = sum(map(len, resampled))
    if count >= MAX_POINTS:
        raise UnusableDrawingError(_TOO_MANY)
    points = np.zeros((count, 4))
    points[:, [0, 1, 3]] = np.concatenate(resampled)
    points[np.cumsum([len(stroke) for stroke in resampled]) - 1, 2] = 1
    points[:, :2] *= SCALE / _radius(resampled)
    points[:, 3] /= points[-1, 3] or 1
    if not np.isfinite(points).all():
        raise UnusableDrawingError("times too large to compute with")
    return points.astype(np.float32)


def _radius(strokes: Sequence[NumpyArray]) -> float:
    return max(np.hypot(stroke[:, 0], stroke[:, 1]).max() for stroke in strokes)


def _resample(stroke: NumpyArray) -> NumpyArray:
    """Space points evenly along a stroke; time goes evenly from its start to its end."""
    steps = np.hypot(*np.diff(stroke[:, :2], axis=0).T)
    along = np.append(0, np.cumsum(steps))
    count = max(2, int(along[-1] / SPACING))
    if count >= MAX_POINTS:
        raise UnusableDrawingError(_TOO_MANY)
    where = np.linspace(0, along[-1], count)
    time = np.linspace(stroke[0, 2], stroke[-1, 2], len(where))
    return np.stack([*(np.interp(where, along, stroke[:, i]) for i in (0, 1)), time], axis=1)


def represent(points: NumpyArray, representation: str) -> NumpyArray:
    """Return the sequence that a model learns.

    Args:
      points: [points, 4], preprocessed.
      representation: `threeseqdel`: steps, each with pen of the point it leads to and time of
        the point that it leaves; `threeseqabs`: all points but the first, which is the origin.

    Returns:
      [points - 1, 4].
    """
    if representation == "threeseqabs":
        return points[1:]
    steps = np.diff(points[:, :2], axis=0)
    return np.concatenate([steps, points[1:, 2:3], points[:-1, 3:]], axis=1)
