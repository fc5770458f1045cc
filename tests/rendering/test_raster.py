import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparsejax.rendering import RASTER_VERSION, rasterize
from tests.rendering.drawings import DOT, HOUSE, LINE, random_walks


def ink(drawing, size=64):
    return (1 - rasterize(drawing, size)[0, :, :, 0]) / 2


def test_version_names_these_pixels():
    """If this fails, either undo the change of the pixels or give them a new version."""
    pixels = np.round((rasterize(HOUSE) + 1) * 127.5).astype(np.uint8)
    assert RASTER_VERSION == "strokes-1"
    assert hashlib.sha256(pixels.tobytes()).hexdigest().startswith("9382ebf97cb6d033")


@pytest.mark.parametrize("size", [32, 64, 128])
def test_a_level_line_has_the_area_of_a_bar_and_two_half_discs(size):
    width = size / 32
    rows = ink(LINE, size).sum(1)
    inked = slice(int(size / 2 - width / 2), int(np.ceil(size / 2 + width / 2)))
    length = size - 2 * size / 16 - width
    assert rows[inked].sum() == pytest.approx(length * width + np.pi * (width / 2) ** 2, rel=0.01)
    assert rows.sum() == pytest.approx(rows[inked].sum())
    np.testing.assert_allclose(ink(LINE[:, [1, 0, 2]], size).sum(0), rows, atol=0.01)


def test_line_width_hardly_depends_on_direction():
    ratios = []
    for angle in np.linspace(0, np.pi, 61):
        points = LINE[:, :1] * [np.cos(angle), np.sin(angle)]
        drawing = np.concatenate([points, LINE[:, 2:]], 1)
        length = 54 / max(np.abs(np.cos(angle)), np.abs(np.sin(angle)))
        ratios.append(ink(drawing).sum() / (2 * length + np.pi))
    np.testing.assert_allclose(ratios, 1, atol=0.1)
    assert np.mean(ratios) == pytest.approx(1, abs=0.01)


def test_a_dot_is_a_disc_in_the_centre():
    picture = ink(DOT)
    assert picture.sum() == pytest.approx(np.pi, rel=0.05)
    assert picture[31:33, 31:33].sum() == pytest.approx(picture.sum())
    np.testing.assert_array_equal(ink(np.repeat(DOT, 3, 0)), picture)


def test_joints_are_round():
    """The outer corner of a right angle is a quarter disc of the line's width."""
    corner = np.array([[0, 1, 0], [0, 0, 0], [1, 0, 1]])
    picture = ink(corner, 256)
    bars = 2 * 216 * 8 - 4 * 4  # from the centre of the joint, which the two share
    assert picture.sum() == pytest.approx(bars + 16 * np.pi * (1 / 4 + 1), rel=0.01)
    assert picture[16, 16] == 0
    assert picture[18, 18] == 1


@pytest.mark.parametrize("axis", [0, 1])
def test_a_mirrored_drawing_gives_the_mirrored_picture(axis):
    drawing = random_walks(1, 100)[0]
    mirrored = drawing.copy()
    mirrored[:, 1 - axis] *= -1
    there, back = ink(drawing), np.flip(ink(mirrored), axis)
    # The corners of bars are whole eighths of a pixel, and Pillow fills up to one more.
    assert np.abs(there - back).max() < 0.13
    assert there.sum() == pytest.approx(back.sum(), rel=0.005)


def test_scale_and_position_do_not_matter():
    # Powers of two, so that the points are exactly the same shape.
    drawing = np.round(random_walks(4, 100) * [16, 16, 1])
    moved = drawing * [0.25, 0.25, 1] + [512, -64, 0]
    np.testing.assert_array_equal(rasterize(moved), rasterize(drawing))


def test_batches_and_padding_change_nothing():
    drawings = random_walks(3, 50)
    padding = np.full((3, 20, 3), [7.0, 99.0, 2.0])
    padding[1] = [np.nan, np.inf, 2]
    padded = rasterize(np.concatenate([drawings, padding], 1))
    assert padded.dtype == np.float32
    assert padded.shape == (3, 64, 64, 1)
    for drawing, picture in zip(drawings, padded, strict=True):
        np.testing.assert_array_equal(rasterize(drawing)[0], picture)


def test_a_stroke_ends_also_where_its_last_point_is_not_finite():
    broken = np.array([[0, 0, 0], [0, 1, 0], [np.nan, 1, 1], [1, 1, 0], [1, 0, 1]])
    whole = np.array([[0, 0, 0], [0, 1, 1], [1, 1, 0], [1, 0, 1]])
    np.testing.assert_array_equal(rasterize(broken), rasterize(whole))
    # A lost point within a stroke is passed over.
    broken[2, 2] = 0
    whole[1, 2] = 0
    np.testing.assert_array_equal(rasterize(broken), rasterize(whole))


def test_drawings_without_points_are_white():
    nothing = np.stack([np.full((5, 3), 2.0), np.full((5, 3), np.nan)])
    assert (rasterize(nothing) == 1).all()
    assert (rasterize(np.zeros((1, 0, 3))) == 1).all()
    assert rasterize(np.zeros((0, 5, 3))).shape == (0, 64, 64, 1)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 2\); expected \[count, length, 3\]"):
        rasterize(np.zeros((4, 2)))


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        st.tuples(st.integers(0, 12), st.just(3)),
        elements=st.one_of(st.sampled_from([0, 1, 2]), st.floats(width=32)),
    ),
    st.sampled_from([28, 32, 64]),
)
def test_ink_stays_inside_the_margin_whatever_the_numbers(drawing, size):
    picture = ink(drawing, size)
    assert np.isfinite(picture).all()
    assert picture.min() >= 0
    assert picture.max() <= 1
    edge = size // 16
    points = np.isfinite(drawing).all(1) & (np.rint(drawing[:, 2]) < 2)
    assert (picture > 0).any() == points.any()
    picture[edge : size - edge, edge : size - edge] = 0
    assert (picture == 0).all()


def test_the_largest_numbers_do_not_overflow():
    largest = np.finfo(np.float64).max
    drawing = np.array([[-largest, 0, 0], [largest, 0, 1]])
    np.testing.assert_array_equal(rasterize(drawing), rasterize(LINE))
    np.testing.assert_array_equal(rasterize(LINE * [5e-324, 1, 1]), rasterize(LINE))
