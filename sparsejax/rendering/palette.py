"""Colours of strokes, distinct in print and for colour-blind readers (Okabe and Ito, no yellow)."""

import itertools

import numpy as np
from PIL import Image, ImageColor

# Near-black, blue, orange, purple, vermilion, green, sky blue, ordered so that neighbours differ.
STROKES = ("#1A1A1A", "#0072B2", "#E69F00", "#CC79A7", "#D55E00", "#009E73", "#56B4E9")
GAP = "#D9D9D9"


def indexed() -> Image.Image:
    """Return a palette for anti-aliased strokes: shades on white, and mixtures where two cross.

    Returns:
      Pillow image of mode P for `Image.quantize`, with fewer than 256 colours.
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
