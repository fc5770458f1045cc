"""Pictures under titles: pixels as they are, titles whole and large enough to be read."""

import numpy as np
import pytest
from PIL import Image

from sparsejax.reports import documents, markdown, plots
from sparsejax.reports.sheets import Picture, sheet

rng = np.random.default_rng(0)


def picture(title, width, height=None):
    """A picture in blue, which no letter is in, with noise in green."""
    pixels = np.zeros((height or width, width, 3), np.uint8)
    pixels[..., 1] = rng.integers(0, 200, pixels.shape[:2])
    pixels[..., 2] = 255
    return Picture(title, pixels)


def letters(pixels):
    """Where letters are: darker than white, and grey."""
    grey = (pixels[..., 0] == pixels[..., 1]) & (pixels[..., 1] == pixels[..., 2])
    return grey & (pixels[..., 0] < 128)


def found(pixels):
    """Where pictures are: left, top, right, bottom of all of them together."""
    blue = (pixels[..., 2] == 255) & (pixels[..., 0] == 0)
    rows, columns = np.flatnonzero(blue.any(1)), np.flatnonzero(blue.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@pytest.mark.parametrize(("width", "factor"), [(8, 52), (100, 4), (316, 1), (420, 1)])
def test_small_pictures_are_enlarged_pixel_by_pixel(width, factor):
    one = picture("one", width)
    left, top, right, bottom = found(drawn := sheet([one]))
    assert (right - left, bottom - top) == (width * factor, width * factor)
    cells = drawn[top:bottom, left:right].reshape(width, factor, width, factor, 3)
    np.testing.assert_array_equal(cells, np.broadcast_to(one.pixels[:, None, :, None], cells.shape))


def test_wide_pictures_are_made_smaller():
    drawn = sheet([Picture("", np.full((500, 1000, 3), 77, np.uint8))], widest=200)
    assert (drawn == 77).all(2).sum() == 200 * 100


TITLES = [
    "small_dense_flops\nS 0.75, p 0.05, dT 2000\nseed 0: FD 1,234.56",
    "rigl\nblock 16, S 0.75, p 0.05, dT 20\nseed 0: FD 12",
    "dense S = 0 417 k weights, held-out loss 0.0778 and more words than fit in a line or two",
    "W" * 90,
    "gjpqy",
]


@pytest.mark.parametrize("widest", [120, 420, 800])
@pytest.mark.parametrize("title", TITLES)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_titles_are_whole_and_can_be_read(title, count, widest):
    """All ink of a title stands above its own picture, none at an edge."""
    drawn = sheet([picture(title, 8)] * count, widest=widest)
    ink = letters(drawn)
    border = np.ones(ink.shape, bool)
    border[4:-4, 4:-4] = False
    assert ink.any()
    assert not ink[border].any()
    width, columns = widest // 8 * 8, min(count, 4)
    assert drawn.shape[1] == columns * (width + 16) + 16
    gaps = [16 + index * (width + 16) - 8 for index in range(columns + 1)]
    assert not ink[:, gaps].any(), "a title runs into its neighbour's"


@pytest.mark.parametrize("widest", [120, 420, 800])
@pytest.mark.parametrize("count", [1, 2, 4, 16])
def test_titles_can_be_read_where_the_sheet_is_shown_830_pixels_wide(count, widest):
    """As wide as a page shows it: capitals are 8 pixels high or more."""
    drawn = sheet([picture("H", 8)] * count, widest=widest)
    high = np.count_nonzero(letters(drawn)[: found(drawn)[1]].any(1))
    assert high * min(1, 830 / drawn.shape[1]) >= 8


def test_every_title_stands_over_its_own_picture():
    """Five in two rows: as many titles as pictures, each between its row and the one above."""
    drawn = sheet([picture("H", 8) for _ in range(5)], widest=80)
    ink = letters(drawn)
    for row, count in ((0, 4), (1, 1)):
        top = 16 + row * (drawn.shape[0] - 16) // 2
        band = ink[top : top + 24]
        for column in range(4):
            left = 16 + column * 96
            assert band[:, left : left + 80].any() == (column < count)


def test_a_runs_samples_stand_beside_real_ones(tmp_path):
    ours, real = picture("", 500), picture("", 500)
    plots.save_samples(tmp_path / "samples.png", ours.pixels, real.pixels)
    drawn = np.asarray(Image.open(tmp_path / "samples.png"))
    left, top, right, bottom = found(drawn)
    np.testing.assert_array_equal(drawn[top:bottom, left : left + 500], ours.pixels)
    np.testing.assert_array_equal(drawn[top:bottom, right - 500 : right], real.pixels)
    assert letters(drawn)[4 : top - 4].any()
    assert not letters(drawn)[:4].any()


def test_a_sheet_that_would_be_too_large_keeps_its_titles(tmp_path):
    noise = rng.integers(0, 256, (500, 500, 3), np.uint8)
    sheets = documents.Pictures("noise", [Picture("of noise", noise)] * 12, "Noise.")
    document = documents.number("Sheets", [documents.Section("", [sheets])])
    markdown.write_markdown(tmp_path / "report.md", document)
    assert (tmp_path / "figures" / "noise.png").stat().st_size < 320_000
