"""Place the points of a drawing in a square picture.

A drawing is an array [length, 3] of absolute x, y (y down, any scale) and pen state: 0 the stroke
continues, 1 last point of its stroke, 2 no point (padding after the end).
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsejax.types import NumpyArray

Drawing: TypeAlias = NDArray[np.floating]  # [length, 3]
Drawings: TypeAlias = ArrayLike  # [count, length, 3], or one [length, 3]


def line_width(size: float) -> float:
    """Return the line width in a picture of `size` pixels."""
    return size / 32


def margin(size: float) -> float:
    """Return the width of the margin, always white, of a picture of `size` pixels."""
    return size / 16


def as_drawings(drawings: Drawings) -> NumpyArray:
    """Return drawings as one batch.

    Args:
      drawings: [count, length, 3], or one [length, 3].

    Returns:
      [count, length, 3] float64.

    Raises:
      ValueError: the array has another shape.
    """
    drawings = np.asarray(drawings, np.float64)
    if drawings.ndim not in (2, 3) or drawings.shape[-1] != 3:
        raise ValueError(f"drawings have shape {drawings.shape}; expected [count, length, 3]")
    return drawings[None] if drawings.ndim == 2 else drawings


def place(drawing: Drawing, size: float) -> tuple[NumpyArray, NumpyArray]:
    """Fit a drawing into a square picture: centred, as large as possible, aspect ratio kept.

    Rows that are not finite are skipped, but a pen state of 1 there still ends the stroke.

    Args:
      drawing: [length, 3] float64.
      size: side of the picture in pixels.

    Returns:
      Tuple of the points, [points, 2] float64 from 0 (left or top edge) to `size`, and the index
      of each point's stroke, [points] int64, consecutive from 0. If all points are equal, they lie
      in the centre.
    """
    pen = np.rint(drawing[:, 2])
    stroke = np.cumsum(pen == 1) - (pen == 1)
    present = np.isfinite(drawing).all(1) & (pen < 2)
    points = drawing[present, :2]
    if not len(points):
        return points, np.zeros(0, np.int64)
    _, stroke = np.unique(stroke[present], return_inverse=True)
    points = points / (np.abs(points).max() or 1)  # the extent of large values would overflow
    low, high = points.min(0), points.max(0)
    extent = np.max(high - low) or 1
    side = size - 2 * margin(size) - line_width(size)
    return (points - (low + high) / 2) / extent * side + size / 2, stroke
