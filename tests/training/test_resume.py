"""What a resumed run may change: what doesn't touch the training, and where the same data lie."""

import json
import shutil

import numpy as np
import pytest

from sparsejax.configuration import resolve
from sparsejax.errors import ConfigError
from sparsejax.families import build_data, stamp_data
from sparsejax.training import loop, runs
from tests.data.sets import encoded, pixels, write
from tests.data.sketches import line, save_lines, save_packed, save_svgs, svg
from tests.data.test_builders import prepare
from tests.training.tiny import tiny_config


def config_of(source, **changes):
    """The tiny config on images of one's own."""
    config = tiny_config(**{"task.dataset": "files", "task.source": str(source), **changes})
    config.model.in_channels = config.model.out_channels = 3
    return config


def begun(folder, config):
    """A workdir as a run leaves it at its start, in which nothing is trained yet."""
    runs.save_config(folder, resolve(config))
    return folder


@pytest.fixture
def photos(tmp_path):
    files = {f"{i % 2}/{i}.png": pixels(i) for i in range(6)}
    return write(tmp_path / "photos", **files, **{"notes.txt": b"?"})


def assert_other_data(workdir, config, key):
    before = (workdir / "config.json").read_text()
    with pytest.raises(ConfigError) as refused:
        runs.resolve_for(workdir, config)
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith(f"config.{key} is ")
    assert "which holds different data (" in message
    assert str(workdir) in message
    with pytest.raises(ConfigError, match="different data"):
        loop.train(config, workdir)
    assert (workdir / "config.json").read_text() == before


