"""Limits on what a file that others made may hold, so that a small file takes little memory.

What goes beyond a limit is left out by name. The environment variable `SPARSEJAX_LIMITS` sets
limits: `SPARSEJAX_LIMITS=image_pixels=120e6,drawing_points=500000`. docs/limits.md lists them.
"""

import functools
import os
import pathlib
from typing import NamedTuple

from sparsejax.errors import ConfigError

VARIABLE = "SPARSEJAX_LIMITS"


class Limits(NamedTuple):
    """The largest values that readers accept.

    Attributes:
      image_bytes: bytes of an encoded image.
      image_pixels: pixels of an image, by its header; also of all images decoded at once.
      drawing_bytes: bytes of an SVG file, or of a line of ndjson.
      drawing_points: points of a drawing before it is resampled.
      word_letters: letters of a drawing's word.
      array_bytes: bytes of one array of an npz, however well it is compressed.
      array_inflation: bytes of one array of an npz per compressed byte, where that is more.
      archive_inflation: bytes of all files of a .tgz per compressed byte.
      sparse_weights: weights of a sparse file, however few of them are active.
      sparse_inflation: weights of a sparse file per stored value, where that is more.
    """

    image_bytes: int = 2**28
    image_pixels: int = 2**26
    drawing_bytes: int = 2**20
    drawing_points: int = 100_000
    word_letters: int = 200
    array_bytes: int = 2**26
    array_inflation: int = 100
    archive_inflation: int = 100
    sparse_weights: int = 2**24
    sparse_inflation: int = 1000


class TooLargeError(ValueError):
    """Something in a file goes beyond a limit; the message says which and how to raise it."""


def limits() -> Limits:
    """Return the limits, with those that the environment sets.

    Raises:
      ConfigError: the environment variable names no limit, or no number of 1 or more.
    """
    return _parse(os.environ.get(VARIABLE, ""))


@functools.cache
def _parse(text: str) -> Limits:
    changes = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = (word.strip() for word in part.partition("="))
        try:
            value = int(float(number))
        except (ValueError, OverflowError):
            value = 0
        if name not in Limits._fields or value < 1:
            raise ConfigError(
                f"{VARIABLE} holds {part!r}; accepted: NAME=NUMBER of 1 or more, with the names "
                f"{', '.join(Limits._fields)}"
            )
        changes[name] = value
    return Limits(**changes)


def changed() -> str:
    """Return the limits that aren't the defaults, as text; empty if there are none."""
    pairs = zip(Limits._fields, limits(), Limits(), strict=True)
    return ",".join(f"{name}={value}" for name, value, default in pairs if value != default)


def check_limit(name: str, value: int, what: str) -> None:
    """Check a value against a limit; the message is the same for all values.

    Args:
      name: the limit, an attribute of `Limits`.
      value: what the file holds.
      what: the unit of the value, for the message.

    Raises:
      TooLargeError: the value goes beyond the limit.
    """
    if value > getattr(limits(), name):
        raise too_large(name, what)


def too_large(name: str, what: str) -> TooLargeError:
    """Return the error of something that goes beyond a limit.

    Args:
      name: the limit, an attribute of `Limits`.
      what: the unit of the value, for the message.
    """
    most = getattr(limits(), name)
    return TooLargeError(f"more {what} than {most:,}, which {VARIABLE}={name}=N sets")


def read_file(path: pathlib.Path, name: str) -> bytes:
    """Return the bytes of a file, after checking their number.

    Args:
      path: the file.
      name: the limit on its bytes.

    Raises:
      TooLargeError: the file has more bytes.
      OSError: it can't be read.
    """
    with path.open("rb") as file:
        content = file.read(getattr(limits(), name) + 1)
    check_limit(name, max(len(content), path.stat().st_size), "bytes")
    return content
