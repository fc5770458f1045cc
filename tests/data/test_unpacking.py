"""Archives are unpacked whole or not at all, and nothing of them lands elsewhere."""

import gzip
import io
import os
import tarfile
import tracemalloc

import pytest

from sparsejax.data.unpacking import unpack
from sparsejax.errors import ConfigError

MB = 2**20


def save(path, *members, mtime=0):
    """Write a .tgz of members (name, content), or (name, type, target) for links."""
    with tarfile.open(path, "w:gz") as archive:
        for name, *rest in members:
            info = tarfile.TarInfo(name)
            info.mtime = mtime
            if len(rest) == 2:
                info.type, info.linkname = rest
                archive.addfile(info)
            else:
                info.size = len(rest[0])
                archive.addfile(info, io.BytesIO(rest[0]))
    return path


def held(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refused(path):
    """The message that refuses an archive; nothing else is left or changed."""
    place = path.parent.parent
    before = held(place)
    with pytest.raises(ConfigError) as error:
        unpack(path)
    assert held(place) == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    return str(error.value)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def test_the_content_of_the_only_folder_is_unpacked_once(place):
    path = save(place / "set.tgz", ("set-1/train/a/0.png", b"0"), ("set-1/b.txt", b"1"), mtime=5)
    (place / "set.partial" / "left").mkdir(parents=True)  # by a process that was killed
    folder = unpack(path)
    assert folder == place / "set"
    assert held(folder) == {"train/a/0.png": b"0", "b.txt": b"1"}
    assert (folder / "b.txt").stat().st_mtime == 5
    (folder / "b.txt").unlink()
    path.write_bytes(b"")
    assert held(unpack(path)) == {"train/a/0.png": b"0"}
    assert sorted(entry.name for entry in place.iterdir()) == ["set", "set.tgz"]


def test_several_folders_are_kept(place):
    path = save(place / "set.tgz", ("train/0.png", b"0"), ("val/1.png", b"1"))
    assert held(unpack(path)) == {"train/0.png": b"0", "val/1.png": b"1"}


@pytest.mark.parametrize(
    "member",
    [
        ("../outside", b"1"),
        ("a/../../outside", b"1"),
        ("PLACE/outside", b"1"),
        ("link", tarfile.SYMTYPE, "../.."),
        ("link", tarfile.LNKTYPE, "/etc/passwd"),
        ("device", tarfile.CHRTYPE, ""),
    ],
)
def test_only_files_within_are_unpacked(member, place):
    name = member[0].replace("PLACE", str(place.parent))
    path = save(place / "set.tgz", ("a/0.png", b"0"), (name, *member[1:]))
    assert f"{path} can't be unpacked: it holds {name!r}" in refused(path)


@pytest.mark.parametrize("damage", [b"", b"\x1f\x8b", b"<html>", "cut", "flipped"])
def test_a_damaged_archive_is_named(damage, place):
    path = save(place / "set.tgz", ("a/0.png", os.urandom(5000)), ("a/1.png", b"1"))
    whole = path.read_bytes()
    middle = len(whole) // 2
    damage = {
        "cut": whole[:middle],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
    }.get(damage, damage)
    path.write_bytes(damage)
    assert f"{path} can't be unpacked: " in refused(path)


def test_an_archive_that_inflates_is_refused(place, monkeypatch):
    path = save(place / "set.tgz", *((f"{i}.png", bytes(MB)) for i in range(4)))
    assert "SPARSEJAX_LIMITS=archive_inflation=N sets" in refused(path)
    monkeypatch.setenv("SPARSEJAX_LIMITS", "archive_inflation=2000")
    assert len(held(unpack(path))) == 4


def test_a_large_member_is_refused(place, monkeypatch):
    monkeypatch.setenv("SPARSEJAX_LIMITS", "image_bytes=100,archive_inflation=1e6")
    path = save(place / "set.tgz", ("0.png", bytes(101)))
    assert "SPARSEJAX_LIMITS=image_bytes=N sets" in refused(path)


def test_a_header_that_inflates_takes_no_memory(place):
    """A name of 64 MB, in 64 kB."""
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 64 * MB
    content = name.tobuf() + bytes(64 * MB)
    path = place / "set.tgz"
    path.write_bytes(gzip.compress(content, 1))
    del content
    tracemalloc.start()
    try:
        assert "larger than any name" in refused(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * MB
    finally:
        tracemalloc.stop()
