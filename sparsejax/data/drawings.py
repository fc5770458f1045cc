"""What every source of pen drawings gives: drawings, and what in it is broken, with the reason.

A source is read by a function that yields one or the other for each drawing that it holds, and
raises `sparsejax.data.items.SourceError` where nothing at all can be read.
"""

import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np

from sparsejax.data.items import reason
from sparsejax.types import NumpyArray, Value

SPLITS = ("train", "validation", "test")
T = TypeVar("T")
_TRAIN, _VALIDATION = 85, 5  # of 100; the rest is for the test


class Drawing(NamedTuple):
    """One drawing: `name` for messages, unique in its source; `split`; `label` int; `strokes`.

    Strokes are a list of arrays [points, 3] float64 of x, y (y down) and t, which never falls;
    its unit is whatever the source has.
    """

    name: str
    split: str
    label: int
    strokes: list[NumpyArray]


class Broken(NamedTuple):
    """A drawing that can't be read: `name` says where it lies, `reason` what is wrong."""

    name: str
    reason: str


Found: TypeAlias = Drawing | Broken


def attempt(name: str, read: Callable[..., T], *arguments: Value) -> T | Broken:
    """Return `read(*arguments)`, or Broken with the reason, whatever goes wrong.

    Args:
      name: of the drawing that is read.
      read: function.
      *arguments: its arguments.

    Example:
      >>> attempt("a.svg", float, "1.5"), attempt("a.svg", float, "a")
      (1.5, Broken(name='a.svg', reason="could not convert string to float: 'a'"))
    """
    try:
        with np.errstate(all="ignore"):
            return read(*arguments)
    except Exception as error:  # One drawing is never a reason to lose the others.
        return Broken(name, reason(error))


def with_times(strokes: Sequence[NumpyArray]) -> list[NumpyArray]:
    """Add the times of a pen of constant speed, on the paper and between strokes in the air.

    Args:
      strokes: list of arrays [points, 2] of x and y.

    Returns:
      List of arrays [points, 3] float64 of x, y and the length of the pen's way so far.

    Example:
      >>> with_times([np.array([[0, 0], [3, 4]]), np.array([[3, 5]])])
      [array([[0., 0., 0.],
             [3., 4., 5.]]), array([[3., 5., 6.]])]
    """
    if not strokes:
        return []
    points = np.concatenate(strokes)
    timed = np.zeros((len(points), 3))
    timed[:, :2] = points
    timed[1:, 2] = np.cumsum(np.hypot(*np.diff(timed[:, :2], axis=0).T))
    ends = np.cumsum([len(stroke) for stroke in strokes]).tolist()
    return [timed[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def as_text(name: str) -> str:
    r"""Return a file's name as text that UTF-8 can hold; other bytes become \xNN."""
    return os.fsencode(name).decode(errors="backslashreplace")


def split_of(key: str) -> str:
    """Return a key's split, by its hash: 85 % train, 5 % validation, 10 % test.

    Args:
      key: str; the same key is always in the same split.
    """
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()) % 100
    return SPLITS[(place >= _TRAIN) + (place >= _TRAIN + _VALIDATION)]


def digest(folder: pathlib.Path, paths: Iterable[pathlib.Path]) -> str:
    """Hash names, sizes and modification times of files in a folder, without opening them.

    Args:
      folder: pathlib.Path.
      paths: of files in it.

    Returns:
      Hexadecimal string.
    """
    content = hashlib.sha256()
    for path in paths:
        status = path.stat()
        name = os.fsencode(path.relative_to(folder))
        content.update(b"%s\0%d\0%d\0" % (name, status.st_size, status.st_mtime_ns))
    return content.hexdigest()
