"""Drawings as SVG, one path per stroke."""

import numpy as np

from sparsejax.rendering.grid import grid_shape
from sparsejax.rendering.palette import GAP, STROKES
from sparsejax.rendering.placement import Drawing, Drawings, as_drawings, line_width, place
from sparsejax.types import NumpyArray


def to_svg(drawing: Drawings, size: int = 109) -> str:
    """Draw one drawing on white, coloured as in `stroke_grid`.

    Args:
      drawing: [length, 3] floats, see `placement`.
      size: side of the picture.

    Returns:
      The SVG document.

    Raises:
      ValueError: `drawing` is more than one drawing, or has another shape.
    """
    drawings = as_drawings(drawing)
    if len(drawings) != 1:
        raise ValueError(f"{len(drawings)} drawings; expected one drawing, [length, 3]")
    background = f'<rect width="{size}" height="{size}" fill="white"/>'
    return _document(size, size, [background, _group(drawings[0], size)])


def svg_grid(drawings: Drawings, cell: int = 109, columns: int | None = None) -> str:
    """Lay out drawings in a grid on white, separated by grey lines.

    Args:
      drawings: [count, length, 3] floats, or one [length, 3], see `placement`.
      cell: side of a drawing.
      columns: number of columns (default: as many as rows, or one more).

    Returns:
      The SVG document.
    """
    drawings = as_drawings(drawings)
    rows, columns = grid_shape(len(drawings), columns)
    width, height = columns * (cell + 1) + 1, rows * (cell + 1) + 1
    parts = [f'<rect width="{width}" height="{height}" fill="{GAP}"/>']
    for index in range(rows * columns):
        left, top = 1 + index % columns * (cell + 1), 1 + index // columns * (cell + 1)
        parts.append(f'<rect x="{left}" y="{top}" width="{cell}" height="{cell}" fill="white"/>')
        if index < len(drawings):
            parts.append(_group(drawings[index], cell, f' transform="translate({left} {top})"'))
    return _document(width, height, parts)


def _document(width: int, height: int, parts: list[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">'
    )
    return "\n".join([head, *parts, "</svg>", ""])


def _group(drawing: Drawing, size: int, attributes: str = "") -> str:
    points, stroke = place(drawing, size)
    paths = [
        f'<path d="{_path(points[stroke == number])}" stroke="{STROKES[number % len(STROKES)]}"/>'
        for number in np.unique(stroke)
    ]
    head = (
        f'<g{attributes} fill="none" stroke-width="{_number(line_width(size))}" '
        'stroke-linecap="round" stroke-linejoin="round">'
    )
    return "\n".join([head, *paths, "</g>"])


def _path(points: NumpyArray) -> str:
    """Return path data; a single point becomes a line of length 0, which round caps make a dot."""
    if len(points) == 1:
        points = np.repeat(points, 2, 0)
    return "M" + " L".join(f"{_number(x)} {_number(y)}" for x, y in points)


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
