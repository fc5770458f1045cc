"""Pictures as files: one by one, and in grids, enlarged and separated."""

import logging
import pathlib
import re

import numpy as np
from PIL import Image

from sparsejax.rendering.grid import grid_shape
from sparsejax.rendering.pixels import are_finite, to_pixels
from sparsejax.types import PathLike, Pictures, Samples

_SMALLEST = 48  # pixels; smaller images are enlarged
_GAP = 4
_NUMBERED = re.compile(r"\d{5,}")  # name of a picture, without .png

logger = logging.getLogger(__name__)


def image_grid(images: Samples, columns: int | None = None) -> Pictures:
    """Lay out images in a grid on white.

    Images of fewer than 48 pixels are enlarged by a whole factor without interpolation: the grid
    shows exactly the 8-bit pictures that are measured. Images with values that aren't finite are
    left white.

    Args:
      images: [count, height, width, channels] floats in [-1, 1], 1 or 3 channels.
      columns: see `grid.grid_shape`.

    Returns:
      [grid height, grid width, 3] uint8.
    """
    images, finite = np.asarray(images), are_finite(images)
    count, height, width, _ = images.shape
    if not finite.all():
        bad = count - np.count_nonzero(finite)
        logger.warning("%d of %d images hold values that aren't finite: left white", bad, count)
    factor = max(1, -(-_SMALLEST // height))
    height, width = height * factor, width * factor
    rows, columns = grid_shape(count, columns)
    shape = (rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3)
    grid = np.full(shape, 255, np.uint8)
    for index in np.flatnonzero(finite):
        top = _GAP + index // columns * (height + _GAP)
        left = _GAP + index % columns * (width + _GAP)
        enlarged = to_pixels(images[index]).repeat(factor, 0).repeat(factor, 1)
        grid[top : top + height, left : left + width] = enlarged
    return grid


def remove_pngs_from(folder: PathLike, count: int) -> int:
    """Delete the pictures of `save_pngs` from number `count` on: they are of earlier samples.

    Returns:
      How many there were.
    """
    found = [path for path in pathlib.Path(folder).glob("*.png") if _NUMBERED.fullmatch(path.stem)]
    later = [path for path in found if int(path.stem) >= count]
    for path in later:
        path.unlink()
    return len(later)


def save_pngs(folder: PathLike, images: Pictures, start: int = 0) -> None:
    """Write pictures as 00000.png, 00001.png, ...: read back, they are what was measured.

    Args:
      folder: created if need be; pictures of the same names are replaced.
      images: [count, height, width, channels] uint8, 1 or 3 channels.
      start: number of the first.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images, start):
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
            folder / f"{index:05d}.png"
        )
