"""Common types of the sources of images: items, and errors that say what is wrong."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sparsejax.types import NumpyArray


class Item(NamedTuple):
    """One image: `name` in messages, `split`, `label` int, `read() -> encoded bytes`."""

    name: str
    split: str
    label: int
    read: Callable[[], bytes]


class SourceError(Exception):
    """A folder or npz that can't be used; the message completes "<source>: ..."."""


def reason(error: BaseException) -> str:
    """Return an exception's message on one line, with its type if the message isn't plain words."""
    text = " ".join(str(error).split())
    plain = isinstance(error, OSError | ValueError) and text
    return text if plain else f"{type(error).__name__} {text}".strip()


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


def check_integers(key: str, array: NumpyArray, count: int) -> None:
    """Raise a SourceError unless the array `key` of an npz holds integers [count]."""
    fits = np.issubdtype(array.dtype, np.integer) and array.shape == (count,)
    check(fits, f"{key} is {array.dtype} {list(array.shape)}, not integers [{count}]")
    highest = np.iinfo(np.int64).max
    check(not count or array.max() <= highest, f"{key} holds numbers above {highest}")
