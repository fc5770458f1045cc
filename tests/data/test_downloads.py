"""Files are downloaded whole or not at all, once, and checked ever after."""

import hashlib
import json
import os
import resource
import threading

import numpy as np
import pytest

from sparsejax.data.downloads import ensure
from sparsejax.data.recorded import Download
from sparsejax.errors import ConfigError
from tests.data.serving import serving

CONTENT = b"PK" + np.random.default_rng(0).bytes(2**20)


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as site:
        site.files["/set.zip"] = CONTENT
        yield site


@pytest.fixture
def file(site, tmp_path):
    return Download("set", f"{site.url}/set.zip", tmp_path / "sets" / "set.zip", "CC BY 4.0, A. B.")


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def left(file):
    """The names in the folder of a file, if there is one."""
    folder = file.path.parent
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def refused(file):
    """The message that refuses a file: one line with its address, and how to do without."""
    with pytest.raises(ConfigError) as error:
        ensure(file)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_file_is_downloaded_once_and_recorded(file, site, caplog):
    with caplog.at_level("INFO", "sparsejax"):
        ensure(file)
        ensure(file)
    assert file.path.read_bytes() == CONTENT
    assert site.asked == [("/set.zip", None)]
    record = json.loads((file.path.parent / "set.zip.json").read_text())
    assert (record["bytes"], record["sha256"]) == (len(CONTENT), sha256(CONTENT))
    assert record["url"] == file.url
    assert left(file) == ["set.zip", "set.zip.json"]
    (line,) = caplog.messages
    parts = ("set.zip", "1.05 MB", file.url, file.licence, str(file.path.parent))
    assert [part for part in parts if part not in line] == []


@pytest.mark.parametrize("length", ["length", "chunks"])
def test_a_transfer_that_is_cut_off_goes_on_where_it_was(length, file, site):
    site.length, site.cuts = length, [400_000, 300_000]
    ensure(file)
    assert file.path.read_bytes() == CONTENT
    assert left(file) == ["set.zip", "set.zip.json"]
    (_, first), (_, second), (_, third) = site.asked
    assert first is None
    if length == "length":  # of a chunk that isn't whole, nothing need have been kept
        assert (second, third) == ("bytes=400000-", "bytes=700000-")


def test_a_server_that_sends_no_parts_begins_anew(file, site):
    site.ranges, site.cuts = False, [400_000]
    ensure(file)
    assert file.path.read_bytes() == CONTENT


@pytest.mark.parametrize("length", ["length", "chunks"])
def test_a_part_is_never_taken_for_the_whole(length, file, site):
    site.length, site.ranges, site.cuts = length, False, [400_000] * 9
    message = refused(file)
    assert not file.path.exists()
    assert file.url in message
    if length == "length":
        assert f"cut off after 400,000 of {len(CONTENT):,} bytes" in message


def test_the_next_command_continues(file, site):
    site.cuts = [400_000, 0]
    refused(file)
    ensure(file)
    assert file.path.read_bytes() == CONTENT
    assert [part for _, part in site.asked] == [None, "bytes=400000-", "bytes=400000-"]


def test_a_file_that_changed_meanwhile_begins_anew(file, site):
    site.cuts = [400_000, 0]
    refused(file)
    site.files["/set.zip"] = b"PK" + CONTENT[:1:-1]
    ensure(file)
    assert file.path.read_bytes() == site.files["/set.zip"]


def test_what_is_left_of_a_whole_transfer_does_no_harm(file, site):
    """As a process leaves it that is killed before it gives the file its name."""
    site.cuts = [400_000, 0]
    refused(file)
    (file.path.parent / "set.zip.partial").write_bytes(CONTENT)
    ensure(file)
    assert file.path.read_bytes() == CONTENT


def test_an_answer_without_an_end_is_refused(file, site):
    site.length = ""
    assert "doesn't say where it ends" in refused(file)
    assert left(file) == []


