import io
import os

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from sparsejax.data import images as data
from sparsejax.data.builders import open_builder
from sparsejax.data.decoding import decode
from sparsejax.data.files import ACCEPTED
from sparsejax.errors import ConfigError
from tests.data.sets import EXCERPTS, encoded, pixels, task, write


def content(settings, split="train"):
    """The images of a split as a set: tensorflow-datasets stores them in an order of its own."""
    images, labels = data.load_images(settings, split)
    return {(image.tobytes(), int(i)) for image, i in zip(images, labels, strict=True)}


def expected(*seeds, labels=None):
    labels = labels or [0] * len(seeds)
    return {(pixels(seed).tobytes(), i) for seed, i in zip(seeds, labels, strict=True)}


def test_a_flat_folder_is_one_split_without_classes(tmp_path):
    names = {"a.png": pixels(0), "b.PNG": pixels(1), "c/d/e.bmp": encoded(pixels(2), "bmp")}
    webp = encoded(pixels(3), "webp", lossless=True)
    hidden = {".hidden.png": b"", ".thumbnails/a.png": b"", "notes.txt": b""}
    write(tmp_path / "set", **names, **{"f.webp": webp}, **hidden)
    settings = task(tmp_path, source=tmp_path / "set")
    assert content(settings) == expected(0, 1, 2, 3)
    assert list(open_builder(settings).info.splits) == ["train"]


def test_every_kind_of_image_is_read_by_its_first_frame(tmp_path):
    frames = [Image.fromarray(pixels(seed)) for seed in range(4)]
    more = {"save_all": True, "append_images": frames[1:]}
    files = {
        "a.TIF": encoded(frames[0], "tiff", compression="tiff_lzw", **more),
        "b.tiff": encoded(frames[1], "tiff"),
        "c.apng": encoded(frames[2], "png", **more),
        "d.ppm": encoded(frames[3], "ppm"),
        "e.tga": encoded(pixels(4), "tga"),
        "f.JFIF": encoded(frames[0].resize((16, 16)), "jpeg", quality=95),
        "g.gif": encoded(frames[0], "gif", **more),
        "h.webp": encoded(frames[0], "webp", lossless=True, **more),
    }
    if "avif" in ACCEPTED:
        files["i.AVIF"] = encoded(frames[0].resize((16, 16)), "avif", quality=90)
    write(tmp_path / "set", **files)
    settings = task(tmp_path, source=tmp_path / "set")
    found = content(settings)
    wanted = set()
    for file in files.values():
        with Image.open(io.BytesIO(file)) as image:
            image.seek(0)
            rgb = image.convert("RGB").resize((8, 8), Image.BICUBIC)
            wanted.add((np.asarray(rgb).tobytes(), 0))
    assert found == wanted
    assert expected(0, 1, 2, 3, 4) <= found


def test_what_is_no_image_is_counted_by_its_ending_and_named(tmp_path, caplog):
    others = dict.fromkeys(["b.heic", "a/c.HEIC", "a/d.svg", "LICENSE"], b"?")
    hidden = dict.fromkeys(["._a.png", ".DS_Store", "a/Thumbs.db", ".git/x.heic"], b"?")
    write(tmp_path / "set", **{"a/1.png": pixels(0)}, **others, **hidden)
    (tmp_path / "set/linked").symlink_to(tmp_path / "set/a")
    assert content(task(tmp_path, source=tmp_path / "set")) == expected(0)
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.getMessage() == (
        f"{tmp_path / 'set'}: 5 files left out: .heic (2), no ending (1), .svg (1), "
        "folders (1); the first is LICENSE"
    )
    write(tmp_path / "none", **others)
    with pytest.raises(
        ConfigError, match=r"holds no image: 4 files left out: .heic \(2\), no ending"
    ):
        data.open_images(task(tmp_path, source=tmp_path / "none"), "train")


def test_links_are_followed_to_files_and_must_lead_somewhere(tmp_path):
    write(tmp_path / "set", **{"a.png": pixels(0)})
    write(tmp_path / "store", b=pixels(1))
    (tmp_path / "set/b.png").symlink_to(tmp_path / "store/b")
    settings = task(tmp_path, source=tmp_path / "set")
    assert content(settings) == expected(0, 1)
    (tmp_path / "store/b").unlink()
    with pytest.raises(ConfigError, match=r"config\.task\.source.*: b.png is a link that"):
        data.open_images(settings, "train")


