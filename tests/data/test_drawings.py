import collections
import json

import numpy as np
import pytest

from sparsejax.data import packed, quickdraw
from sparsejax.data.drawings import Broken, Drawing, split_of, with_times
from sparsejax.data.items import SourceError
from tests.data.sets import EXCERPTS
from tests.data.sketches import DRAWING, line, save_lines, save_packed


def reasons(found):
    return {broken.name: broken.reason for broken in found if isinstance(broken, Broken)}


def names(found):
    return [drawing.name for drawing in found if isinstance(drawing, Drawing)]


def test_splits_by_hash_are_85_5_10_and_stay_the_same():
    counts = collections.Counter(split_of(str(i)) for i in range(20000))
    shares = [counts[split] / 20000 for split in ("train", "validation", "test")]
    np.testing.assert_allclose(shares, [0.85, 0.05, 0.10], atol=0.01)
    pinned = [split_of(key) for key in ("0", "9", "40", "05b57")]
    assert pinned == ["train", "validation", "test", "train"]


def test_times_go_on_between_strokes():
    strokes = [np.array([[0, 0], [3, 4]]), np.zeros((0, 2)), np.array([[3, 6], [3, 6], [4, 6]])]
    first, empty, last = with_times(strokes)
    np.testing.assert_array_equal(first, [[0, 0, 0], [3, 4, 5]])
    np.testing.assert_array_equal(last, [[3, 6, 7], [3, 6, 7], [4, 6, 8]])
    assert empty.shape == (0, 3)
    assert with_times([]) == []


def test_a_raw_file_is_read_as_json_says():
    """Google's file against a bare reading of its JSON."""
    path = EXCERPTS / "quickdraw_cat.ndjson"
    records = [json.loads(text) for text in path.read_text().splitlines()]
    found = list(quickdraw.read(path))
    assert len(found) == len(records) > 20
    assert sum(not record["recognized"] for record in records) > 0
    for number, (drawing, record) in enumerate(zip(found, records, strict=True), 1):
        assert drawing.name == f"quickdraw_cat.ndjson line {number}"
        assert (drawing.label, drawing.split) == (0, split_of(record["key_id"]))
        assert len(drawing.strokes) == len(record["drawing"])
        for stroke, lists in zip(drawing.strokes, record["drawing"], strict=True):
            np.testing.assert_array_equal(stroke, np.array(lists).T)


def test_simplified_files_get_the_pens_way_as_time(tmp_path):
    path = save_lines(tmp_path / "a.ndjson", line(drawing=[[[0, 3], [0, 4]], [[3, 3], [5, 8]]]))
    (drawing,) = quickdraw.read(path)
    np.testing.assert_array_equal(drawing.strokes[0], [[0, 0, 0], [3, 4, 5]])
    np.testing.assert_array_equal(drawing.strokes[1], [[3, 5, 6], [3, 8, 9]])


def test_labels_are_places_among_the_sorted_words(tmp_path):
    save_lines(tmp_path / "b.ndjson", line("owl"), line("cat"), "", line("ä pie"))
    save_lines(tmp_path / "a.ndjson", line("dog"), line("cat")[:40])
    (tmp_path / "notes.txt").write_text("?")

    def labels(*words):
        found = quickdraw.read(tmp_path, words)
        return [(drawing.name, drawing.label) for drawing in found if isinstance(drawing, Drawing)]

    dog, owl, cat, pie = "a.ndjson line 1", *(f"b.ndjson line {i}" for i in (1, 2, 4))
    assert labels() == [(dog, 1), (owl, 2), (cat, 0), (pie, 3)]
    assert list(reasons(quickdraw.read(tmp_path))) == ["a.ndjson line 2"]  # no empty lines
    assert labels("owl", "cat") == [(owl, 1), (cat, 0)]
    assert labels("ä pie") == [(pie, 0)]
    with pytest.raises(SourceError, match="no drawing of cow, pig; its words are cat, dog, owl"):
        labels("pig", "cat", "cow")


def test_the_order_of_a_lines_keys_does_not_matter(tmp_path):
    text = json.dumps({"drawing": DRAWING, "key_id": "1", "word": "cat"})
    path = save_lines(tmp_path / "a.ndjson", text, line("dog"))
    assert names(quickdraw.read(path, ("cat",))) == ["a.ndjson line 1"]


