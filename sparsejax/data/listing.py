"""What lies in a folder of data: the files that can be seen, and a line on those not read."""

import collections
import os
import pathlib
from collections.abc import Sequence
from typing import NoReturn

from sparsejax.data.items import SourceError
from sparsejax.types import PathLike

_CLUTTER = ("Thumbs.db", "ehthumbs.db", "desktop.ini")
_LISTED = 10  # endings


def visible(folder: pathlib.Path) -> list[pathlib.Path]:
    """List all files in a folder and below, and links to folders, but for hidden ones.

    Args:
      folder: pathlib.Path.

    Returns:
      Sorted list of pathlib.Path; links to folders aren't followed.

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


def is_visible(name: str) -> bool:
    """Return whether a file name is neither hidden nor clutter of a desktop."""
    return not name.startswith(".") and name not in _CLUTTER


def left_out(paths: Sequence[PathLike], folder: PathLike = "") -> str:
    """Say which files aren't read: how many, of which endings, and the first one's name.

    Args:
      paths: of the files, strings or pathlib.Path.
      folder: names are relative to it.

    Returns:
      str, empty if there are none.

    Example:
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
