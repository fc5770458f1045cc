"""List and hash the visible files of a data folder, and describe those that aren't read."""

import collections
import hashlib
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import NoReturn

from sparsejax.data.items import SourceError
from sparsejax.types import PathLike

_CLUTTER = ("Thumbs.db", "ehthumbs.db", "desktop.ini")
_LISTED = 10  # suffixes


def visible(folder: pathlib.Path) -> list[pathlib.Path]:
    """List all files, and links to folders, in a folder and below, except hidden ones.

    Args:
      folder: pathlib.Path.

    Returns:
      Sorted paths; links to folders aren't followed.

    Raises:
      SourceError: a folder can't be read.
    """

    def refuse(error: OSError) -> NoReturn:
        raise SourceError(f"{error.filename} can't be read: {error.strerror}") from error

    found = []
    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if is_visible(name)]
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        files = [name for name in files if is_visible(name)]
        found += [pathlib.Path(place, name) for name in links + files]
    return sorted(found)


def digest(folder: pathlib.Path, paths: Iterable[pathlib.Path]) -> str:
    """Hash the names, sizes and modification times of files without opening them.

    Args:
      folder: folder that names are relative to.
      paths: files in it.

    Returns:
      Hexadecimal string.
    """
    content = hashlib.sha256()
    for path in paths:
        status = path.stat()
        name = os.fsencode(path.relative_to(folder))
        content.update(b"%s\0%d\0%d\0" % (name, status.st_size, status.st_mtime_ns))
    return content.hexdigest()


def is_visible(name: str) -> bool:
    """Return whether a file name is neither hidden nor clutter of a desktop."""
    return not name.startswith(".") and name not in _CLUTTER


def left_out(paths: Sequence[PathLike], folder: PathLike = "") -> str:
    """Describe files that aren't read: how many, their suffixes, and the first one's name.

    Args:
      paths: the files.
      folder: folder that names are relative to.

    Returns:
      Description, empty if there are no files.

    Examples:
      >>> left_out(["a/1.heic", "a/2.HEIC", "notes.txt"])
      '3 files left out: .heic (2), .txt (1); the first is a/1.heic'
    """
    if not paths:
        return ""
    files = [pathlib.Path(path) for path in paths]
    kinds = collections.Counter(map(_kind, files)).most_common()
    listed = ", ".join(f"{kind} ({number})" for kind, number in kinds[:_LISTED])
    more = ", ..." if len(kinds) > _LISTED else ""
    count = "1 file" if len(files) == 1 else f"{len(files):,} files"
    first = files[0].relative_to(folder)
    return f"{count} left out: {listed}{more}; the first is {first}"


def _kind(path: pathlib.Path) -> str:
    return "folders" if path.is_dir() else path.suffix.lower() or "no ending"
