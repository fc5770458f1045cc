"""Grids of pictures, enlarged and separated."""

import math

import numpy as np
from PIL import Image

from sparsejax.data.images import to_pixels

_SMALLEST = 48  # pixels that the side of a picture should at least fill
_GAP = 4


def image_grid(images):
    """Lay out images in a square grid on white.

    Images of fewer than 48 pixels are enlarged by a whole number, bicubic: a person reads a
    digit of 8x8 pixels far better without its corners.

    Args:
      images: [count, height, width, channels] floats in [-1, 1], 1 or 3 channels.

    Returns:
      [grid height, grid width, 3] uint8.
    """
    pixels = np.broadcast_to(to_pixels(images), (*images.shape[:3], 3))
    count, height, width, _ = pixels.shape
    factor = max(1, -(-_SMALLEST // height))
    height, width = height * factor, width * factor
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    shape = (rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3)
    grid = np.full(shape, 255, np.uint8)
    for index, image in enumerate(pixels):
        enlarged = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        top = _GAP + index // columns * (height + _GAP)
        left = _GAP + index % columns * (width + _GAP)
        grid[top : top + height, left : left + width] = enlarged
    return grid
