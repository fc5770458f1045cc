"""Animations that show the order in which drawings were drawn."""

import os

import numpy as np
from PIL import Image

from sparsejax.rendering import ink
from sparsejax.rendering.grid import tile
from sparsejax.rendering.palette import STROKES, indexed
from sparsejax.rendering.placement import Drawing, Drawings, as_drawings
from sparsejax.types import Pictures


def to_gif(
    drawings: Drawings,
    path: str | os.PathLike[str],
    cell: int = 96,
    frames: int = 40,
    seconds: float = 3.0,
    hold: float = 1.5,
    columns: int | None = None,
) -> None:
    """Write a looping GIF in which the points of a grid of drawings appear in order.

    All drawings start and end together, each at its own pace. A dot marks the tip of the pen. The
    last frame is the picture of `stroke_grid` in fewer colours.

    Args:
      drawings: [count, length, 3] floats, or one [length, 3], see `placement`.
      path: GIF file to write.
      cell: side of a drawing in pixels.
      frames: number of frames; identical consecutive frames are merged.
      seconds: duration of all frames except the last.
      hold: seconds that the last frame stays.
      columns: number of columns of the grid (default: as many as rows, or one more).
    """
    cells = [_grow(drawing, cell, frames) for drawing in as_drawings(drawings)]
    tiled = (tile([c[i] for c in cells], cell, columns) for i in range(frames))
    pictures = [Image.fromarray(picture) for picture in tiled]
    colours = indexed()
    pictures = [picture.quantize(palette=colours, dither=Image.Dither.NONE) for picture in pictures]
    moving = round(1000 * seconds / max(1, frames - 1))
    pictures[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=[moving] * (frames - 1) + [round(1000 * hold)],
        loop=0,
        optimize=True,
    )


def _grow(drawing: Drawing, cell: int, frames: int) -> Pictures:
    """Return the frames of one drawing, [frames, cell, cell, 3] uint8."""
    marks = ink.marks(drawing, cell)
    sheet = ink.paper(cell, "RGB")
    pictures = np.empty((frames, cell, cell, 3), np.uint8)
    done = 0
    for frame in range(frames):
        stop = len(marks) * (frame + 1) // frames
        ink.draw(sheet, marks[done:stop], STROKES)
        done = stop
        shown = sheet
        if 0 < stop < len(marks):
            shown = sheet.copy()
            ink.draw_tip(shown, marks[stop - 1], STROKES)
        pictures[frame] = ink.shrink(shown)
    return pictures
