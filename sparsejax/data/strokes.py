"""Pen drawings as sequences: ChiroDiff's preprocessing and its two representations.

A preprocessed drawing is an array [points, 4] of x, y, pen, time: absolute coordinates, y down,
first point at the origin, farthest point 10 away from it; pen 1 on the last point of each stroke;
time from 0 to 1. The representations are `threeseqabs` (the points themselves) and `threeseqdel`
(the offsets between them), both [points - 1, 4].

Das et al. (2023), ChiroDiff, and its published code.
"""

from collections.abc import Sequence

import numpy as np

from sparsejax.types import NumpyArray

VERSION = "chirodiff-1"  # of the preprocessing
REPRESENTATIONS = ("threeseqdel", "threeseqabs")
MAX_STROKES = 25
MAX_POINTS = 300  # drawings of this many points or more are left out
SPACING = 0.05  # distance of resampled points, in radii of the drawing
SCALE = 10.0
_TOO_MANY = f"{MAX_POINTS} points or more after resampling"
PEN_UP = 0.8  # sampled pen values above this end a stroke


class UnusableDrawingError(ValueError):
    """A drawing that the preprocessing rejects; the message says why."""


def preprocess(strokes: Sequence[NumpyArray]) -> NumpyArray:
    """Scale a drawing as in ChiroDiff and resample it evenly along its strokes.

    Of the first 25 strokes, those of two or more points are kept. The first point becomes the
    origin; at radius 1, each stroke is resampled to `max(2, int(length / 0.05))` points; the result
    has radius 10.

    Args:
      strokes: list of arrays [points, 3] of x, y (y down) and time, in any units.

    Returns:
      [points, 4] float32: x, y, pen, time, in [0, 1].

    Raises:
      UnusableDrawingError: no stroke of two points, values that aren't finite, no extent, or 300
        points or more after resampling.

    Examples:
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
    """Space points evenly along a stroke; time increases evenly from start to end."""
    steps = np.hypot(*np.diff(stroke[:, :2], axis=0).T)
    along = np.append(0, np.cumsum(steps))
    count = max(2, int(along[-1] / SPACING))
    if count >= MAX_POINTS:
        raise UnusableDrawingError(_TOO_MANY)
    where = np.linspace(0, along[-1], count)
    time = np.linspace(stroke[0, 2], stroke[-1, 2], len(where))
    return np.stack([*(np.interp(where, along, stroke[:, i]) for i in (0, 1)), time], axis=1)


def represent(points: NumpyArray, representation: str) -> NumpyArray:
    """Return the sequence that a model is trained on.

    Args:
      points: [points, 4], preprocessed.
      representation: `threeseqdel`: offsets, each with the pen of its end point and the time of its
        start point; `threeseqabs`: all points except the first, which is the origin.

    Returns:
      [points - 1, 4].
    """
    if representation == "threeseqabs":
        return points[1:]
    steps = np.diff(points[:, :2], axis=0)
    return np.concatenate([steps, points[1:, 2:3], points[:-1, 3:]], axis=1)
