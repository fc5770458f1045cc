import numpy as np
import pytest
import scipy.stats

from sparsejax.data import packed, strokes
from sparsejax.data.stroke_statistics import compare_strokes, stroke_statistics
from tests.data.sets import EXCERPTS

NAMES = ["strokes", "points", "ink length", "stroke length", "width", "height"]
# Two strokes: two sides of a triangle, then a line of length 2 below them.
CORNER = [[0, 0, 0], [3, 4, 0], [3, 0, 1], [1, 5, 0], [1, 7, 1]]
CORNER_IS = [2, 5, 11, 5.5, 3, 7]


def batch(*drawings, length=None):
    """Drawings as one array, padded with pen 2 at the origin."""
    length = length or max(map(len, drawings))
    return np.array([[*drawing, *[[0, 0, 2]] * (length - len(drawing))] for drawing in drawings])


def some(count, seed=0, length=30):
    """Random drawings of 1 to `length` points."""
    rng = np.random.default_rng(seed)
    drawings = []
    for size in rng.integers(1, length + 1, size=count):
        drawings.append(np.column_stack([rng.normal(size=(size, 2)), rng.random(size) < 0.2]))
    return drawings


@pytest.mark.parametrize(
    ("drawing", "expected"),
    [
        pytest.param(CORNER, CORNER_IS, id="two strokes"),
        pytest.param([*CORNER[:4], [1, 7, 0]], CORNER_IS, id="the last stroke has no end"),
        pytest.param([[2, 3, 1]], [1, 1, 0, 0, 0, 0], id="one point"),
        pytest.param([[2, 3, 0]], [1, 1, 0, 0, 0, 0], id="one point without an end"),
        pytest.param([*CORNER, [9, 9, 1]], [3, 6, 11, 11 / 3, 9, 9], id="a dot at the end"),
        pytest.param([[0, 0, 1], [3, 4, 1]], [2, 2, 0, 0, 3, 4], id="dots"),
        pytest.param(
            [[-4, 0, 0.1], [-1, -4, 0.9], [-1, -3, 0], [5, 5, 1.6]],
            [2, 3, 5, 2.5, 3, 4],
            id="pens are rounded",
        ),
        pytest.param([[7, 7, 2], [8, 9, 2]], [0, 0, 0, 0, 0, 0], id="no point"),
        pytest.param([*CORNER, [50, 60, 2]], CORNER_IS, id="something behind the end"),
        pytest.param([CORNER[0], [np.nan, 1, 0], *CORNER[1:]], CORNER_IS, id="not finite"),
        pytest.param(
            [[0, 0, 0], [0, 2, 0], [np.inf, 0, 1], [0, 9, 0], [0, 10, 0]],
            [2, 4, 3, 1.5, 0, 10],
            id="an end that is not finite",
        ),
    ],
)
def test_statistics_by_hand(drawing, expected):
    found = stroke_statistics(batch(drawing))
    assert list(found) == NAMES
    assert all(values.dtype == np.float64 and values.shape == (1,) for values in found.values())
    assert [values.item() for values in found.values()] == pytest.approx(expected)


def test_each_drawing_is_measured_by_itself():
    """Neither its neighbours nor the padding behind it change what is found."""
    drawings = some(40)
    together = stroke_statistics(batch(*drawings))
    longer = stroke_statistics(batch(*drawings, length=77))
    for name in NAMES:
        np.testing.assert_allclose(longer[name], together[name], rtol=1e-12)
    for index, drawing in enumerate(drawings):
        for name, (alone,) in stroke_statistics(batch(drawing)).items():
            assert together[name][index] == pytest.approx(alone)


def test_lengths_are_in_units_of_the_drawings():
    drawings = batch(*some(20))
    ours, doubled = stroke_statistics(drawings), stroke_statistics(drawings * [2, 2, 1])
    for name in NAMES:
        factor = 1 if name in ("strokes", "points") else 2
        np.testing.assert_allclose(doubled[name], factor * ours[name], rtol=1e-12)
    moved = stroke_statistics(drawings + [3, -5, 0])
    for name in NAMES:
        np.testing.assert_allclose(moved[name], ours[name], atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 5, 3), (4, 0, 3), (5, 3), (2, 5, 4)])
def test_what_is_no_set_of_drawings_is_refused(shape):
    with pytest.raises(ValueError, match=r"drawings have shape .* expected \[count, length, 3\]"):
        stroke_statistics(np.zeros(shape))
    with pytest.raises(ValueError, match="drawings have shape"):
        compare_strokes(batch(CORNER), np.zeros(shape))


