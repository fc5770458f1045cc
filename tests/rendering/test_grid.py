import numpy as np
from PIL import ImageColor

from sparsejax.rendering import rasterize, stroke_grid
from sparsejax.rendering.palette import STROKES
from tests.rendering.drawings import HOUSE, LINE, random_walks


def test_layout():
    grid = stroke_grid(np.stack([LINE] * 5), cell=32)
    assert grid.dtype == np.uint8
    assert grid.shape == (2 * 33 + 1, 3 * 33 + 1, 3)
    assert (grid[[0, 33, 66]] == 217).all()
    assert (grid[:, [0, 33, 66, 99]] == 217).all()
    cells = [grid[1 + 33 * i : 33 + 33 * i, 1 + 33 * j : 33 + 33 * j] for i, j in np.ndindex(2, 3)]
    for cell in cells[1:5]:
        np.testing.assert_array_equal(cell, cells[0])
    assert (cells[5] == 255).all()
    assert stroke_grid(np.zeros((0, 3, 3)), cell=32).shape == (34, 34, 3)


def test_strokes_take_the_colours_in_turn():
    # Ten level lines, one below the other, the first at the top.
    drawing = np.array([[x, y, x] for y in np.arange(10) / 9 for x in (0, 1)])
    grid = stroke_grid(drawing, cell=96)[1:-1, 1:-1]
    rows = np.linspace(7.5, 88.5, 10).astype(int)
    colours = [ImageColor.getrgb(STROKES[i % 7]) for i in range(10)]
    np.testing.assert_array_equal(grid[rows, 48], colours)


def test_ink_lies_where_the_raster_has_it():
    grid = stroke_grid(HOUSE, cell=64)[1:-1, 1:-1]
    np.testing.assert_array_equal((grid < 255).any(-1), rasterize(HOUSE)[0, :, :, 0] < 1)


def test_colours_can_be_told_apart():
    """Also by those who see no red or no green (Vienot, Brettel and Mollon, 1999)."""
    colours = np.array([ImageColor.getrgb(colour) for colour in (*STROKES, "white")]) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    to_lms = np.array(
        [[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]]
    )
    no_red = np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]])
    no_green = np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]])
    for sight in (np.eye(3), no_red, no_green):
        seen = linear @ (np.linalg.inv(to_lms) @ sight @ to_lms).T
        seen = np.clip(seen, 0, 1) ** (1 / 2.4)
        distances = np.linalg.norm(seen[:, None] - seen, axis=-1)
        assert distances[~np.eye(len(seen), dtype=bool)].min() > 0.12
        strokes = np.arange(len(STROKES))
        assert distances[strokes, np.roll(strokes, 1)].min() > 0.4  # one after the other


def test_many_drawings():
    assert stroke_grid(random_walks(10, 30), cell=24).shape == (3 * 25 + 1, 4 * 25 + 1, 3)
