"""Files that others made cost little memory and time: what goes beyond a limit is named."""

import contextlib
import pathlib
import re
import struct
import threading
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import ImageFile

from sparsejax.data import archives, decoding, kanjivg, packed, quickdraw
from sparsejax.data.builders import open_builder
from sparsejax.data.drawings import Broken, Drawing
from sparsejax.data.images import open_images
from sparsejax.data.items import SourceError
from sparsejax.errors import ConfigError
from sparsejax.limits import Limits, TooLargeError, limits, read_file
from tests.data.sets import encoded, pixels, task, write
from tests.data.sketches import line, packed_arrays, save_lines, save_packed, save_svgs, svg

MB = 2**20


@contextlib.contextmanager
def at_most(size):
    """Fail if the body holds more bytes at once."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= size, f"{peak / MB:.0f} MB"


def set_limits(monkeypatch, **values):
    text = ",".join(f"{name}={value}" for name, value in values.items())
    monkeypatch.setenv("SPARSEJAX_LIMITS", text)


def zipped(path, method=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def png(width, height, depth=8, colour=2):
    """The bytes of a PNG that claims a size and holds no pixels."""

    def chunk(kind, data):
        ends = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", ends)

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def test_limits_are_set_by_the_environment(monkeypatch):
    assert limits() == Limits()
    set_limits(monkeypatch, image_pixels="1e9", drawing_points=5)
    assert limits() == Limits(image_pixels=10**9, drawing_points=5)


@pytest.mark.parametrize("text", ["pixels=5", "image_pixels", "image_pixels=0", "word_letters=inf"])
def test_a_limit_that_is_none_is_named(text, monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSEJAX_LIMITS", f"array_bytes=1,{text}")
    with pytest.raises(ConfigError, match=f"SPARSEJAX_LIMITS holds '{text}'; .*image_bytes"):
        list(kanjivg.read(save_svgs(tmp_path, **{"05b57": svg("M1,1h9")})))


# 459 bytes of a zip, or a few kB.
DRAWINGS = {
    "long lines": svg(*["M0,0h160000"] * 9),
    "many lines": svg(*["M0,0h4000"] * 60),
    "many curves": svg("M0,0" + "h1" * 20_000),
    "many numbers": svg("M0,0h" + "1 " * 20_000),
    "far away": svg("M0,0L1e300,4"),
}


@pytest.mark.parametrize("content", DRAWINGS.values(), ids=DRAWINGS)
def test_an_svg_file_of_many_points_is_left_out(content, tmp_path, monkeypatch):
    set_limits(monkeypatch, drawing_points=10_000)
    path = zipped(
        tmp_path / "a.zip", **{"05b57.svg": content, "05b58.svg": svg("M1,1h9", name="05b58")}
    )
    with at_most(10 * MB):
        broken, fine = kanjivg.read(path)
    assert re.fullmatch(r"05b57 kvg:05b57-s\d+", broken.name)
    assert broken.reason == (
        "more points than 10,000, which SPARSEJAX_LIMITS=drawing_points=N sets"
    )
    assert isinstance(fine, Drawing)


def test_points_of_a_drawing_are_counted_together(tmp_path, monkeypatch):
    set_limits(monkeypatch, drawing_points=42)  # each stroke has 21
    two, three = (svg(*["M1,1h10"] * count) for count in (2, 3))
    fine, broken = kanjivg.read(save_svgs(tmp_path, **{"05b57": two, "05b58": three}))
    assert isinstance(fine, Drawing)
    assert broken.reason.startswith("more points than 42")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_member_that_inflates_is_left_out(method, tmp_path):
    path = zipped(tmp_path / "a.zip", method, **{"05b57.svg": bytes(8 * MB)})
    assert path.stat().st_size < 10_000
    with at_most(2 * MB):
        (broken,) = kanjivg.read(path)
    assert broken.reason == (
        "more bytes than 1,048,576, which SPARSEJAX_LIMITS=drawing_bytes=N sets"
    )


def claim(path, size):
    """Let a zip's directory claim another size of its only member."""
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 24, size)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("method", "reason"),
    [(zipfile.ZIP_DEFLATED, "Bad CRC-32"), (zipfile.ZIP_BZIP2, "neither stored nor deflated")],
)
def test_a_member_that_says_less_than_it_holds_is_left_out(method, reason, tmp_path):
    path = zipped(tmp_path / "a.zip", method, **{"05b57.svg": bytes(8 * MB)})
    with at_most(2 * MB):
        (broken,) = kanjivg.read(claim(path, 1000))
    assert reason in broken.reason


