"""Grids of pictures: enlarged, separated, real examples beside samples."""

import math

import numpy as np

from sparsejax.data.images import to_pixels

_SMALLEST = 48  # pixels that the side of a picture should at least fill
_GAP = 4


def image_grid(samples, reference=None):
    """Lay out images in a square grid; a reference fills a second grid to the right.

    Args:
      samples: [count, height, width, channels] floats in [-1, 1], 1 or 3 channels.
      reference: real images in the same format, cut to the number of samples, or None.

    Returns:
      [grid height, grid width, 3] uint8; pixels are enlarged by a whole number.
    """
    grid = _square(samples)
    if reference is None:
        return grid
    beside = _square(reference[: len(samples)])
    bar = np.full((grid.shape[0], 6 * _GAP, 3), 255, np.uint8)
    padding = ((0, grid.shape[0] - beside.shape[0]), (0, 0), (0, 0))
    return np.concatenate([grid, bar, np.pad(beside, padding, constant_values=255)], axis=1)


def _square(images):
    images = np.broadcast_to(to_pixels(images), (*images.shape[:3], 3))
    count, height, width, _ = images.shape
    factor = max(1, -(-_SMALLEST // height))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    cell_height, cell_width = height * factor + _GAP, width * factor + _GAP
    grid = np.full((rows * cell_height + _GAP, columns * cell_width + _GAP, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top = _GAP + index // columns * cell_height
        left = _GAP + index % columns * cell_width
        grid[top : top + height * factor, left : left + width * factor] = image
    return grid