def test_class_folders_become_labels_in_the_order_of_their_names(tmp_path):
    write(tmp_path / "set", **{"dog/1.png": pixels(0), "cat/1.png": pixels(1)})
    write(tmp_path / "set", **{"dog/more/2.png": pixels(2), "emu/1.png": pixels(3)})
    settings = task(tmp_path, source=tmp_path / "set")
    assert content(settings) == expected(0, 1, 2, 3, labels=[1, 0, 1, 2])


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Validation"])
def test_folders_named_after_splits_become_splits(tmp_path, name):
    write(tmp_path / "set", **{"train/x/1.png": pixels(0), "train/y/1.png": pixels(1)})
    write(tmp_path / "set", **{f"{name}/y/1.png": pixels(2), "test/x/9.png": pixels(3)})
    settings = task(tmp_path, source=tmp_path / "set")
    assert content(settings) == expected(0, 1, labels=[0, 1])
    assert content(settings, "validation") == expected(2, labels=[1])
    assert content(settings, "test") == expected(3)
    assert data.load_images(settings, "train[:1]")[0].shape == (1, 8, 8, 3)


def test_images_beside_the_splits_are_refused(tmp_path):
    write(tmp_path / "set", **{"train/1.png": pixels(0), "stray/2.png": pixels(1)})
    with pytest.raises(ConfigError, match=r"config\.task\.source.*stray/2\.png lies beside"):
        data.open_images(task(tmp_path, source=tmp_path / "set"), "train")


def test_encoded_files_are_stored_byte_for_byte(tmp_path):
    files = {
        "a.jpg": encoded(pixels(0), "jpeg", quality=60),
        "b.png": encoded(pixels(1), compress_level=0),
    }
    settings = task(tmp_path, source=write(tmp_path / "set", **files))
    skip = {"image": tfds.decode.SkipDecoding()}
    records = open_builder(settings).as_data_source("train", decoders=skip)
    assert {records[i]["image"] for i in range(len(records))} == set(files.values())


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 8, 8, 1), (4, 8, 8, 3)])
def test_an_npz_of_pixels_gives_these_pixels(tmp_path, shape):
    images = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=[4, 3, 2, 1], split=[0, 0, 1, 0])
    settings = task(tmp_path, source=tmp_path / "set.npz")
    train = [0, 1, 3]
    wanted = {(images[i].tobytes(), 4 - i) for i in train}
    assert content(settings) == wanted
    assert content(settings, "validation") == {(images[2].tobytes(), 2)}
    assert data.load_images(settings, "train")[0].shape == (3, 8, 8, *(shape[3:] or (1,)))


def test_an_npz_may_call_its_pixels_image(tmp_path):
    images = np.stack([pixels(seed, channels=1)[..., 0] for seed in range(3)])
    np.savez(tmp_path / "a.npz", image=images, label=[5, 6, 7], split=[0, 0, 1])
    settings = task(tmp_path, source=tmp_path / "a.npz")
    found, labels = data.load_images(settings, "train+validation")
    assert found.shape == (3, 8, 8, 1)
    assert {int(i): image.tobytes() for i, image in zip(labels, found, strict=True)} == {
        label: image.tobytes() for label, image in zip((5, 6, 7), images, strict=True)
    }


def test_an_npz_of_encoded_images_gives_what_pillow_decodes(tmp_path):
    files = [encoded(pixels(seed, 12, 20), "jpeg") for seed in range(3)]
    save_ragged(tmp_path / "set.npz", files, label=[7, 8, 9])
    settings = task(tmp_path, source=tmp_path / "set.npz")
    wanted = {(decode(f, 8, 3).tobytes(), 7 + i) for i, f in enumerate(files)}
    assert content(settings) == wanted


def save_ragged(path, files, **arrays):
    encoded_files = np.frombuffer(b"".join(files), np.uint8)
    offsets = np.cumsum([0] + [len(f) for f in files]).astype(np.uint32)
    np.savez(path, jpeg=encoded_files, offsets=offsets, **arrays)