def test_a_file_in_a_folder_has_the_same_limit(tmp_path):
    (broken,) = kanjivg.read(save_svgs(tmp_path, **{"05b57": svg() + " " * MB}))
    assert broken.reason.startswith("more bytes than 1,048,576")


def test_of_a_file_no_more_is_read_than_the_limit(tmp_path, monkeypatch):
    """Whatever size the file system tells: a large file, and one that has no size."""
    set_limits(monkeypatch, drawing_bytes=100)
    (tmp_path / "a").write_bytes(bytes(100))
    assert read_file(tmp_path / "a", "drawing_bytes") == bytes(100)
    with (tmp_path / "a").open("wb") as file:
        file.truncate(200 * MB)  # of holes, which take no room
    paths = [tmp_path / "a", *filter(pathlib.Path.exists, [pathlib.Path("/proc/self/maps")])]
    for path in paths:
        with at_most(MB), pytest.raises(TooLargeError, match="more bytes than 100"):
            read_file(path, "drawing_bytes")


START = '{"word":"cat","key_id":"1","drawing":'
LINES = {
    "word": (line(word="x" * 500_000), "more letters of its word than 200"),
    "escapes": (line(word="\\" * 200_000), "more letters of its word than 200"),
    "line": (line(word="x" * 3_000_000), "more bytes than 1,048,576"),
    "points": (line(drawing=[[[0] * 100_001] * 2]), "more points than 100,000"),
    "depth": (START + "[" * 400_000, "it isn't JSON"),
    "lists": (START + "[" + "[]," * 50_000 + "[]]}", "a stroke isn't"),
    "digits": (START + "[[[" + "1" * 900_000 + "]]]}", "Exceeds the limit"),
}


@pytest.mark.parametrize(("text", "reason"), LINES.values(), ids=LINES)
def test_a_line_that_holds_too_much_is_left_out(text, reason, tmp_path):
    path = save_lines(tmp_path / "a.ndjson", line(key="0"), text, line(key="2"))
    with at_most(40 * MB):
        first, broken, last = quickdraw.read(path)
    assert (broken.name, first.label, last.label) == ("a.ndjson line 2", 0, 0)
    assert re.match(reason, broken.reason)
    assert isinstance(first, Drawing)
    assert isinstance(last, Drawing)
    assert last.name == "a.ndjson line 3"


def test_a_long_line_is_skipped_without_being_held(tmp_path):
    path = tmp_path / "a.ndjson"
    path.write_bytes(b"x" * 20 * MB + b"\n" + line().encode())  # no line end at the end
    with at_most(5 * MB):
        broken, fine = quickdraw.read(path)
    assert (type(broken), type(fine)) == (Broken, Drawing)


def test_points_of_a_packed_drawing_have_the_same_limit(tmp_path):
    points = np.zeros((100_003, 3), np.int8)
    points[[-1, -3], 2] = 1
    path = save_packed(tmp_path / "a.npz", points=points, offsets=[0, 100_001, 100_003])
    broken, fine = packed.read(path)
    assert broken.reason.startswith("more points than 100,000")
    assert isinstance(fine, Drawing)


@pytest.mark.parametrize("ends", [1.7e308, 1e308])
def test_times_beyond_all_bounds_never_become_nan(ends, tmp_path):
    strokes = [[[0, 3], [0, 4], [-ends, 0]], [[3, 3], [5, 8], [0, ends]]]
    builder = open_builder(
        task(
            tmp_path,
            dataset="quickdraw_strokes",
            source=save_lines(tmp_path / "a.ndjson", line(drawing=strokes), *map(line, "abc")),
        )
    )
    left_out = list(tmp_path.rglob("left_out.txt"))[0].read_text()
    records = builder.as_data_source(split="train")
    assert "a.ndjson line 1: times too large to compute with" in left_out
    assert len(records)
    assert all(np.isfinite(record["points"]).all() for record in records)


