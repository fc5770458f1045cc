"""Which images are held out, what a source is said to hold, and which colours are read."""

import hashlib
import logging
import pathlib

import numpy as np
import pytest

from sparsejax.data import images as data
from sparsejax.data.builders import open_builder
from sparsejax.data.files import Files
from sparsejax.data.items import Item, SourceError
from sparsejax.data.own_images import hold_out
from sparsejax.errors import ConfigError
from tests.data.sets import encoded, pixels, task, write

FRACTION = 0.25


def place(content):
    """Where the hash of an image lies between 0 and 1, by hand."""
    return int(hashlib.sha256(content).hexdigest(), 16) / 2**256


def split_sets(folder, **changes):
    """The pixels of both splits, as sets: tensorflow-datasets has an order of its own."""
    settings = task(folder / "sets", **{"held_out": FRACTION} | changes)
    return [
        {image.tobytes() for image in data.load_images(settings, split)[0]}
        for split in ("train", "validation")
    ]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "photos"
    return write(folder, **{f"{i}.png": pixels(i) for i in range(40)})


def test_images_are_held_out_by_the_hash_of_their_content(photos, tmp_path):
    train, held_out = split_sets(tmp_path, source=photos)
    wanted = {pixels(i).tobytes() for i in range(40) if place(encoded(pixels(i))) < FRACTION}
    assert held_out == wanted
    assert train == {pixels(i).tobytes() for i in range(40)} - wanted
    assert 3 < len(held_out) < 18


def test_images_stay_where_they_are_when_others_come_and_names_change(photos, tmp_path):
    """And copies of an image are on one side, whatever they are called."""
    _, held_out = split_sets(tmp_path, source=photos)
    more = {f"{'ab'[i % 2]}/{99 - i}.png": pixels(i) for i in range(80)}
    more |= {f"a/copy {i}.png": pixels(i) for i in range(40)}
    train, more_held_out = split_sets(tmp_path, source=write(tmp_path / "more", **more))
    assert held_out < more_held_out
    assert not train & more_held_out
    assert len(train | more_held_out) == 80


def test_arrays_are_held_out_by_their_pixels(tmp_path):
    """Not by the bytes of a PNG, which depend on the library that compresses them."""
    images = np.stack([pixels(i, channels=1) for i in range(40)])
    wanted = {image.tobytes() for image in images if place(image.tobytes()) < FRACTION}
    for name, shaped in (("a", images), ("b", images[..., 0]), ("c", images[::-1])):
        np.savez(tmp_path / f"{name}.npz", images=shaped)
        train, held_out = split_sets(tmp_path, source=tmp_path / f"{name}.npz")
        assert held_out == wanted
        assert len(train) == 40 - len(wanted)


def test_a_source_with_a_validation_split_keeps_it(tmp_path):
    files = {f"{('train', 'val')[i // 10]}/{i}.png": pixels(i) for i in range(12)}
    train, held_out = split_sets(tmp_path, source=write(tmp_path / "set", **files))
    assert held_out == {pixels(10).tobytes(), pixels(11).tobytes()}
    assert len(train) == 10


def test_a_test_split_is_left_alone(tmp_path):
    files = {f"{('train', 'test')[i // 10]}/{i}.png": pixels(i) for i in range(12)}
    source = write(tmp_path / "set", **files)
    train, held_out = split_sets(tmp_path, source=source)
    assert train | held_out == {pixels(i).tobytes() for i in range(10)}
    assert held_out
    settings = task(tmp_path / "sets", source=source, held_out=FRACTION)
    assert len(data.load_images(settings, "test")[0]) == 2


def test_at_least_two_images_are_held_out_and_one_is_left():
    digests = [bytes([255 - i]) * 8 for i in range(20)]

    def held(count):
        items = [Item(str(i), "train", 0, bytes) for i in range(count)]
        found = hold_out(items, digests[:count], 0.01)
        assert [item.name for item in found] == [item.name for item in items]
        return [item.name for item in found if item.split == "validation"]

    assert held(20) == ["18", "19"]
    assert held(3) == ["1", "2"]
    for count in (1, 2):
        with pytest.raises(SourceError, match=f"it has {count} images for train, too few"):
            held(count)


