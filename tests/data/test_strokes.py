import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from sparsejax.data import strokes
from sparsejax.data.strokes import UnusableDrawingError, preprocess, represent

LINE = np.array([[5, 5, 0], [5, 6, 100.0]])


@pytest.mark.parametrize("representation", strokes.REPRESENTATIONS)
def test_preprocessing_equals_the_reference(golden, representation):
    raw = golden("d_chirodiff_preprocess_raw.json")
    expected = golden("d_chirodiff_preprocess.npz")
    assert len(raw) == 4
    for index, drawing in enumerate(raw):
        points = preprocess([np.array(stroke).T for stroke in drawing])
        np.testing.assert_allclose(
            represent(points, representation), expected[f"{representation}/{index}"], atol=1e-6
        )


def test_a_line_becomes_evenly_spaced_points():
    points = preprocess([LINE])
    np.testing.assert_allclose(points[:, 1], np.linspace(0, 10, 20), atol=1e-5)
    np.testing.assert_allclose(points[:, 3], np.linspace(0, 1, 20), atol=1e-6)
    np.testing.assert_array_equal(points[:, 2], [0] * 19 + [1])


@st.composite
def drawings(draw):
    seed, count = draw(st.integers(0, 999)), draw(st.integers(1, 30))
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, size=count)
    walk = np.cumsum(rng.normal(size=(sizes.sum(), 2)), axis=0)
    times = np.cumsum(rng.uniform(1, 9, size=sizes.sum()))
    both = np.concatenate([walk, times[:, None]], axis=1)
    return np.split(both, np.cumsum(sizes)[:-1])


@hypothesis.given(drawings(), st.floats(0.01, 100), st.floats(-1e3, 1e3))
@hypothesis.settings(max_examples=40, deadline=None)
def test_scale_and_place_make_no_difference(drawing, scale, offset):
    moved = [stroke * [scale, scale, 1] + [offset, -offset, offset] for stroke in drawing]
    try:
        points = preprocess(drawing)
    except UnusableDrawingError as error:
        with pytest.raises(UnusableDrawingError, match=str(error)):
            preprocess(moved)
        return
    # Where a length over the spacing is next to a whole number, rounding may go either way.
    other = preprocess(moved)
    if len(other) == len(points):
        np.testing.assert_allclose(other, points, atol=2e-2)
    kept = [stroke for stroke in drawing[:25] if len(stroke) > 1]
    assert points[:, 2].sum() == len(kept)
    assert len(points) < 300
    np.testing.assert_allclose(np.hypot(*points[:, :2].T).max(), 10, rtol=1e-5)
    np.testing.assert_array_equal(points[0, :2], 0)
    np.testing.assert_array_equal(points[[0, -1], 3], [0, 1])
    assert points[-1, 2] == 1


@pytest.mark.parametrize(
    ("drawing", "why"),
    [
        ([], "no stroke of two points"),
        ([LINE[:1]], "no stroke of two points"),
        ([LINE[:1], LINE[1:]], "no stroke of two points"),
        ([LINE[[0, 0]]], "no extent"),
        ([LINE * np.nan], "finite"),
        ([LINE, [[0, 0, 0], [np.inf, 0, 0]]], "finite"),
        ([np.stack([np.arange(400) % 2, np.arange(400) / 800, np.arange(400)], 1)], "300 points"),
    ],
)
def test_unusable_drawings_are_refused_with_a_reason(drawing, why):
    with pytest.raises(UnusableDrawingError, match=why):
        preprocess(drawing)


def test_strokes_of_one_point_and_those_after_the_25th_are_dropped():
    dot, many = LINE[:1], [LINE + [i, 0, i] for i in range(30)]
    np.testing.assert_array_equal(preprocess([dot, *many[:3]]), preprocess(many[:3]))
    np.testing.assert_array_equal(preprocess(many), preprocess(many[:25]))
    # The dots count among the 25, as in the reference.
    np.testing.assert_array_equal(preprocess([dot, *many]), preprocess(many[:24]))


def test_steps_lead_from_point_to_point():
    points = preprocess([LINE, LINE + [3, 0, 200]])
    steps, others = (represent(points, name) for name in strokes.REPRESENTATIONS)
    np.testing.assert_allclose(np.cumsum(steps[:, :2], axis=0), others[:, :2], atol=1e-4)
    np.testing.assert_array_equal(steps[:, 2], others[:, 2])
    np.testing.assert_array_equal(steps[1:, 3], others[:-1, 3])