def test_real_pictures_are_read_as_they_are(tmp_path):
    """Pixels of an npz, and the same as JPEG files in one, against Pillow."""
    path, encoded_path = EXCERPTS / "fashion_mnist.npz", tmp_path / "jpeg.npz"
    with np.load(path, allow_pickle=False) as arrays:
        images, label, split = (arrays[key] for key in ("images", "label", "split"))
    files = [encoded(image[..., 0], "jpeg") for image in images]
    save_ragged(encoded_path, files, label=label, split=split)
    for name, number, count in (("train", 0, 70), ("test", 2, 30)):
        chosen = np.flatnonzero(split == number)
        wanted = {(images[i].tobytes(), int(label[i])) for i in chosen}
        assert len(wanted) == count
        assert content(task(tmp_path, source=path, image_size=28), name) == wanted
        wanted = {(with_pillow(files[i]), int(label[i])) for i in chosen}
        assert content(task(tmp_path, source=encoded_path, image_size=28), name) == wanted


def with_pillow(file):
    """The RGB pixels of an encoded image, as bytes."""
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB")).tobytes()


def test_changed_files_are_not_served_stale(tmp_path):
    folder = write(tmp_path / "set", **{"a.png": pixels(0), "b.png": pixels(1)})
    settings = task(tmp_path, source=folder)
    before = data.describe(settings, "train")
    assert content(settings) == expected(0, 1)
    status = (folder / "a.png").stat()
    write(folder, **{"a.png": pixels(2)})
    os.utime(folder / "a.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert content(settings) == expected(2, 1)
    (folder / "class").mkdir()
    (folder / "class2").mkdir()
    (folder / "a.png").rename(folder / "class/a.png")
    (folder / "b.png").rename(folder / "class2/b.png")
    assert content(settings) == expected(2, 1, labels=[0, 1])
    write(folder, **{"class2/c.png": pixels(3)})
    assert content(settings) == expected(1, 2, 3, labels=[1, 0, 1])
    assert data.describe(settings, "train") != before


def test_a_changed_npz_is_not_served_stale(tmp_path):
    settings = task(tmp_path, source=tmp_path / "set.npz")
    for seed in (0, 1):
        np.savez(tmp_path / "set.npz", images=pixels(seed)[None])
        assert content(settings) == expected(seed)


def test_broken_images_are_all_named_and_nothing_is_kept(tmp_path):
    jpeg = encoded(pixels(0, 64, 64), "jpeg")
    broken = {"b/cut.jpg": jpeg[: len(jpeg) // 2], "text.png": b"not an image", "empty.png": b""}
    folder = write(tmp_path / "set", **{"a.jpg": jpeg}, **broken)
    settings = task(tmp_path / "prepared", source=folder)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"config\.task\.source.*3 of 4 images") as error:
            data.open_images(settings, "train")
        assert "text.png: it isn't an image" in str(error.value)
        assert "empty.png: it is empty" in str(error.value)
        assert "b/cut.jpg: image file is truncated" in str(error.value)
        assert "a.jpg" not in str(error.value)
        assert "\n" not in str(error.value)
        assert " object at 0x" not in str(error.value)
    assert not list((tmp_path / "prepared").rglob("*record*"))
    write(folder, **dict.fromkeys(broken, jpeg))
    assert len(data.open_images(settings, "train")) == 4


def test_images_whose_range_is_none_that_can_be_used_are_named(tmp_path):
    grey = np.arange(64).reshape(8, 8)
    files = {
        "float.tif": encoded(Image.fromarray(grey.astype(np.float32)), "tiff"),
        "deep.tif": encoded(Image.fromarray((grey << 20).astype(np.int32)), "tiff"),
        "fine.tif": encoded(Image.fromarray(grey.astype(np.uint16) << 8), "tiff"),
    }
    folder = write(tmp_path / "set", **files)
    with pytest.raises(ConfigError, match="2 of 3 images can't be read") as error:
        data.open_images(task(tmp_path, source=folder), "train")
    for name, problem in (
        ("float.tif", "its pixels are floats"),
        ("deep.tif", "its pixels go beyond 16 bits"),
    ):
        assert f"{name}: {problem}" in str(error.value)


def test_no_more_than_twenty_broken_images_are_listed(tmp_path):
    folder = write(tmp_path / "set", **{f"{i:02}.png": b"?" for i in range(23)})
    with pytest.raises(ConfigError, match="23 of 23") as error:
        data.open_images(task(tmp_path, source=folder), "train")
    assert str(error.value).count(".png:") == 20
    assert "and 3 more" in str(error.value)


def test_broken_images_of_an_npz_are_named_by_their_place(tmp_path):
    save_ragged(tmp_path / "set.npz", [encoded(pixels(0)), b"no image", encoded(pixels(1))])
    with pytest.raises(ConfigError, match="1 of 3 images.*: item 1: "):
        data.open_images(task(tmp_path, source=tmp_path / "set.npz"), "train")


IMAGES = np.zeros((2, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"points": IMAGES}, "its keys are points"),
        ({"jpeg": IMAGES[0, 0, :, 0]}, "its keys are jpeg"),
        ({"images": IMAGES.astype(np.float32)}, "images are float32, not uint8"),
        ({"images": np.array([None, None])}, "shape"),
        ({"images": IMAGES[..., :2]}, r"shape \[2, 8, 8, 2\]"),
        ({"images": IMAGES[:0]}, r"shape \[0, 8, 8, 3\]"),
        ({"images": IMAGES, "label": [1]}, r"label is int64 \[1\], not integers \[2\]"),
        ({"images": IMAGES, "label": [0.5, 1]}, "label is float64"),
        ({"images": IMAGES, "split": [0, 3]}, "split holds more than"),
        ({"jpeg": IMAGES.ravel(), "offsets": [0, 9, 5]}, "offsets don't rise"),
        ({"jpeg": IMAGES.ravel(), "offsets": np.uint8([0, 9, 5])}, "offsets don't rise"),
        ({"jpeg": IMAGES.ravel(), "offsets": [0, 999]}, "offsets don't rise"),
        ({"jpeg": IMAGES.ravel(), "offsets": [0]}, "offsets are fewer"),
    ],
)
def test_an_npz_that_does_not_fit_is_refused(tmp_path, arrays, problem):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(ConfigError, match=rf"config\.task\.source.*{problem}.*accepted: a folder"):
        data.open_images(task(tmp_path, source=tmp_path / "set.npz"), "train")


