"""Stamps: cheap fingerprints of data, to recognize the same content elsewhere.

A stamp is a JSON-serializable dictionary, independent of the path and of modification times.
"""

import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from sparsejax.data import archives

Stamp: TypeAlias = dict[str, Any]  # of JSON values
Splits: TypeAlias = Mapping[str, Any]  # of tfds.core.SplitInfo


def stamp_file(path: pathlib.Path, named: bool = False) -> Stamp:
    """Return the stamp of one file: its size and a hash of its bytes.

    Args:
      path: the file.
      named: whether the name is part of the content.

    Returns:
      `files` (1), `bytes`, `sha256`, and `name` if `named`.
    """
    stamp = {"files": 1, "bytes": path.stat().st_size, "sha256": archives.digest(path)}
    return stamp | {"name": path.name} if named else stamp


def stamp_folder(folder: pathlib.Path, paths: Iterable[pathlib.Path]) -> Stamp:
    """Return the stamp of files in a folder: a hash of their names and sizes.

    Args:
      folder: folder that names are relative to.
      paths: the files.

    Returns:
      `files` (their number), `bytes` (total) and `sha256`.
    """
    names = sorted((os.fsencode(path.relative_to(folder)), path.stat().st_size) for path in paths)
    content = hashlib.sha256(b"".join(b"%s\0%d\0" % name for name in names))
    total = sum(size for _, size in names)
    return {"files": len(names), "bytes": total, "sha256": content.hexdigest()}


def stamp_splits(splits: Splits) -> Stamp:
    """Return the stamp of a prepared dataset: the number of examples and bytes per split.

    Args:
      splits: tfds.core.SplitInfo by name.
    """
    return {"splits": {name: [s.num_examples, s.num_bytes] for name, s in sorted(splits.items())}}


def describe(stamp: Stamp) -> str:
    """Describe a stamp in a few words.

    Examples:
      >>> describe({"files": 12, "bytes": 34567, "sha256": "0"})
      '12 files, 34,567 bytes'
    """
    if "splits" in stamp:
        return ", ".join(f"{name} {count:,}" for name, (count, _) in stamp["splits"].items())
    if "files" not in stamp:
        return "nothing"
    count = stamp["files"]
    return f"{count:,} file{'s' if count != 1 else ''}, {stamp['bytes']:,} bytes"
