import os
import pathlib
import shutil

import numpy as np
import pytest
from absl import logging as absl_logging

from sparsejax.data import images, kanjivg, packed, publishers, quickdraw, strokes
from sparsejax.data.builders import SKETCHES, datasets, full_name, open_builder
from sparsejax.errors import ConfigError
from tests.data.sets import EXCERPTS, task
from tests.data.sketches import line, save_lines, save_packed, save_svgs, svg


def prepared(data_dir, **changes):
    """A prepared set: for each split, points and label by name."""
    builder = open_builder(task(data_dir, **changes))
    content = {}
    for split in builder.info.splits:
        source = builder.as_data_source(split)
        records = [source[i] for i in range(len(source))]
        content[split] = {r["name"].decode(): (r["points"], r["label"]) for r in records}
    return content


def left_out(data_dir, **changes):
    folder = pathlib.Path(open_builder(task(data_dir, **changes)).data_dir)
    return (folder / "left_out.txt").read_text().splitlines()


def test_the_four_sets_are_known():
    assert SKETCHES == ("quickdraw_strokes", "kanjivg", "vmnist", "vmnist_like")
    assert datasets()[:2] == ("digits", "files")
    assert datasets()[-4:] == SKETCHES


@pytest.mark.parametrize(
    ("dataset", "name", "read"),
    [
        ("kanjivg", "kanjivg.zip", kanjivg.read),
        ("quickdraw_strokes", "quickdraw_cat.ndjson", quickdraw.read),
    ],
)
def test_the_publishers_files_become_a_set(tmp_path, dataset, name, read):
    """Every drawing is stored in its split, as it is preprocessed."""
    path = EXCERPTS / name
    content = prepared(tmp_path, dataset=dataset, source=path)
    assert list(content) == ["train", "validation", "test"]
    found = list(read(path))
    assert sum(map(len, content.values())) == len(found)
    for drawing in found:
        points, label = content[drawing.split][drawing.name]
        assert points.dtype == np.float32
        np.testing.assert_array_equal(points, strokes.preprocess(drawing.strokes))
        assert label == drawing.label
    expected = [f"{dataset}: 0 of {len(found)} drawings left out"]
    assert left_out(tmp_path, dataset=dataset, source=path) == expected


@pytest.mark.parametrize(
    ("dataset", "arrays"),
    [("vmnist", {}), ("vmnist_like", {"mnist_index": [5, 6, 7]}), ("kanjivg", {})]
    + [("quickdraw_strokes", {"words": ["owl", "cat"]})],
)
def test_a_packed_npz_becomes_each_of_them(tmp_path, dataset, arrays):
    path = save_packed(tmp_path / "a.npz", label=[0, 1, 0], split=[0, 0, 1], **arrays)
    content = prepared(tmp_path / "sets", dataset=dataset, source=path)
    assert {split: sorted(records) for split, records in content.items()} == {
        "train": ["item 0", "item 1"],
        "test": ["item 2"],
    }
    assert content["train"]["item 1"][1] == 1


def test_words_choose_and_give_sets_of_their_own(tmp_path):
    folder = tmp_path / "words"
    folder.mkdir()
    for word in ("cat", "dog", "owl"):
        save_lines(folder / f"{word}.ndjson", line(word, "0"), line(word, "1"))
    settings = {"dataset": "quickdraw_strokes", "source": folder}
    labels = {"cat": 0, "dog": 1, "owl": 2}

    def held(words):
        content = prepared(tmp_path / "sets", **settings, words=words)
        return {(name[:3], int(label)) for name, (_, label) in content["train"].items()}

    assert held(()) == set(labels.items())
    assert held(("owl", "cat")) == {("cat", 0), ("owl", 1)}
    assert held(["dog"]) == {("dog", 0)}
    names = [
        full_name(task(tmp_path, **settings, words=words))
        for words in ((), ("cat",), ("owl", "cat"), ("cat", "owl"))
    ]
    assert len(set(names)) == 3
    assert names[2] == names[3]
    with pytest.raises(ConfigError, match=r"config\.task\.source.*no drawing of cow"):
        prepared(tmp_path / "sets", **settings, words=("cat", "cow"))
    with pytest.raises(ConfigError, match=r"config\.task\.words is 'cat'; accepted: a tuple"):
        prepared(tmp_path / "sets", **settings, words="cat")