def test_moved_images_are_known_again(tmp_path, photos):
    """Copied, so that times differ, and under another name; other files don't count."""
    workdir = begun(tmp_path / "run", config_of(photos))
    shutil.copytree(photos, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    (tmp_path / "elsewhere/notes.txt").unlink()
    moved = config_of(tmp_path / "elsewhere")
    assert runs.resolve_for(workdir, moved).task.source == str(tmp_path / "elsewhere")
    runs.save_config(workdir, resolve(moved))
    assert runs.read_config(workdir).task.source == str(tmp_path / "elsewhere")
    shutil.rmtree(photos)
    runs.resolve_for(workdir, moved)
    with pytest.raises(ConfigError, match=r"config\.task\.source is .*it doesn't exist"):
        runs.resolve_for(workdir, config_of(photos))


@pytest.mark.parametrize("change", ["more", "fewer", "renamed", "another size"])
def test_other_images_are_refused_in_the_same_place_and_in_another(tmp_path, photos, change):
    workdir = begun(tmp_path / "run", config_of(photos))
    one = photos / "0/2.png"
    if change == "more":
        write(photos, **{"1/new.png": pixels(9)})
    elif change == "fewer":
        one.unlink()
    elif change == "renamed":
        one.rename(photos / "0/new.png")
    else:
        one.write_bytes(encoded(pixels(2, 9, 9)))
    shutil.copytree(photos, tmp_path / "elsewhere")
    for place in (photos, tmp_path / "elsewhere"):
        assert_other_data(workdir, config_of(place), "task.source")


def test_a_renamed_npz_is_the_same_and_a_changed_one_is_not(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.stack([pixels(i) for i in range(4)]))
    workdir = begun(tmp_path / "run", config_of(tmp_path / "a.npz"))
    (tmp_path / "a.npz").rename(tmp_path / "b.npz")
    runs.resolve_for(workdir, config_of(tmp_path / "b.npz"))
    np.savez(tmp_path / "b.npz", images=np.stack([pixels(i + 1) for i in range(4)]))
    assert_other_data(workdir, config_of(tmp_path / "b.npz"), "task.source")


def strokes_config(dataset, source):
    config = tiny_config(**{"task.name": "strokes", "task.dataset": dataset})
    config.task.source = str(source)
    return resolve(config)


def test_stamps_of_drawings_tell_contents_apart_and_not_places(tmp_path):
    for name, path in {"a": "M1,1h9", "b": "M1,1h9", "c": "M1,1h99"}.items():
        save_svgs(tmp_path / name, **{"05b57": svg(path)})
    stamps = [stamp_data(strokes_config("kanjivg", tmp_path / name)) for name in "abc"]
    assert stamps[0] == stamps[1] != stamps[2]
    for name in ("x.npz", "y.npz"):
        save_packed(tmp_path / name)
    npz = [stamp_data(strokes_config("vmnist", tmp_path / name)) for name in ("x.npz", "y.npz")]
    assert npz[0] == npz[1]
    # Drawings of a single ndjson file are ordered by its name.
    for name in ("d/cat.ndjson", "e/cat.ndjson", "e/owl.ndjson"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_lines(tmp_path / name, line())
    cat, same, owl = (
        stamp_data(strokes_config("quickdraw_strokes", tmp_path / name))
        for name in ("d/cat.ndjson", "e/cat.ndjson", "e/owl.ndjson")
    )
    assert cat == same != owl
    d, e = (stamp_data(strokes_config("quickdraw_strokes", tmp_path / name)) for name in "de")
    assert d != e


def test_a_published_set_is_known_by_its_splits(tmp_path):
    for name in "ab":
        prepare("celeb_a_hq", tmp_path / name)
    config = tiny_config(**{"task.dataset": "celeb_a_hq", "task.data_dir": str(tmp_path / "a")})
    workdir = begun(tmp_path / "run", config)
    config.task.data_dir = str(tmp_path / "b")
    runs.resolve_for(workdir, config)
    stamp = json.loads((workdir / "data.json").read_text())
    assert stamp["task.data_dir"]["splits"]["validation"][0] == 1
    stamp["task.data_dir"]["splits"]["train"][0] += 1
    (workdir / "data.json").write_text(json.dumps(stamp))
    message = r"config\.task\.data_dir is .*\(train 3, validation 1\).*\(train 4, validation 1\)"
    with pytest.raises(ConfigError, match=message):
        runs.resolve_for(workdir, config)


def test_moved_images_give_the_same_batches(tmp_path, photos):
    """However they are named and dated, so that a resumed run ends as if they had not moved."""
    shutil.copytree(photos, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    here, there = (
        build_data(resolve(config_of(place, **{"task.data_dir": str(tmp_path / "sets")})))
        for place in (photos, tmp_path / "elsewhere")
    )
    for ours, theirs in zip(there.batches(1, 4), here.batches(1, 4), strict=True):
        np.testing.assert_array_equal(ours["image"], theirs["image"])


def test_a_run_without_a_stamp_has_to_find_its_data_in_the_same_place(tmp_path, photos):
    workdir = begun(tmp_path / "run", config_of(photos))
    (workdir / "data.json").unlink()
    runs.resolve_for(workdir, config_of(photos))
    shutil.copytree(photos, tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"a different config \(task.source: now .*elsewhere"):
        runs.resolve_for(workdir, config_of(tmp_path / "elsewhere"))


def test_what_does_not_touch_the_training_may_change(tmp_path, photos):
    workdir = begun(tmp_path / "run", config_of(photos, **{"task.reference_split": "typo"}))
    changes = {"task.reference_split": "train", "sample.count": 9, "checkpoint.keep": 7}
    changes |= {"task.data_dir": str(tmp_path / "sets"), "log.every": 3, "checkpoint.every": 0}
    resumed = runs.resolve_for(workdir, config_of(photos, **changes))
    assert resumed.task.reference_split == "train"
    with pytest.raises(ConfigError, match=r"a different config \(task.split: now 'train.:4.'"):
        runs.resolve_for(workdir, config_of(photos, **changes, **{"task.split": "train[:4]"}))


def test_a_finished_run_is_shown_again_whatever_became_of_its_data(tmp_path, photos):
    workdir = begun(tmp_path / "run", config_of(photos))
    (workdir / "checkpoints/40").mkdir(parents=True)
    write(photos, **{"1/new.png": pixels(9)})
    runs.resolve_for(workdir, config_of(photos))
    with pytest.raises(ConfigError, match="different data"):
        runs.resolve_for(workdir, config_of(photos, steps=41))