def test_broken_lines_are_named_and_the_others_kept(tmp_path):
    cases = {
        line()[: len(line()) // 2]: "cut short",
        "cat": "isn't JSON",
        "[" * 100000: "isn't JSON",
        "[1]": "a JSON object",
        '{"word": "cat"}': "lacks key_id, drawing",
        line(key=7): "isn't text",
        line(key="\ud800"): "isn't JSON in UTF-8",
        line(drawing={}): "isn't a list",
        line(drawing=[[[1, 2]]]): "two or three lists",
        line(drawing=[[1, 2]]): "two or three lists",
        line(drawing=[[[1, 2], [1], [0, 1]]]): "differ in length",
        line(drawing=[[[1, "2"], [1, 2], [0, 1]]]): "more than numbers",
        line(drawing=[[[1, True], [1, 2], [0, 1]]]): "more than numbers",
        line(drawing=[[[1, None], [1, 2], [0, 1]]]): "more than numbers",
        line(drawing=[[[1, [2]], [1, 2], [0, 1]]]): "more than numbers",
        line(drawing=[[[1, float("nan")], [1, 2], [0, 1]]]): "finite",
        line(drawing=[[[1, 10**400], [1, 2], [0, 1]]]): "finite",
        line(drawing=[*DRAWING, [[1, 2], [1, 2]]]): "only some strokes have times",
        line(drawing=DRAWING[::-1]): "times fall",
    }
    path = save_lines(tmp_path / "a.ndjson", line(), *cases, line(), line(drawing=[]))
    found = list(quickdraw.read(path))
    last = len(cases) + 2
    assert names(found) == [f"a.ndjson line {i}" for i in (1, last, last + 1)]
    assert found[-1].strokes == []
    problems = reasons(found)
    assert len(problems) == len(cases)
    for number, reason in enumerate(cases.values(), 2):
        assert reason in problems[f"a.ndjson line {number}"], number


def test_lines_that_are_no_text_are_named(tmp_path):
    (tmp_path / "a.ndjson").write_bytes(b'{"word": "\xff\xfe"}\n' + line().encode())
    found = list(quickdraw.read(tmp_path))
    assert reasons(found) == {"a.ndjson line 1": "it isn't JSON in UTF-8, or is cut short"}
    assert names(found) == ["a.ndjson line 2"]


def test_folders_without_ndjson_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text(line())
    problems = {"": "holds no .ndjson", "a.txt": "doesn't end in", "b.ndjson": "doesn't exist"}
    for name, problem in problems.items():
        with pytest.raises(SourceError, match=problem):
            list(quickdraw.read(tmp_path / name))


def test_a_packed_npz_gives_strokes(tmp_path):
    path = save_packed(tmp_path / "a.npz", scale=np.float32(2), label=[7, 8, 9], split=[0, 1, 2])
    found = list(packed.read(path))
    assert [drawing[:3] for drawing in found] == [
        ("item 0", "train", 7),
        ("item 1", "validation", 8),
        ("item 2", "test", 9),
    ]
    assert [len(drawing.strokes) for drawing in found] == [1, 2, 1]
    np.testing.assert_array_equal(found[0].strokes[0], [[0, 0, 0], [3, 4, 5]])
    np.testing.assert_array_equal(found[1].strokes[1], [[2, 3.5, 3.5], [2, 4.5, 4.5]])
    np.testing.assert_allclose(found[1].strokes[0], [[0.5, 0.5, 0], [0.5, 1.5, 1]])


def test_two_way_splits_and_none(tmp_path):
    two = packed.read(save_packed(tmp_path / "two.npz", split=[1, 0, 1]))
    assert [drawing.split for drawing in two] == ["test", "train", "test"]
    none = list(packed.read(save_packed(tmp_path / "none.npz")))
    assert [drawing.split for drawing in none] == [split_of(f"item {i}") for i in range(3)]
    assert [drawing.label for drawing in none] == [0, 0, 0]


def test_words_choose_among_labels(tmp_path):
    held = {"label": [2, 0, 1], "words": ["owl", "ant", "cat"]}
    path = save_packed(tmp_path / "a.npz", **held)
    assert [drawing.label for drawing in packed.read(path)] == [2, 0, 1]
    chosen = [(drawing.name, drawing.label) for drawing in packed.read(path, ("owl", "cat"))]
    assert chosen == [("item 0", 0), ("item 1", 1)]
    with pytest.raises(SourceError, match="has no cow; its words are owl, ant, cat"):
        list(packed.read(path, ("cat", "cow")))
    with pytest.raises(SourceError, match="no key words"):
        list(packed.read(save_packed(tmp_path / "b.npz"), ("cat",)))
    with pytest.raises(SourceError, match="beyond the 3 words"):
        list(packed.read(save_packed(tmp_path / "c.npz", **held | {"label": [0, 1, 3]}), ("cat",)))


def test_real_packed_files_are_read():
    assert_read_whole(EXCERPTS / "kanjivg.npz")


def assert_read_whole(path):
    """Every stroke of a packed file, counted by its pen and by its key."""
    found = list(packed.read(path))
    with np.load(path, allow_pickle=False) as arrays:
        counts, split, points = arrays["n_strokes"], arrays["split"], arrays["points"]
    assert [len(drawing.strokes) for drawing in found] == counts.tolist()
    order = ("train", "validation", "test")
    assert [order.index(drawing.split) for drawing in found] == split.tolist()
    joined = np.concatenate([stroke for drawing in found for stroke in drawing.strokes])
    np.testing.assert_array_equal(joined[:, :2] * 64, points[:, :2])


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        ((5, 2), 0, "no end"),
        ((4, 2), 0.5, "pen holds"),
        ((2, 0), np.nan, "finite"),
        ((2, 1), np.inf, "finite"),
    ],
)
def test_broken_items_are_named_and_the_others_kept(tmp_path, place, value, problem):
    points = np.array([[0, 0, 0], [6, 8, 1], [1, 1, 0], [4, 7, 0], [4, 9, 0], [4, 9, 1.0]])
    points[place] = value
    path = save_packed(tmp_path / "a.npz", points=points, offsets=[0, 2, 6, 6])
    found = list(packed.read(path))
    assert names(found) == ["item 0", "item 2"]
    assert found[-1].strokes == []
    (reason,) = reasons(found).values()
    assert problem in reason


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"points": None}, "its keys are offsets"),
        ({"offsets": None}, "its keys are points"),
        ({"points": np.zeros((8, 2))}, r"points are float64 \[8, 2\]"),
        ({"points": np.full((8, 3), "a")}, r"points are <U1"),
        ({"points": np.full((8, 3), None)}, "damaged"),
        ({"offsets": [0, 6, 2, 8]}, "offsets don't rise from 0 to 8"),
        ({"offsets": np.uint8([0, 6, 2, 8])}, "offsets don't rise"),
        ({"offsets": [0, 2, 6, 9]}, "offsets don't rise"),
        ({"offsets": [0, 2, 6, 7]}, "offsets don't rise"),
        ({"offsets": [1, 2, 6, 8]}, "offsets don't rise"),
        ({"offsets": [0]}, "fewer than two"),
        ({"offsets": [0.0, 2, 6, 8]}, "offsets is float64"),
        ({"scale": 0}, "scale isn't"),
        ({"scale": [1, 2, 3]}, "scale isn't"),
        ({"scale": np.nan}, "scale isn't"),
        ({"label": [1, 2]}, r"label is int64 \[2\]"),
        ({"split": [0, 1, 3]}, "split holds more"),
    ],
)
def test_an_npz_that_does_not_fit_is_refused(tmp_path, changes, problem):
    with pytest.raises(SourceError, match=problem):
        list(packed.read(save_packed(tmp_path / "a.npz", **changes)))


@pytest.mark.parametrize("cut", [0, 10, 0.5, 0.99])
def test_a_truncated_npz_is_refused(tmp_path, cut):
    whole = save_packed(tmp_path / "whole.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: cut if cut >= 1 else int(cut * len(whole))])
    with pytest.raises(SourceError, match="damaged"):
        list(packed.read(tmp_path / "a.npz"))
    damaged = bytearray(whole)
    damaged[whole.index(b"NUMPY") + 140] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(damaged)
    with pytest.raises(SourceError, match="damaged"):
        list(packed.read(tmp_path / "a.npz"))
