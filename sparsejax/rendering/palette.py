"""Colours for strokes, distinct in print and to the colour-blind (Okabe and Ito, no yellow)."""

import itertools

import numpy as np
from PIL import Image, ImageColor

# Near-black, blue, orange, purple, vermilion, green, sky blue: neighbours are the most distinct.
STROKES = ("#1A1A1A", "#0072B2", "#E69F00", "#CC79A7", "#D55E00", "#009E73", "#56B4E9")
GAP = "#D9D9D9"


def indexed() -> Image.Image:
    """Return the colours of anti-aliased strokes: shades on white, and two strokes that cross.

    Returns:
      A Pillow image of mode P to give to `Image.quantize`, of fewer than 256 colours.
    """
    white, gap, *strokes = (np.array(ImageColor.getrgb(name)) for name in ("white", GAP, *STROKES))
    colours = [white, gap]
    for stroke in strokes:
        colours += [white + (stroke - white) * share for share in np.arange(1, 17) / 16]
    for one, other in itertools.combinations(strokes, 2):
        colours += [one + (other - one) * share for share in (0.25, 0.5, 0.75)]
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.rint(colours).astype(np.uint8).tobytes())
    return palette
