"""What every source of image files gives: a list of items, or an error that says what is wrong."""

from collections.abc import Callable
from typing import NamedTuple


class Item(NamedTuple):
    """One image: `name` in messages, `split`, `label` int, `read() -> encoded bytes`."""

    name: str
    split: str
    label: int
    read: Callable[[], bytes]


class SourceError(Exception):
    """A folder or npz that can't be used; the message completes "<source>: ..."."""
