import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from sparsejax.data import sketches as data
from sparsejax.data.sketches import Sketches, bucket_bounds, pad, padding, sketch_batches
from tests.data.sets import task
from tests.data.sketches import save_packed


def drawn(lengths, seed=0):
    """Random sequences of these lengths; the x of every point is the drawing's index."""
    offsets = np.cumsum([0, *lengths])
    points = np.random.default_rng(seed).normal(size=(offsets[-1], 4)).astype(np.float32)
    points[:, 0] = np.repeat(np.arange(len(lengths)), lengths)
    return Sketches(points, offsets)


SOME = drawn(np.random.default_rng(1).integers(1, 60, size=50))
BOUNDS = (16, 32, 64)


def batches(start, stop, sketches=SOME, size=8, seed=0):
    return list(sketch_batches(sketches, BOUNDS, size, seed, start, stop))


def drawings_of(batch):
    return batch["points"][:, 0, 0].astype(int).tolist()


@hypothesis.given(
    st.lists(st.integers(1, 299), min_size=1, max_size=30).map(np.array), st.integers(1, 3)
)
@hypothesis.settings(max_examples=30, deadline=None)
def test_bounds_waste_the_least(lengths, count):
    bounds = bucket_bounds(lengths, count)
    assert len(bounds) <= count
    assert all(bound % 8 == 0 for bound in bounds)
    assert set(np.searchsorted(bounds, lengths)) == set(range(len(bounds)))  # none is empty
    assert list(bounds) == sorted(set(bounds))
    assert bounds[-1] - 8 < lengths.max() <= bounds[-1]
    # Every other choice among the lengths themselves, rounded up, is no better.
    rounded = sorted({int(-(-n // 8) * 8) for n in lengths})
    for size in range(min(count, len(rounded))):
        for others in itertools.combinations(rounded[:-1], size):
            assert padding(lengths, bounds) <= padding(lengths, (*others, rounded[-1])) + 1e-12


def test_padding_is_the_share_of_rows_behind_the_ends():
    whole = pad(SOME, np.arange(50), 64)
    behind = 1 - whole["lengths"].sum() / whole["points"][..., 0].size
    assert padding(SOME.lengths, (64,)) == pytest.approx(behind)
    assert padding(SOME.lengths, BOUNDS) < behind / 2


def test_padding_keeps_the_points_and_adds_zeros():
    batch = pad(SOME, np.array([7, 3]), 64)
    for row, index in enumerate((7, 3)):
        own = SOME.points[SOME.offsets[index] : SOME.offsets[index + 1]]
        np.testing.assert_array_equal(batch["points"][row, : len(own)], own[:, :3])
        np.testing.assert_array_equal(batch["times"][row, : len(own)], own[:, 3])
        assert batch["lengths"][row] == len(own)
        assert not batch["points"][row, len(own) :].any()
        assert not batch["times"][row, len(own) :].any()


def test_a_batch_is_a_function_of_the_step():
    whole = batches(0, 40)
    for start in (1, 17):
        for ours, theirs in zip(batches(start, 40), whole[start:], strict=True):
            for key in ours:
                np.testing.assert_array_equal(ours[key], theirs[key])
    shorter = batches(0, 10)
    assert [drawings_of(b) for b in shorter] == [drawings_of(b) for b in whole[:10]]
    other = batches(0, 10, seed=1)
    assert [drawings_of(b) for b in other] != [drawings_of(b) for b in shorter]


def test_a_batch_comes_from_one_bucket():
    seen = set()
    for batch in batches(0, 60):
        length = batch["points"].shape[1]
        lower = ([0, *BOUNDS])[BOUNDS.index(length)]
        assert ((lower < batch["lengths"]) & (batch["lengths"] <= length)).all()
        seen.add(length)
    assert seen == set(BOUNDS)


@pytest.mark.slow
def test_every_drawing_is_as_likely_as_any_other():
    """Each bucket passes through its drawings in turn, and comes up as often as it has some."""
    counts = np.zeros(50)
    steps = 600
    for batch in batches(0, steps):
        np.add.at(counts, drawings_of(batch), 1)
    expected = steps * 8 / 50
    buckets = np.searchsorted(BOUNDS, SOME.lengths)
    for b in range(3):
        assert np.ptp(counts[buckets == b]) <= 1
    # A bucket's steps are binomial: five standard deviations of the smallest one's mean.
    share = np.bincount(buckets) / 50
    limit = 5 * np.sqrt(steps * share * (1 - share)) / (steps * share) * expected
    assert (np.abs(counts - expected) < limit[buckets]).all()


def test_processes_share_a_batch(monkeypatch):
    whole = batches(0, 5)
    monkeypatch.setattr(data.jax, "process_count", lambda: 2)
    for process in range(2):
        monkeypatch.setattr(data.jax, "process_index", lambda process=process: process)
        for ours, batch in zip(batches(0, 5), whole, strict=True):
            part = slice(4 * process, 4 * process + 4)
            assert ours.keys() == batch.keys()
            for key in ours:
                np.testing.assert_array_equal(ours[key], batch[key][part])


def test_ordered_batches_hold_every_drawing_once():
    listed = list(data.ordered_batches(SOME, 3, 8))
    assert sorted(sum(map(drawings_of, listed), [])) == list(range(50))
    shapes = {batch["points"].shape[1] for batch in listed}
    assert shapes == set(bucket_bounds(SOME.lengths, 3))
    assert all(len(batch["lengths"]) <= 8 for batch in listed)


def save_pointers(path, **changes):
    """An npz of 60 lines; a line's direction is an eighth of a turn times its label."""
    labels = np.random.default_rng(2).integers(0, 8, size=60)
    ends = 100 * np.stack([np.cos(labels * np.pi / 4), np.sin(labels * np.pi / 4)], axis=1)
    points = np.zeros((120, 3))
    points[1::2, :2], points[1::2, 2] = ends, 1
    arrays = {"offsets": np.arange(0, 121, 2), "label": labels, "split": np.arange(60) % 3}
    return save_packed(path, points=points, **arrays | changes)


def directions(sketches):
    """Eighths of a turn in which the lines of `save_pointers` end."""
    x, y = sketches.points[sketches.offsets[1:] - 1, :2].T
    return np.rint(np.arctan2(y, x) / (np.pi / 4)).astype(int) % 8


def test_labels_belong_to_the_drawings(tmp_path):
    source = save_pointers(tmp_path / "pointers.npz")
    settings = task(tmp_path, dataset="vmnist", source=source, representation="threeseqabs")
    for split, count in (("train", 20), ("test", 20), ("train[3:8]", 5)):
        labels = data.load_labels(settings, split)
        assert (labels.dtype, labels.shape) == (np.int64, (count,))
        np.testing.assert_array_equal(labels, directions(data.load_sketches(settings, split)))
    assert len(set(data.load_labels(settings, "train"))) > 3


def test_labels_are_read_with_the_drawings(tmp_path, monkeypatch):
    source = save_pointers(tmp_path / "pointers.npz")
    settings = task(tmp_path, dataset="vmnist", source=source, representation="threeseqdel")
    data.load_sketches(settings, "train")
    monkeypatch.setattr(data, "represent", None)
    assert len(data.load_labels(settings, "train")) == 20


def test_labels_of_words_and_of_none(tmp_path):
    words = np.array(list("hgfedcba"))
    source = save_pointers(tmp_path / "pointers.npz", words=words)
    chosen = task(
        tmp_path,
        dataset="quickdraw_strokes",
        source=source,
        representation="threeseqabs",
        words=("c", "g"),
    )
    labels = data.load_labels(chosen, "train")
    drawn = directions(data.load_sketches(chosen, "train"))
    assert {"cg"[label] for label in labels} == set("cg")
    assert ["cg"[label] for label in labels] == words[drawn].tolist()
    source = save_pointers(tmp_path / "unlabelled.npz", label=None)
    none = task(tmp_path, dataset="vmnist", source=source, representation="threeseqabs")
    assert data.load_labels(none, "train").tolist() == [0] * 20