def test_distances_of_shifted_sets_are_the_shift():
    """Level lines, all 3 longer than those of the other set: so is their ink."""
    lengths = np.random.default_rng(0).uniform(1, 9, size=30)
    ours = batch(*([[0, 0, 0], [x + 3, 0, 1]] for x in lengths))
    theirs = batch(*([[0, 0, 0], [x, 0, 1]] for x in lengths))
    moved = {"ink length": 3, "stroke length": 3, "width": 3}
    expected = {f"W1[{name}]": moved.get(name, 0) for name in NAMES if name != "points"}
    assert compare_strokes(ours, theirs) == pytest.approx(expected)
    assert compare_strokes(theirs, ours) == pytest.approx(expected)
    # A third stroke of 4 in one of four drawings, of any length: W1 is the mean of what is added.
    more = [*CORNER, [0, 1, 0], [0, 5, 1]]
    found = compare_strokes(batch(more, CORNER, CORNER, CORNER), batch(CORNER))
    assert found["W1[strokes]"] == pytest.approx(0.25)
    assert found["W1[ink length]"] == pytest.approx(1)
    assert found["W1[stroke length]"] == pytest.approx(0.25 * (5.5 - 5))


def test_only_the_sets_count():
    """Not the order of drawings, nor how often a set is repeated, nor the number of points."""
    ours, theirs = some(30), some(50, seed=1)
    found = compare_strokes(batch(*ours), batch(*theirs))
    assert set(found) == {f"W1[{name}]" for name in NAMES} - {"W1[points]"}
    assert min(found.values()) > 0
    again = compare_strokes(batch(*ours[::-1], *ours), batch(*theirs[::-1], length=90))
    assert again == pytest.approx(found)
    values = [stroke_statistics(batch(*drawings))["ink length"] for drawings in (ours, theirs)]
    assert found["W1[ink length]"] == pytest.approx(scipy.stats.wasserstein_distance(*values))
    zero = compare_strokes(batch(*ours), batch(*ours[::-1]))
    assert zero == pytest.approx(dict.fromkeys(zero, 0))
    # Twice as many points on the same lines.
    line = batch([[0, 0, 0], [4, 0, 1]]), batch([[0, 0, 0], [2, 0, 0], [4, 0, 1]])
    assert set(compare_strokes(*line).values()) == {0}


def test_splits_of_real_drawings_are_near_and_noise_is_far():
    assert_splits_are_near(EXCERPTS / "quickdraw_eye_mouth.npz", {"train": 0, "test": 2})


def assert_splits_are_near(path, splits, most=500):
    """Two splits of a packed file, with at most this many drawings of each."""
    found = {"train": [], "test": []}
    with np.load(path, allow_pickle=False) as file:
        points, offsets, split = (file[key] for key in ("points", "offsets", "split"))
        scale = float(file.get("scale", 1))
    rng = np.random.default_rng(0)
    for name, number in splits.items():
        chosen = np.flatnonzero(split == number)
        for i in rng.choice(chosen, size=min(most, len(chosen)), replace=False):
            found[name].append(prepared(points[offsets[i] : offsets[i + 1]], scale))
    train, test = batch(*found["train"]), batch(*found["test"])
    measured = stroke_statistics(test)
    np.testing.assert_array_equal(measured["points"], list(map(len, found["test"])))
    ended = [drawing[:, 2].sum() for drawing in found["test"]]
    np.testing.assert_array_equal(measured["strokes"], ended)
    # Points lie half a unit apart: a stroke of n points has n - 1 such steps, or a little more.
    steps = measured["points"] - measured["strokes"]
    assert (measured["ink length"] >= 0.49 * steps).all()
    noise = train.copy()
    noise[..., :2] += rng.normal(size=noise[..., :2].shape)
    noise[..., 2] = np.where(noise[..., 2] < 2, rng.random(noise.shape[:2]) < 0.3, 2)
    near, far = compare_strokes(train, test), compare_strokes(noise, test)
    for name in near:
        assert 0 < 2 * near[name] < far[name], name


def prepared(drawn, scale):
    lines = np.split(drawn[:, :2] / scale, np.flatnonzero(drawn[:, 2]) + 1)[:-1]
    return strokes.preprocess(packed.with_times(lines))[:, :3]
