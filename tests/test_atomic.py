"""Files are written completely or not at all: by one function, under names of their own."""

import errno
import os
import pathlib
import re
import stat
import threading

import numpy as np
import pytest
from safetensors.numpy import save_file

import sparsejax
from sparsejax import atomic

PACKAGE = pathlib.Path(sparsejax.__file__).parent


@pytest.fixture
def calls(monkeypatch):
    """What is forced to the disk and what is renamed, in order."""
    done, fsync, replace = [], os.fsync, pathlib.Path.replace

    def note_fsync(descriptor):
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def note_replace(path, target):
        done.append("replace")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(pathlib.Path, "replace", note_replace)
    return done


def test_a_file_is_on_the_disk_before_it_is_named_and_its_name_after(tmp_path, calls):
    atomic.write_text(tmp_path / "a.json", "{}")
    atomic.write_npz(tmp_path / "b", {"x": np.arange(3)})
    assert calls == 2 * ["file", "replace", "folder"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b"]
    np.testing.assert_array_equal(np.load(tmp_path / "b")["x"], np.arange(3))
    calls.clear()
    atomic.append_lines(tmp_path / "c", [b"1", b"2"])
    assert calls == ["file"]
    assert (tmp_path / "c").read_bytes() == b"1\n2\n"


def test_a_folder_that_cant_be_forced_to_the_disk_is_no_error_but_a_full_disk_is(
    tmp_path, monkeypatch
):
    fsync = os.fsync

    def refuse(code, descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", lambda descriptor: refuse(errno.EINVAL, descriptor))
    atomic.write_text(tmp_path / "a", "first")
    monkeypatch.setattr(os, "fsync", lambda descriptor: refuse(errno.ENOSPC, descriptor))
    with pytest.raises(OSError, match="No space left"):
        atomic.write_text(tmp_path / "a", "second")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    atomic.write_text(path, "old")

    def fail():
        with atomic.replacing(path) as partial:
            partial.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_file_may_be_read_by_whoever_may_read_new_files(umask, tmp_path):
    """The writer of safetensors makes files for their owner alone."""
    before = os.umask(umask)
    try:
        with atomic.replacing(tmp_path / "file") as partial:
            save_file({"x": np.zeros(1)}, partial)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


def test_many_writers_of_one_file_dont_disturb_each_other(tmp_path):
    """Each is in the middle of its write while all others begin."""
    path, together = tmp_path / "a.npz", threading.Barrier(4)
    failures = []

    def write(content):
        try:
            with atomic.replacing(path) as partial:
                partial.write_text(content)
                together.wait(10)
                assert partial.read_text() == content
                together.wait(10)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(1000 * str(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() in [1000 * str(i) for i in range(4)]


def test_what_killed_processes_left_of_a_file_goes_once_it_is_old(tmp_path):
    def leave(name, age):
        (tmp_path / name).write_text("torn")
        os.utime(tmp_path / name, (0, (tmp_path / name).stat().st_mtime - age))

    others = {"partial-1-0123abcd-b.json", "partial-1-0123abcd-axjson", "partial-x-a.json"}
    for name in ("partial-12-0123abcd-a.json", "partial-a.json", *others):
        leave(name, 4000)
    leave("partial-13-0123abcd-a.json", 60)  # somebody may be writing it
    atomic.write_text(tmp_path / "a.json", "{}")
    left = {"a.json", "partial-13-0123abcd-a.json", *others}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_what_is_left_and_cannot_be_removed_is_in_nobodys_way(tmp_path):
    left = tmp_path / "partial-12-0123abcd-a.json"
    left.mkdir()
    os.utime(left, (0, 0))
    atomic.write_text(tmp_path / "a.json", "{}")
    assert (tmp_path / "a.json").read_text() == "{}"
    assert left.exists()


def test_what_is_set_aside_is_never_overwritten(tmp_path):
    for content in ("first", "second"):
        (tmp_path / "a").write_text(content)
        atomic.set_aside(tmp_path / "a")
    names = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert names == {"a.damaged-1": "first", "a.damaged-2": "second"}
    (tmp_path / "a").write_text("third")
    (tmp_path / "a.damaged-3").symlink_to(tmp_path / "nowhere")
    assert atomic.set_aside(tmp_path / "a") == tmp_path / "a.damaged-4"
    assert (tmp_path / "a.damaged-3").is_symlink()


# Lines that write otherwise, and why they may.
OTHERWISE = {
    "lease.py": "made exclusively and renewed in place, as leases are",
    "data/unpacking.py": "in a folder that is renamed as a whole",
    "evaluation/sharing.py": "in a folder that is renamed as a whole",
    "data/sketch_builders.py": "in a folder that tensorflow-datasets renames as a whole",
    "rendering/images.py": "single pictures by the thousand, drawn again by the same command",
    "rendering/animation.py": "its caller chooses the path",
}


def test_all_files_are_written_by_one_function():
    """Or appended to; what isn't is listed above with the reason."""
    writing = re.compile(
        r"\.write_(text|bytes)\(|\.savez|\.save\(|savefig\(|save_file\(|os\.replace|\.rename\("
        r"|open\([^)]*[\"'][wx]|O_CREAT|ArrayRecordWriter\("
    )
    fine = re.compile(r"partial|buffer|manager\.save\(|checkpoints\.save\(|atomic\.|torch\.save\(")
    found = {}
    for path in PACKAGE.rglob("*.py"):
        lines = path.read_text().splitlines()
        ours = [line for line in lines if writing.search(line) and not fine.search(line)]
        if ours and path.name != "atomic.py":
            found[str(path.relative_to(PACKAGE))] = ours
    assert found.keys() == OTHERWISE.keys(), found