def test_a_file_that_is_not_there_is_named_with_the_manual_way(file, site):
    del site.files["/set.zip"]
    message = refused(file)
    parts = (f"{file.url} can't be", "HTTP status 404", "--config.task.source=FILE")
    assert [part for part in (*parts, str(file.path.parent)) if part not in message] == []
    assert left(file) == []


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><title>Log in</title>", b""])
def test_a_page_in_place_of_the_file_is_refused(content, file, site):
    site.files["/set.zip"] = content
    assert f"what the server sends isn't a .zip file: it begins with {content[:20]!r}" in (
        refused(file)
    )
    assert left(file) == []


def test_without_a_network_the_error_names_address_and_manual_way(file, site):
    nowhere = file._replace(url="http://127.0.0.1:1/set.zip")
    message = refused(nowhere)
    parts = (f"{nowhere.url} can't be downloaded: ", "refused", "--config.task.source=FILE")
    assert [part for part in parts if part not in message] == []
    assert left(file) == []


def test_a_disk_that_is_full_is_named_and_the_next_command_continues(file, site):
    site.files["/set.zip"] = content = CONTENT + bytes(2**20)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
        message = refused(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"{file.url} can't be downloaded: File too large" in message
    assert not file.path.exists()
    ensure(file)
    assert file.path.read_bytes() == content
    assert site.asked[-1] == ("/set.zip", f"bytes={2**20}-")


def test_a_file_that_changes_later_is_refused_with_both_sums(file):
    ensure(file)
    status, other = file.path.stat(), CONTENT[:-1] + b"x"
    file.path.write_bytes(other)
    os.utime(file.path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    message = refused(file)
    for part in (sha256(other), sha256(CONTENT), f"{file.path} ", "delete it"):
        assert part in message
    file.path.unlink()
    ensure(file)
    assert file.path.read_bytes() == CONTENT


def test_another_time_alone_is_no_change(file, site):
    ensure(file)
    os.utime(file.path, ns=(0, 0))
    ensure(file)
    record = json.loads((file.path.parent / "set.zip.json").read_text())
    assert (record["modified"], record["sha256"]) == (0, sha256(CONTENT))
    assert len(site.asked) == 1


def test_another_file_at_the_address_is_refused_with_both_sums(file, site):
    ensure(file)
    file.path.unlink()
    site.files["/set.zip"] = other = CONTENT + b"x"
    message = refused(file)
    record = file.path.parent / "set.zip.json"
    for part in (file.url, sha256(other), sha256(CONTENT), f"delete {record} to accept it"):
        assert part in message
    assert left(file) == ["set.zip.json"]
    record.unlink()
    ensure(file)
    assert file.path.read_bytes() == other


def test_a_published_sum_is_checked_the_first_time(file, site):
    wrong = file._replace(sha256=sha256(b"other"))
    message = refused(wrong)
    assert all(sha256(content) in message for content in (CONTENT, b"other"))
    assert not file.path.exists()
    ensure(file._replace(sha256=sha256(CONTENT)))


def test_a_file_of_another_address_is_not_taken_for_this_one(file, site):
    ensure(file)
    message = refused(file._replace(url=f"{site.url}/b/set.zip"))
    assert f"downloaded from {file.url}, not from {site.url}/b/set.zip" in message


def test_a_file_put_there_by_hand_is_taken_and_recorded(file, site):
    file.path.parent.mkdir(parents=True)
    file.path.write_bytes(CONTENT)
    ensure(file)
    assert site.asked == []
    assert left(file) == ["set.zip", "set.zip.json"]
    file.path.write_bytes(b"PK")
    assert sha256(CONTENT) in refused(file)


def test_a_page_put_there_by_hand_is_refused(file):
    file.path.parent.mkdir(parents=True)
    file.path.write_bytes(b"<html>")
    assert f"{file.path} isn't a .zip file" in refused(file)
    assert left(file) == ["set.zip"]


def test_a_damaged_record_is_named(file):
    ensure(file)
    record = file.path.parent / "set.zip.json"
    record.write_text("{")
    message = refused(file)
    assert str(record) in message
    assert "delete it" in message


def test_of_several_at_once_one_downloads(file, site):
    threads = [threading.Thread(target=ensure, args=(file,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert site.asked == [("/set.zip", None)]
    assert file.path.read_bytes() == CONTENT
