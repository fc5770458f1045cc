"""Common types of the sources of images: items, and errors that say what is wrong."""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sparsejax.types import NumpyArray

_FEW, _LEAST_BYTES = 10_000, 8  # items accepted in any file; bytes per item beyond them


class Item(NamedTuple):
    """One image: `name` in messages, `split`, `label` int, `read() -> encoded bytes`.

    `content() -> bytes` identifies the image if what `read` returns depends on an encoder.
    """

    name: str
    split: str
    label: int
    read: Callable[[], bytes]
    content: Callable[[], bytes] | None = None


class SourceError(Exception):
    """A folder or npz that can't be used; the message completes "<source>: ..."."""


def few(names: Sequence[str], most: int = 50) -> str:
    """Return the first names, for messages.

    Examples:
      >>> few("abc", 2), few("")
      ('a, b, ...', '(none)')
    """
    more = ", ..." if len(names) > most else ""
    return ", ".join(names[:most]) + more or "(none)"


def check(condition: object, problem: str) -> None:
    """Raise a SourceError unless a condition holds.

    Args:
      condition: condition to check.
      problem: what is wrong, to complete "<source>: ...".

    Raises:
      SourceError: `condition` is false.
    """
    if not condition:
        raise SourceError(problem)


def check_count(count: int, path: pathlib.Path) -> None:
    """Raise a SourceError if a file has too few bytes for a number of items.

    Every item takes memory, also where there is nothing in it.

    Args:
      count: number of items.
      path: the file.
    """
    size = path.stat().st_size
    check(count <= max(_FEW, size // _LEAST_BYTES), f"it has {count:,} items in {size:,} bytes")


def check_integers(key: str, array: NumpyArray, count: int) -> None:
    """Raise a SourceError unless the array `key` of an npz holds integers [count]."""
    fits = np.issubdtype(array.dtype, np.integer) and array.shape == (count,)
    check(fits, f"{key} is {array.dtype} {list(array.shape)}, not integers [{count}]")
    highest = np.iinfo(np.int64).max
    check(not count or array.max() <= highest, f"{key} holds numbers above {highest}")
