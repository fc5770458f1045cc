"""An npz is read in one way: arrays come back as numpy wrote them, or one error names the file."""

import io
import json
import struct
import tracemalloc
import zipfile

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from sparsejax.errors import ConfigError
from sparsejax.metrics.moments import load_statistics
from sparsejax.reports.overlap import read_masks
from sparsejax.zips import NpzError, header, names, read_npz

ARRAYS = {
    "a": np.arange(6, dtype=np.int16).reshape(2, 3),
    "b/c": np.asfortranarray(np.random.default_rng(0).random((3, 4))),
    "text": np.array(["cat", "dog"]),
    "none": np.zeros((0, 3), np.uint8),
    "number": np.array(2.5),
    "record": np.zeros(2, [("x", "f4"), ("y", "u1", 3)]),
    "big": np.arange(3, dtype=">f8"),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back_as_numpy_reads_them(save, tmp_path):
    save(tmp_path / "a.npz", **ARRAYS)
    read = read_npz(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as theirs:
        assert set(read) == set(theirs) == set(names(tmp_path / "a.npz"))
        for key in theirs:
            np.testing.assert_array_equal(read[key], theirs[key])
            assert read[key].dtype == theirs[key].dtype
            assert header(tmp_path / "a.npz", key) == (theirs[key].shape, theirs[key].dtype)
    assert list(read_npz(tmp_path / "a.npz", ("text", "absent"))) == ["text"]


def test_members_that_are_no_arrays_are_left_alone(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("README", "where it is from")
    assert list(read_npz(tmp_path / "a.npz")) == ["a"]


def npy(text, data=b"", version=1):
    """The bytes of an array with any header."""
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode() + data


def described(descr, shape):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"


HEADERS = {
    "cut": "{'descr': '<f8', 'fortran_order': False, 'shape': (3,)",  # TokenError
    "open": "{'descr': (((",
    "deep": "(" * 300,  # too many for the parser
    "deeper": "-" * 3000 + "1",  # RecursionError
    "long": " " * 60_000,
    "fields": described("[('a',)]", "(3,)"),
    "vast": described("'|u1'", "(10000000000000,)"),  # MemoryError
    "large": described("'|u1'", "(3000000000,)"),
    "dimensions": described("'|u1'", "(1,) * 99"),
    "empty items": described("'|V0'", "(3000000000,)"),
    "wide items": described("'|V2000000000'", "(1,)"),
    "negative": described("'|u1'", "(-3,)"),
    "fraction": described("'|u1'", "(1.5,)"),
    "objects": described("'|O'", "(3,)"),
    "more bytes": described("'|u1'", "(23,)"),
}


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("text", HEADERS.values(), ids=HEADERS)
def test_every_header_that_is_none_gives_one_error(text, version, tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for key in ("m", "mu", "sigma"):
            archive.writestr(f"{key}.npy", npy(text, bytes(24), version))
    tracemalloc.start()
    try:
        with pytest.raises(NpzError, match=rf"^{path}: it isn't an npz, or is damaged \("):
            read_npz(path)
        with pytest.raises(ConfigError, match=f"^{path}: it isn't an npz.*accepted: an npz with"):
            load_statistics(path)
        with pytest.raises(ValueError, match="^its masks can't be read: it isn't an npz"):
            read_masks(path, {"m": (1, 9)})
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


def write_array(path, text, data=b""):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m.npy", npy(text, data))
    return path


def test_a_shape_is_never_negative_nor_of_items_without_bytes(tmp_path):
    """Whatever the number of bytes that follow; the header alone is read in the same way."""
    path = write_array(tmp_path / "a.npz", described("'|u1'", "(-4, -6)"), bytes(24))
    for read in (lambda: header(path, "m"), lambda: read_npz(path)):
        with pytest.raises(NpzError, match=r"the shape \[-4, -6\]"):
            read()
    write_array(path, described("'|V0'", "(3000000000,)"))
    with pytest.raises(NpzError, match="has 0 bytes, not 0"):
        read_npz(path)


def test_limits_that_are_wrong_are_no_damage(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    monkeypatch.setenv("SPARSEJAX_LIMITS", "array_bytes=none")
    with pytest.raises(ConfigError, match="^SPARSEJAX_LIMITS holds 'array_bytes=none'"):
        read_npz(tmp_path / "a.npz")


def test_pickles_are_never_loaded(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([{"a": 1}], object))
    with pytest.raises(NpzError, match="a holds Python objects"):
        read_npz(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(np.array([{}], object).dumps())
    with pytest.raises(NpzError, match="isn't an npz"):
        read_npz(tmp_path / "a.npz")


def test_what_inflates_a_hundredfold_is_bounded(tmp_path, monkeypatch):
    """A small array may be as empty as it likes, a large one of dense data as large as it is."""
    monkeypatch.setenv("SPARSEJAX_LIMITS", "array_bytes=100_000")
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros(99_000, np.uint8))
    assert read_npz(path)["a"].sum() == 0
    np.savez_compressed(path, a=np.zeros(10_000_000, np.uint8))
    tracemalloc.start()
    try:
        message = f"^{path}: a inflates to 10,000,128 bytes; accepted: .*=array_bytes=N$"
        with pytest.raises(NpzError, match=message):
            read_npz(path)
        content = bytearray(path.read_bytes())
        # The directory claims that it is hardly compressed at all.
        struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 20, 2**30)
        path.write_bytes(content)
        with pytest.raises(NpzError, match=message):
            read_npz(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    noise = np.random.default_rng(0).integers(255, size=300_000, dtype=np.uint8)
    np.savez_compressed(path, a=noise)
    np.testing.assert_array_equal(read_npz(path)["a"], noise)


def test_a_file_that_cannot_be_opened_is_no_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "nowhere.npz")


def saved():
    buffer = io.BytesIO()
    np.savez_compressed(buffer, mu=np.zeros(3), sigma=np.eye(3), about=json.dumps({"a": 1}))
    return buffer.getvalue()


WHOLE = saved()


@hypothesis.settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
    changes=st.lists(
        st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4
    ),
    end=st.integers(0, len(WHOLE)) | st.just(len(WHOLE)),
)
def test_damage_of_any_kind_gives_the_same_arrays_or_one_error(changes, end, tmp_path):
    content = bytearray(WHOLE)
    for place, value in changes:
        content[place] = value
    path = tmp_path / "a.npz"
    path.write_bytes(content[:end])
    try:
        read = read_npz(path)
    except NpzError as error:
        read, told = {}, str(error)
        hypothesis.note(told)
        ok = told.startswith(f"{path}: ") and "\n" not in told
    else:
        ok = True
    assert ok
    for key, array in read.items():
        if key in ("mu", "sigma"):
            np.testing.assert_array_equal(array, np.zeros(3) if key == "mu" else np.eye(3))
