"""Pictures side by side, each under its title: no pixel is smoothed, no title is cut."""

import functools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SMALLEST, _SHARE = 13, 64  # height of letters: in pixels, and one in so many of the sheet's width
_GAP = 16


class Picture(NamedTuple):
    """A picture with what to write above it; `pixels` is [height, width, 3] uint8."""

    title: str
    pixels: np.ndarray


def sheet(pictures: Sequence[Picture], *, columns: int = 4, widest: int = 420) -> np.ndarray:
    """Lay pictures side by side on white, each under its title.

    A picture is enlarged by a whole number, each pixel a square, as far as `widest` allows; a wider
    one is made smaller. Letters are as high as a 64th of the sheet's width, so that they can be
    read when it is shown whole; titles that are wider than their picture are broken.

    Args:
      pictures: list of Picture, one or more.
      columns: most pictures in a line.
      widest: width of a picture in pixels, at most.

    Returns:
      [height, width, 3] uint8.
    """
    titles, scaled = [title for title, _ in pictures], [_fit(p, widest) for _, p in pictures]
    columns = min(columns, len(pictures))
    width = max(pixels.shape[1] for pixels in scaled)
    whole = columns * (width + _GAP) + _GAP
    size = max(_SMALLEST, whole // _SHARE)
    texts = [_broken(title, width, size) for title in titles]
    line = _line_height(size)
    rows = []
    for start in range(0, len(scaled), columns):
        row = slice(start, start + columns)
        above = line * max(len(text) for text in texts[row]) + _GAP // 2
        rows.append((row, above, max(pixels.shape[0] for pixels in scaled[row])))
    canvas = Image.new("RGB", (whole, sum(a + h + _GAP for _, a, h in rows) + _GAP), "white")
    pen, top = ImageDraw.Draw(canvas), _GAP
    for row, above, height in rows:
        for column, (text, pixels) in enumerate(zip(texts[row], scaled[row], strict=True)):
            left = _GAP + column * (width + _GAP)
            # The last line of a title stands on its picture.
            y = top + above - _GAP // 2 - line * len(text)
            for number, words in enumerate(text):
                middle = left + width // 2, y + number * line
                pen.text(middle, words, "black", font=_font(size), anchor="ma")
            inset = (width - pixels.shape[1]) // 2
            canvas.paste(Image.fromarray(pixels), (left + inset, top + above))
        top += above + height + _GAP
    return np.asarray(canvas)


def _fit(pixels: np.ndarray, widest: int) -> np.ndarray:
    """Enlarge a picture by a whole number, or make it smaller, to at most `widest` pixels."""
    height, width, _ = pixels.shape
    if width > widest:
        shape = widest, max(1, round(height * widest / width))
        return np.asarray(Image.fromarray(pixels).resize(shape, Image.Resampling.LANCZOS))
    factor = widest // width
    return pixels.repeat(factor, 0).repeat(factor, 1)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    path = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(path, size)


def _line_height(size: int) -> int:
    return sum(_font(size).getmetrics())


def _broken(title: str, width: int, size: int) -> list[str]:
    """Break a title into lines of at most `width` pixels: between words, or inside of long ones."""

    def fits(text: str) -> bool:
        return len(text) < 2 or _font(size).getlength(text) <= width

    lines = []
    for given in title.split("\n"):
        line = ""
        for word in given.split():
            longer = f"{line} {word}" if line else word
            if line and not fits(longer):
                lines.append(line)
                longer = word
            while not fits(longer):
                count = max(n for n in range(1, len(longer)) if fits(longer[:n]))
                lines.append(longer[:count])
                longer = longer[count:]
            line = longer
        lines.append(line)
    return lines