def test_words_choose_from_a_packed_npz(tmp_path):
    held = {"label": [0, 1, 0], "words": ["owl", "cat"], "split": [0, 0, 0]}
    path = save_packed(tmp_path / "a.npz", **held)
    settings = {"dataset": "quickdraw_strokes", "source": path, "words": ("cat",)}
    content = prepared(tmp_path / "sets", **settings)
    assert {name: int(label) for name, (_, label) in content["train"].items()} == {"item 1": 0}


def test_what_cannot_be_used_is_counted_and_named_and_the_rest_kept(tmp_path, caplog):
    folder = save_svgs(
        tmp_path / "svg",
        **{f"{i:05x}": svg("M1,1h9", name=f"{i:05x}") for i in range(0x4E00, 0x4E20)},
        **{"05b57": svg("M1,1c2"), "05b58": svg("M5,5"), "05b59": svg(), "05b5a": "<svg>"},
    )
    settings = {"dataset": "kanjivg", "source": folder}
    verbosity = absl_logging.get_verbosity()
    content = prepared(tmp_path / "sets", **settings)
    assert sum(map(len, content.values())) == 32
    assert absl_logging.get_verbosity() == verbosity
    summary = "kanjivg: 4 of 36 drawings left out"
    named = [
        "05b57 kvg:05b57-s1: what follows c isn't as it should be",
        "05b58: no stroke of two points or more",
        "05b59: no stroke of two points or more",
        "05b5a: it isn't XML, or is cut short",
    ]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    first, *lines = record.getMessage().splitlines()
    assert first == f"{summary}:"
    assert "  2 times: no stroke of two points or more" in lines
    assert [line.strip() for line in lines if " times: " not in line] == named
    assert left_out(tmp_path / "sets", **settings) == [summary, *named]


def test_quickdraw_drawings_that_cannot_be_used_are_named(tmp_path, caplog):
    one_point = line(key="3", drawing=[[[1], [2], [0]]])
    cut, empty = line(key="4")[:-9], line(key="5", drawing=[])
    path = save_lines(tmp_path / "a.ndjson", line(key="0"), one_point, cut, empty, line(key="1"))
    content = prepared(tmp_path / "sets", dataset="quickdraw_strokes", source=path)
    assert sorted(content["train"]) == ["a.ndjson line 1", "a.ndjson line 5"]
    assert caplog.records[0].getMessage().splitlines() == [
        "quickdraw_strokes: 3 of 5 drawings left out:",
        "  2 times: no stroke of two points or more",
        "  1 times: it isn't JSON in UTF-8, or is cut short",
        "  a.ndjson line 2: no stroke of two points or more",
        "  a.ndjson line 3: it isn't JSON in UTF-8, or is cut short",
        "  a.ndjson line 4: no stroke of two points or more",
    ]


def test_no_more_than_twenty_are_listed_and_all_are_written(tmp_path, caplog):
    path = save_lines(tmp_path / "a.ndjson", line(key="0"), *["?"] * 23)
    settings = {"dataset": "quickdraw_strokes", "source": path}
    prepared(tmp_path / "sets", **settings)
    message = caplog.records[0].getMessage()
    assert message.count("a.ndjson line") == 20
    assert message.endswith("\n  and 3 more, all of them in left_out.txt")
    assert len(left_out(tmp_path / "sets", **settings)) == 24


@pytest.mark.usefixtures("own_logging")
def test_the_warning_is_given_where_absl_holds_back_others(tmp_path, caplog):
    """A script under absl.app has absl's handler on the root logger, which sets its level."""
    absl_logging.use_absl_handler()
    path = save_lines(tmp_path / "a.ndjson", line(key="0"), "?")
    prepared(tmp_path / "sets", dataset="quickdraw_strokes", source=path)
    assert "1 of 2 drawings left out" in caplog.text


