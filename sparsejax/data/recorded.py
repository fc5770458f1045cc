"""Files of publishers, and what is recorded of them: FILE.json beside FILE has size and SHA-256.

What was recorded first counts, unless a checksum was published: none is made up here.
"""

import contextlib
import hashlib
import json
import os
import pathlib
from typing import NamedTuple

from sparsejax.atomic import write_text
from sparsejax.errors import ConfigError
from sparsejax.storage import JsonObject, read_object

_HEAD = 20  # bytes that a message shows
# What files of these kinds begin with; the login page of a network does not.
_STARTS = {".zip": b"PK", ".npz": b"PK", ".tgz": b"\x1f\x8b", ".gz": b"\x1f\x8b", ".ndjson": b"{"}


class Download(NamedTuple):
    """A file of a publisher.

    Attributes:
      title: name of the data set, for messages.
      url: address of the file.
      path: where it is kept.
      licence: licence and attribution.
      sha256: its published checksum, hexadecimal; empty if there is none.
    """

    title: str
    url: str
    path: pathlib.Path
    licence: str
    sha256: str = ""

    @property
    def partial(self) -> pathlib.Path:
        """Path of what has arrived of it so far."""
        return self.path.with_name(f"{self.path.name}.partial")

    @property
    def record(self) -> pathlib.Path:
        """Path of what is recorded of it."""
        return self.path.with_name(f"{self.path.name}.json")


def is_intact(file: Download) -> bool:
    """Return whether a file is there, after checking it.

    A file whose size and time are as recorded counts as unchanged. One without a record, put there
    by hand, is recorded.

    Args:
      file: the file.

    Raises:
      ConfigError: it is another file than the recorded one, or no file of its kind.
    """
    if not file.path.is_file():
        return False
    known, status = read_record(file), file.path.stat()
    if known.get("url", file.url) != file.url:
        raise ConfigError(
            f"{file.path} was downloaded from {known['url']}, not from {file.url}; accepted: the "
            f"former as config.task.url, or {file.path} deleted"
        )
    seen = {"bytes": status.st_size, "modified": status.st_mtime_ns}
    if seen.items() <= known.items():
        return True
    sha256, expected = _sha256(file.path), known.get("sha256") or file.sha256
    with file.path.open("rb") as content:
        problem = misfit(file, content.read(_HEAD))
    if expected and sha256 != expected:
        problem = f"has the SHA-256 {sha256}, not {expected} as {_origin(file, known)}"
    if problem:
        raise ConfigError(
            f"{file.path} {problem}: delete it, and the same command downloads it again"
        )
    with contextlib.suppress(OSError):  # the disk may be read-only
        write_record(file, known | seen | {"sha256": sha256})
    return True


def misfit(file: Download, head: bytes) -> str:
    """Say why bytes can't be the first ones of a file of this kind; empty if they can.

    Args:
      file: the file.
      head: the bytes.
    """
    fits = head.startswith(_STARTS.get(file.path.suffix.lower(), b""))
    return "" if fits else f"isn't a {file.path.suffix} file: it begins with {head[:_HEAD]!r}"


def check_partial(file: Download) -> JsonObject:
    """Check the whole of what has arrived against the recorded or published checksum.

    Args:
      file: the file, complete in `file.partial`, which is removed if it is wrong.

    Returns:
      What to record of it.

    Raises:
      ConfigError: it has another checksum.
    """
    known, sha256 = read_record(file), _sha256(file.partial)
    expected = known.get("sha256") or file.sha256
    if expected and sha256 != expected:
        file.partial.unlink()
        forget = f"delete {file.record} to accept it, or " if known.get("sha256") else ""
        raise ConfigError(
            f"{file.title}: what {file.url} sends has the SHA-256 {sha256}, not {expected} as "
            f"{_origin(file, known)}: {forget}{by_hand(file)}"
        )
    status = file.partial.stat()
    seen = {"bytes": status.st_size, "modified": status.st_mtime_ns, "sha256": sha256}
    return {"url": file.url} | seen


def by_hand(file: Download) -> str:
    """Say how to do without a download.

    Args:
      file: the file.
    """
    named = "name it with --config.task.source=FILE"
    if file.path.suffix == ".tgz":
        named = "unpack it and name its folder with --config.task.source=FOLDER"
    return f"get {file.path.name} elsewhere, and put it into {file.path.parent} or {named}"


def read_record(file: Download) -> JsonObject:
    """Return what is recorded of a file; empty if nothing is.

    Args:
      file: the file.

    Raises:
      ConfigError: the record is damaged.
    """
    if not os.path.lexists(file.record):
        return {}
    try:
        return read_object(file.record)
    except ConfigError as error:
        raise ConfigError(f"{error}; delete it to record {file.path.name} anew") from error


def write_record(file: Download, content: JsonObject) -> None:
    """Record something of a file, in place of what was recorded.

    Args:
      file: the file.
      content: `url`; of a whole file `bytes`, `modified` (nanoseconds) and `sha256`; of one that is
        on its way `validator`, by which the server tells whether it changed.
    """
    write_text(file.record, json.dumps(content, indent=2) + "\n")


def _origin(file: Download, known: JsonObject) -> str:
    """Say where the expected checksum is from."""
    return f"recorded in {file.record}" if known.get("sha256") else "published for this file"


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