IMAGES = {
    "png": png(13_000, 13_000),
    "16 bits": png(13_000, 13_000, 16, 0),
    "a line": png(2**31 - 1, 1),
    "more than Pillow takes": png(30_000, 30_000),
}


@pytest.mark.parametrize("content", IMAGES.values(), ids=IMAGES)
def test_an_image_is_measured_before_it_is_decoded(content):
    assert len(content) < 100
    with at_most(MB), pytest.raises(TooLargeError, match="more pixels than 67,108,864"):
        decoding.decode(content, 8, 3)


@pytest.mark.parametrize("file_format", ["png", "jpeg", "gif", "tiff", "webp", "bmp", "ppm"])
def test_every_format_is_measured(file_format, monkeypatch):
    image = encoded(pixels(0), file_format)
    set_limits(monkeypatch, image_pixels=64)
    assert decoding.decode(image, 8, 3).shape == (8, 8, 3)
    set_limits(monkeypatch, image_pixels=63)
    with pytest.raises(TooLargeError, match="more pixels than 63"):
        decoding.decode(image, 8, 3)
    set_limits(monkeypatch, image_bytes=len(image) - 1)
    with pytest.raises(TooLargeError, match="more bytes than"):
        decoding.decode(image, 8, 3)


def test_other_formats_of_pillow_are_no_images():
    """PostScript would run another program."""
    with pytest.raises(OSError, match="isn't an image"):
        decoding.decode(encoded(pixels(0), "eps"), 8, 3)


def test_images_are_decoded_side_by_side_up_to_the_limit(monkeypatch):
    """Five of 64 pixels at 128: never more than two at once, and all of them in the end."""
    set_limits(monkeypatch, image_pixels=128)
    now, most, load = 0, 0, ImageFile.ImageFile.load
    lock, gate = threading.Lock(), threading.Event()

    def counted(file):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        gate.wait(0.05)
        with lock:
            now -= 1
        return load(file)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    image, done = encoded(pixels(0)), []
    threads = [
        threading.Thread(target=lambda: done.append(decoding.decode(image, 8, 3))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(done), most) == (5, 2)


def test_images_that_are_too_large_are_left_out_by_name(tmp_path, monkeypatch, caplog):
    folder = write(tmp_path / "set", **{"fine.png": pixels(0), "huge.png": png(13_000, 13_000)})
    settings = task(tmp_path / "data", source=folder)
    with caplog.at_level("WARNING"):
        assert len(open_images(settings, "train")) == 1
    (text,) = [record.getMessage() for record in caplog.records if "huge" in record.getMessage()]
    assert "1 of 2 images left out: huge.png: more pixels than 67,108,864" in text
    (folder / "huge.png").write_bytes(encoded(pixels(1, 16, 16)))
    set_limits(monkeypatch, image_pixels=64)
    assert len(open_images(settings, "train")) == 1
    set_limits(monkeypatch, image_pixels=256)  # not the set that was prepared with less
    assert len(open_images(settings, "train")) == 2
    set_limits(monkeypatch, image_pixels=63)
    with pytest.raises(ConfigError, match="it has no image for train; 2 of 2 images left out"):
        open_images(settings, "train")


def test_an_npz_of_more_items_than_bytes_is_refused(tmp_path):
    count = 200_000
    path = tmp_path / "a.npz"
    np.savez_compressed(path, jpeg=np.zeros(9, np.uint8), offsets=np.zeros(count + 1, np.uint8))
    assert path.stat().st_size < 2000
    with at_most(5 * MB), pytest.raises(SourceError, match="200,000 items in"):
        archives.items(path)
    changes = {"points": np.zeros((0, 3), np.int8), "offsets": np.zeros(count + 1, np.uint8)}
    np.savez_compressed(path, **packed_arrays(**changes))
    with at_most(5 * MB), pytest.raises(SourceError, match="200,000 items in"):
        list(packed.read(path))
