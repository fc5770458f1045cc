"""Common types of the sources of pen drawings: drawings, and broken ones with the reason.

Each source has a function that yields one or the other for every drawing in it, and raises
`sparsejax.data.items.SourceError` if nothing can be read at all.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np

from sparsejax.errors import reason
from sparsejax.types import NumpyArray, Value

SPLITS = ("train", "validation", "test")
T = TypeVar("T")
_TRAIN, _VALIDATION = 85, 5  # of 100; the rest is for test


class Drawing(NamedTuple):
    """One drawing: `name` for messages, unique in its source; `split`; `label` int; `strokes`.

    Strokes are a list of arrays [points, 3] float64 of x, y (y down) and t, which never decreases,
    in the unit of the source.
    """

    name: str
    split: str
    label: int
    strokes: list[NumpyArray]


class Broken(NamedTuple):
    """A drawing that can't be read: `name` locates it, `reason` says what is wrong."""

    name: str
    reason: str


Found: TypeAlias = Drawing | Broken


def attempt(name: str, read: Callable[..., T], *arguments: Value) -> T | Broken:
    """Return `read(*arguments)`, or Broken with the reason if it raises.

    Args:
      name: name of the drawing.
      read: function to call.
      *arguments: its arguments.

    Examples:
      >>> attempt("a.svg", float, "1.5"), attempt("a.svg", float, "a")
      (1.5, Broken(name='a.svg', reason="could not convert string to float: 'a'"))
    """
    try:
        with np.errstate(all="ignore"):
            return read(*arguments)
    except Exception as error:  # One broken drawing must not lose the others.
        return Broken(name, reason(error))


def with_times(strokes: Sequence[NumpyArray]) -> list[NumpyArray]:
    """Add the times of a pen that moves at constant speed, also between strokes.

    Args:
      strokes: list of arrays [points, 2] of x and y.

    Returns:
      List of arrays [points, 3] float64 of x, y and the distance travelled so far.

    Examples:
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
    r"""Return a file name as valid UTF-8 text; other bytes become \xNN."""
    return os.fsencode(name).decode(errors="backslashreplace")


def split_of(key: str) -> str:
    """Return the split of a key, by its hash: 85 % train, 5 % validation, 10 % test.

    Args:
      key: any text; the same key is always in the same split.
    """
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()) % 100
    return SPLITS[(place >= _TRAIN) + (place >= _TRAIN + _VALIDATION)]
