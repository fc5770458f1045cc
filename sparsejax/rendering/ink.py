"""Ink on paper: the anti-aliased drawing code behind all raster pictures.

Each point adds one mark to its stroke: a disc, and a bar from the previous point. Together they
form a line with round caps and joints. Marks are drawn without anti-aliasing on paper that is 8
times as large, which `shrink` averages.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from sparsejax.rendering.placement import Drawing, line_width, place
from sparsejax.types import Pictures

_FACTOR = 8
# Pillow rounds the corners of polygons to whole pixels. Widened by this on both sides, slanted
# lines are on average as wide as horizontal and vertical ones, which don't change.
_WIDER = 0.2


class Mark(NamedTuple):
    """What one point adds, in pixels of the paper, bounds inclusive.

    Attributes:
      stroke: index of the stroke.
      disc: left, top, right, bottom.
      bar: x and y of the four corners, or None at the start of a stroke.
    """

    stroke: int
    disc: list
    bar: list | None


def marks(drawing: Drawing, size: int) -> list[Mark]:
    """Return the marks of a drawing, one per point, in order.

    Args:
      drawing: [length, 3] float64, see `placement`.
      size: side of the final picture in pixels.

    Returns:
      List of `Mark`.
    """
    points, stroke = place(drawing, size)
    width = max(1, round(_FACTOR * line_width(size)))
    # Rounded twice, so that floating-point noise can't push a half up or down.
    corner = np.rint(np.round(_FACTOR * points - width / 2, 6))
    discs = np.concatenate([corner, corner + width - 1], 1)
    centre = corner + (width - 1) / 2
    step = np.diff(centre, axis=0)
    length = np.hypot(*step.T)
    joined = (np.diff(stroke) == 0) & (length > 0)
    along = step / np.where(joined, length, 1)[:, None]
    side = ((width - 1) / 2 + _WIDER) * np.stack([-along[:, 1], along[:, 0]], 1)
    start, stop = centre[:-1], centre[1:]
    corners = np.rint(np.concatenate([start + side, stop + side, stop - side, start - side], 1))
    bars = [bar if there else None for bar, there in zip(corners.tolist(), joined, strict=True)]
    bars = [None, *bars][: len(points)]
    return [Mark(*mark) for mark in zip(stroke.tolist(), discs.tolist(), bars, strict=True)]


def paper(size: int, mode: str) -> Image.Image:
    """Return blank paper, a Pillow image of this mode, for a picture of `size` pixels."""
    return Image.new(mode, (_FACTOR * size, _FACTOR * size), "white")


def draw(sheet: Image.Image, these: Sequence[Mark], colours: Sequence[str]) -> None:
    """Draw marks on paper, in place.

    Args:
      sheet: what `paper` returned.
      these: list of `Mark`.
      colours: Pillow colours of the strokes, used cyclically.
    """
    pen = ImageDraw.Draw(sheet)
    for mark in these:
        colour = colours[mark.stroke % len(colours)]
        if mark.bar:
            pen.polygon(mark.bar, fill=colour)
        pen.ellipse(mark.disc, fill=colour)


def draw_tip(sheet: Image.Image, mark: Mark, colours: Sequence[str]) -> None:
    """Mark the pen's position by a disc twice as wide as the line, in place.

    Args:
      sheet: what `paper` returned.
      mark: `Mark` of the pen's current point.
      colours: as in `draw`.
    """
    left, top, right, bottom = mark.disc
    more = (right - left + 1) // 2
    disc = [left - more, top - more, right + more, bottom + more]
    ImageDraw.Draw(sheet).ellipse(disc, fill=colours[mark.stroke % len(colours)])


def shrink(sheet: Image.Image) -> Pictures:
    """Average paper down to the final picture.

    Returns:
      [size, size] uint8 for mode L, [size, size, 3] for RGB.
    """
    return np.asarray(sheet.reduce(_FACTOR))
