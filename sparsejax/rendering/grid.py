"""Grids of drawings, one colour per stroke."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import ImageColor

from sparsejax.rendering import ink
from sparsejax.rendering.palette import GAP, STROKES
from sparsejax.rendering.placement import Drawings, as_drawings
from sparsejax.types import Pictures


def stroke_grid(drawings: Drawings, cell: int = 96, columns: int | None = None) -> Pictures:
    """Lay out drawings in a grid on white; colours show the order of strokes.

    Colours cycle through near-black, blue, orange, purple, vermilion, green and sky blue.

    Args:
      drawings: [count, length, 3] floats, or one [length, 3], see `placement`.
      cell: side of a drawing in pixels.
      columns: number of columns (default: as many as rows, or one more).

    Returns:
      [grid height, grid width, 3] uint8.
    """
    pictures = []
    for drawing in as_drawings(drawings):
        sheet = ink.paper(cell, "RGB")
        ink.draw(sheet, ink.marks(drawing, cell), STROKES)
        pictures.append(ink.shrink(sheet))
    return tile(pictures, cell, columns)


def grid_shape(count: int, columns: int | None = None) -> tuple[int, int]:
    """Return the rows and columns of a grid with `count` cells, at least one each.

    Args:
      count: number of cells.
      columns: number of columns, if there are as many cells (default: as many columns as rows, or
        one more).
    """
    if not columns or count < columns:
        columns = max(1, math.ceil(math.sqrt(count)))
    return max(1, math.ceil(count / columns)), columns


def tile(pictures: Sequence[Pictures], cell: int, columns: int | None = None) -> Pictures:
    """Lay out pictures in a grid, separated by grey lines of one pixel.

    Args:
      pictures: sequence of [cell, cell, 3] uint8.
      cell: side of a picture in pixels.
      columns: see `grid_shape`.

    Returns:
      [grid height, grid width, 3] uint8; empty cells are white.
    """
    rows, columns = grid_shape(len(pictures), columns)
    grid = np.empty((rows * (cell + 1) + 1, columns * (cell + 1) + 1, 3), np.uint8)
    grid[:] = ImageColor.getrgb(GAP)
    for index in range(rows * columns):
        top = 1 + index // columns * (cell + 1)
        left = 1 + index % columns * (cell + 1)
        picture = pictures[index] if index < len(pictures) else 255
        grid[top : top + cell, left : left + cell] = picture
    return grid