@pytest.mark.parametrize("cut", [0, 10, 0.5, 0.99])
def test_a_truncated_npz_is_refused(tmp_path, cut):
    np.savez(tmp_path / "whole.npz", images=IMAGES)
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "set.npz").write_bytes(whole[: cut if cut >= 1 else int(cut * len(whole))])
    with pytest.raises(ConfigError, match=r"config\.task\.source.*damaged.*accepted: a folder"):
        data.open_images(task(tmp_path, source=tmp_path / "set.npz"), "train")


def test_an_npz_damaged_in_its_pixels_is_refused(tmp_path):
    np.savez(tmp_path / "set.npz", images=np.zeros((500, 8, 8, 3), np.uint8))
    damaged = bytearray((tmp_path / "set.npz").read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    (tmp_path / "set.npz").write_bytes(damaged)
    with pytest.raises(ConfigError, match=r"config\.task\.source.*damaged"):
        data.open_images(task(tmp_path, source=tmp_path / "set.npz"), "train")


def test_missing_and_empty_sources_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").write_bytes(encoded(pixels(0)))
    for source, problem in (
        (tmp_path / "nowhere", "doesn't exist"),
        (tmp_path / "empty", "holds no image"),
        (tmp_path / "a.png", "isn't an npz"),
        ("", "the path of a folder of images"),
    ):
        with pytest.raises(ConfigError, match=rf"config\.task\.source.*{problem}"):
            data.open_images(task(tmp_path, source=source), "train")
    with pytest.raises(ConfigError, match=r"config\.task\.source is 'x'; accepted: ''"):
        data.open_images(task(tmp_path, dataset="digits", source="x"), "train")


def test_labels_for_figures(tmp_path):
    assert data.label(task(tmp_path, dataset="celeb_a_hq")) == "celeb_a_hq"
    assert data.label(task(tmp_path, source=tmp_path / "my.photos.npz")) == "my.photos"
    assert data.label(task(tmp_path, source=f"{tmp_path}/holiday/")) == "holiday"
    assert data.label(task(tmp_path, source=tmp_path / "faces.v2")) == "faces.v2"