def test_a_source_that_is_too_small_to_hold_out_is_named(tmp_path):
    source = write(tmp_path / "set", **{"a.png": pixels(0), "b.png": pixels(1)})
    message = r"^config\.task\.source is .*it has 2 images .*\(config\.task\.held_out; 0 holds none"
    with pytest.raises(ConfigError, match=message):
        data.open_images(task(tmp_path / "sets", source=source, held_out=0.1), "train")


def test_what_was_read_and_left_out_is_said_by_every_process(photos, tmp_path, caplog):
    """Here twice: prepared, then opened again from another place in the same process."""
    caplog.set_level(logging.INFO, logger="sparsejax")
    grey = {f"{'ab'[i % 2]}/{i}.png": pixels(i, channels=1) for i in range(6)}
    source = write(tmp_path / "set", **{name: image[..., 0] for name, image in grey.items()})
    write(source, **{"a/x.heic": b"?"})
    for folder in ("one", "two"):
        caplog.clear()
        builder = open_builder(task(tmp_path / folder, source=source, held_out=0.1))
        assert builder.about() == (
            f"{source}: train 4, validation 2 (held out); 2 classes: a, b; all grey",
            f"{source}: 1 file left out: .heic (1); the first is a/x.heic",
        )
    builder = open_builder(task(tmp_path / "one", source=photos))
    assert builder.about() == (f"{photos}: train 40",)
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert ("INFO", f"{photos}: train 40") in said


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff", b'{"classes": "x"}', b'{"left_out": [3]}'])
def test_damage_in_what_is_known_of_a_prepared_set_is_named(photos, tmp_path, damage):
    settings = task(tmp_path, source=photos)
    (path,) = pathlib.Path(open_builder(settings).data_dir).glob("metadata.json")
    path.write_bytes(damage)
    builder = Files(str(photos), data_dir=str(tmp_path))  # as another process opens it
    with pytest.raises(ConfigError, match=rf"prepared in {path.parent}: .* damaged") as error:
        builder.about()
    assert "\n" not in str(error.value)
    path.unlink()  # as older versions left it
    assert Files(str(photos), data_dir=str(tmp_path)).about() == (f"{photos}: train 40",)


def test_images_are_converted_to_the_channels_that_are_asked_for(tmp_path):
    colour = pixels(0)
    np.savez(tmp_path / "grey.npz", images=pixels(1, channels=1)[None])
    write(tmp_path / "colours", **{"a.png": colour})
    kinds = {}
    for source, channels in (("grey.npz", 3), ("grey.npz", None), ("colours", 1), ("colours", 3)):
        settings = task(tmp_path / "sets", source=tmp_path / source, channels=channels)
        (kinds[source, channels],), _ = data.load_images(settings, "train")
        assert data.describe(settings, "train").endswith(f"8x8{f'x{channels}' if channels else ''}")
    assert {kind: image.shape[2] for kind, image in kinds.items()} == {
        ("grey.npz", 3): 3,
        ("grey.npz", None): 1,
        ("colours", 1): 1,
        ("colours", 3): 3,
    }
    np.testing.assert_array_equal(kinds["colours", 3], colour)
    np.testing.assert_array_equal(
        kinds["grey.npz", 3], np.repeat(kinds["grey.npz", None], 3, axis=2)
    )
    luma = colour @ [0.299, 0.587, 0.114]  # ITU-R 601
    np.testing.assert_allclose(kinds["colours", 1][..., 0], luma, atol=1)


@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [("held_out", 0.1, "0.0 with the dataset digits; others with files, hf")]
    + [("columns", ("a",), r"\(\) with the dataset digits; others with hf")],
)
def test_keys_of_other_sets_are_refused(tmp_path, key, value, accepted):
    with pytest.raises(ConfigError, match=rf"^config\.task\.{key} is .*; accepted: {accepted}$"):
        data.open_images(task(tmp_path, dataset="digits", **{key: value}), "train")
