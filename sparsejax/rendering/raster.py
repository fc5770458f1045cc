"""Drawings as greyscale images, for metrics and classifiers of images."""

import numpy as np

from sparsejax.rendering import ink
from sparsejax.rendering.pixels import to_unit_range
from sparsejax.rendering.placement import Drawings, as_drawings
from sparsejax.types import NumpyArray

# Metrics on rasters depend on every pixel: any change (line width, margin, smoothing) needs a new
# version, which is reported with every number computed from rasters.
RASTER_VERSION = "strokes-1"


def rasterize(drawings: Drawings, size: int = 64) -> NumpyArray:
    """Draw black on white, with lines of width size / 32 inside a margin of size / 16.

    Args:
      drawings: [count, length, 3] floats, or one [length, 3], see `placement`.
      size: side of the pictures in pixels.

    Returns:
      [count, size, size, 1] float32 in [-1, 1], ink -1.
    """
    drawings = as_drawings(drawings)
    pictures = np.empty((len(drawings), size, size, 1), np.uint8)
    for picture, drawing in zip(pictures, drawings, strict=True):
        sheet = ink.paper(size, "L")
        ink.draw(sheet, ink.marks(drawing, size), ["black"])
        picture[..., 0] = ink.shrink(sheet)
    return to_unit_range(pictures)