def test_files_that_are_not_read_are_counted_and_named(tmp_path, caplog):
    folder = save_svgs(tmp_path / "svg", **{"05b57": svg("M1,1h9")})
    (folder / "05b58.SVG").write_text(svg("M1,1h9", name="05b58"))
    for name in ("05b59.svgz", "README.md", ".DS_Store", "old/05b60.svg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(svg("M1,1h9"))
    shutil.make_archive(tmp_path / "kanji", "zip", folder)
    for source in (folder, tmp_path / "kanji.zip"):
        caplog.clear()
        content = prepared(tmp_path / "sets", dataset="kanjivg", source=source)
        assert {name for split in content.values() for name in split} == {"05b57", "05b58"}
        (record,) = caplog.records
        assert record.getMessage().startswith("kanjivg: 3 files left out: .")
        kinds = (".svgz (1)", ".md (1)", ".svg (1)")
        assert all(kind in record.getMessage() for kind in kinds)

    words = tmp_path / "words"
    (words / "more").mkdir(parents=True)
    save_lines(words / "cat.ndjson", line(key="0"))
    save_lines(words / "dog.NDJSON", line("dog", key="0"))
    save_lines(words / "owl.ndjson.gz", "?")
    caplog.clear()
    content = prepared(tmp_path / "sets", dataset="quickdraw_strokes", source=words)
    assert sorted(content["train"]) == ["cat.ndjson line 1", "dog.NDJSON line 1"]
    expected = "2 files left out: folders (1), .gz (1); the first is more"
    assert caplog.messages == [f"quickdraw_strokes: {expected}"]


def test_no_drawing_is_a_reason_to_lose_the_others(tmp_path, caplog):
    """Coordinates and times at the end of what floats can hold, and names that are no text."""
    far, late = [1e308, -1e308], [0, 1e308]
    path = save_lines(
        tmp_path / "a.ndjson",
        line(key="0"),
        line(key="1", drawing=[[far, far, [0, 1]]]),
        line(key="2", drawing=[[[0, 1e200], [0, 1]]]),
        line(key="3", drawing=[[[0, 1], [0, 1], [-1e308, 1e308]]]),
        line(key="4", drawing=[[[0, 1], [0, 1], late]]),
        line(key="5", drawing=[[[0, 5e-324], [0, 0]]]),
        line(key="6", drawing=[[[0, 1] * 10**5, [0, 1] * 10**5]]),
    )
    content = prepared(tmp_path / "sets", dataset="quickdraw_strokes", source=path)
    kept = {name: points for split in content.values() for name, (points, _) in split.items()}
    assert {"a.ndjson line 1", "a.ndjson line 5"} <= kept.keys()
    assert all(np.isfinite(points).all() for points in kept.values())
    lost = {f"a.ndjson line {number}" for number in (2, 4, 7)}
    assert lost.isdisjoint(kept)
    assert all(f"  {name}: " in caplog.text for name in lost)
    folder = save_svgs(tmp_path / "svg", **{"05b57": svg("M1,1h9")})
    (folder / os.fsdecode(b"\xff.svg")).write_text(svg("M1,1h9"))
    assert left_out(tmp_path / "sets", dataset="kanjivg", source=folder)[1:] == [
        r"\xff: its name isn't a code point"
    ]


def test_whatever_fails_in_one_drawing_leaves_it_out(tmp_path, monkeypatch, caplog):
    """Even an error that nobody thought of, in any of the readers."""

    def failing(points):
        raise ZeroDivisionError("no\nradius")

    for module, name in ((kanjivg, "flatten"), (packed, "with_times"), (quickdraw, "split_of")):
        monkeypatch.setattr(module, name, lambda *_: failing(None))
    save_svgs(tmp_path / "svg", **{"05b57": svg("M1,1h9")})
    sources = {
        "kanjivg": tmp_path / "svg",
        "vmnist": save_packed(tmp_path / "a.npz"),
        "quickdraw_strokes": save_lines(tmp_path / "a.ndjson", line()),
    }
    for dataset, source in sources.items():
        with pytest.raises(ConfigError, match=r"left out: ZeroDivisionError no radius \(\d\); the"):
            prepared(tmp_path / "sets", dataset=dataset, source=source)


def test_a_set_without_training_data_is_refused(tmp_path):
    broken = save_lines(tmp_path / "a.ndjson", line()[:30], line(drawing=[]))
    message = (
        r"no drawing for train; 2 of 2 drawings left out: it isn't JSON .* \(1\); no stroke of "
    )
    message += r"two points or more \(1\); the first is a.ndjson line 1; accepted with "
    with pytest.raises(ConfigError, match=message) as error:
        prepared(tmp_path / "sets", dataset="quickdraw_strokes", source=broken)
    assert "\n" not in str(error.value)
    test_only = save_packed(tmp_path / "a.npz", split=[2, 2, 2])
    with pytest.raises(ConfigError, match=r"no drawing for train; 0 of 3"):
        prepared(tmp_path / "sets", dataset="vmnist", source=test_only)
    assert not list((tmp_path / "sets").rglob("*record*"))


def test_changed_sources_are_not_served_stale(tmp_path):
    folder = save_svgs(tmp_path / "svg", **{"05b57": svg("M1,1h9")})
    settings = {"dataset": "kanjivg", "source": folder}

    def end():
        return prepared(tmp_path / "sets", **settings)["train"]["05b57"][0][-1, :2].tolist()

    assert end() == [10, 0]
    status = (folder / "05b57.svg").stat()
    save_svgs(folder, **{"05b57": svg("M1,1v9")})
    os.utime(folder / "05b57.svg", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert end() == [0, 10]
    path = tmp_path / "a.npz"
    for label in (3, 4):
        save_packed(path, label=[label] * 3, split=[0, 0, 0])
        content = prepared(tmp_path / "sets", dataset="vmnist", source=path)
        assert content["train"]["item 0"][1] == label


def test_the_version_of_the_preprocessing_is_in_the_name(tmp_path, monkeypatch):
    settings = task(tmp_path, dataset="vmnist", source=save_packed(tmp_path / "a.npz"))
    before = full_name(settings)
    assert strokes.VERSION in before
    monkeypatch.setattr(strokes, "VERSION", "other-2")
    assert full_name(settings) == before.replace("chirodiff-1", "other-2")


def test_traced_digits_are_not_vmnist(tmp_path):
    traced = save_packed(tmp_path / "a.npz", mnist_index=[1, 2, 3])
    with pytest.raises(ConfigError, match=r"config\.task\.source.*dataset = 'vmnist_like'"):
        open_builder(task(tmp_path, dataset="vmnist", source=traced))
    with pytest.raises(ConfigError, match=r"config\.task\.source.*lacks the key mnist_index"):
        open_builder(task(tmp_path, dataset="vmnist_like", source=save_packed(tmp_path / "b.npz")))


@pytest.mark.parametrize("dataset", SKETCHES)
def test_sources_that_are_none_are_refused(tmp_path, dataset):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("?")
    (tmp_path / "a.npz").write_text("?")
    nothing = () if dataset in publishers.URLS else ("",)
    for source in (*nothing, *(tmp_path / n for n in ("nowhere", "empty", "a.txt", "a.npz"))):
        with pytest.raises(ConfigError, match=r"config\.task\.source is .*accepted.*npz in the"):
            open_builder(task(tmp_path / "sets", dataset=dataset, source=source))


def test_words_and_sources_belong_to_some_sets_only(tmp_path):
    path = save_packed(tmp_path / "a.npz")
    with pytest.raises(ConfigError, match=r"config\.task\.words.*accepted: \(\) with .* vmnist"):
        open_builder(task(tmp_path, dataset="vmnist", source=path, words=("cat",)))
    full_name(task(tmp_path, dataset="digits", words=("cat",)))
    with pytest.raises(ConfigError, match=r"others with files, hf, quickdraw_strokes, kanjivg"):
        open_builder(task(tmp_path, dataset="digits", source=path))


def test_drawings_are_no_images(tmp_path):
    settings = task(tmp_path, dataset="kanjivg", source=save_packed(tmp_path / "a.npz"))
    with pytest.raises(ConfigError, match=r"config\.task\.dataset is 'kanjivg'; .*lsun_bedroom$"):
        images.open_images(settings, "train")
