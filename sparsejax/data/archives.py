"""Read images from an npz, as pixels or as encoded files.

Keys, either
  images  [count, height, width] or [count, height, width, 1 or 3] uint8, or
  jpeg    [bytes] uint8 and offsets [count + 1] int: item i is the encoded image (JPEG, PNG, ...)
          jpeg[offsets[i]:offsets[i + 1]],
and optionally label or labels [count] int and split [count] int: 0 train, 1 validation, 2 test.
Images may also have the key image. Other keys are ignored.
"""

import functools
import hashlib
import pathlib
from collections.abc import Callable, Container, Sequence
from typing import TypeAlias

import numpy as np

from sparsejax import zips
from sparsejax.data.decoding import encode
from sparsejax.data.items import Item, SourceError, check, check_count, check_integers, few
from sparsejax.types import NumpyArray

Read: TypeAlias = Callable[[int], bytes]  # an item's encoded bytes

SPLITS = ("train", "validation", "test")
_IMAGES = ("images", "image")


def digest(path: pathlib.Path) -> str:
    """Return the file's sha256, a hexadecimal string; `path` is a pathlib.Path."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _sha256(path: pathlib.Path, size: int, time: int) -> str:
    """Hash a file; size and modification time are part of the cache's key."""
    del size, time
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def channels(path: pathlib.Path) -> int:
    """Return the number of channels of an npz's images, 1 or 3; reads only its headers.

    Args:
      path: pathlib.Path.

    Raises:
      SourceError: the file isn't an npz, is damaged, or lacks the keys.
    """
    try:
        names = zips.names(path)
        if {"jpeg", "offsets"} <= set(names):
            return 3
        key = _images_key(names)
        check(key, f"its keys are {few(names)}")
        shape, _ = zips.header(path, key)
    except (zips.NpzError, OSError) as error:
        raise SourceError(zips.problem(error)) from error
    return 1 if len(shape) == 3 else _checked_images(shape)[3]


def items(path: pathlib.Path) -> list[Item]:
    """List the images of an npz, in order.

    Args:
      path: pathlib.Path.

    Returns:
      List of Items.

    Raises:
      SourceError: the file isn't an npz, is damaged, or has other arrays than described above.
    """
    try:
        arrays = zips.read_npz(path, (*_IMAGES, "jpeg", "offsets", "label", "labels", "split"))
    except (zips.NpzError, OSError) as error:
        raise SourceError(zips.problem(error)) from error
    check(_images_key(arrays) or {"jpeg", "offsets"} <= arrays.keys(), "it lacks images")
    read, content, count = (_ragged if {"jpeg", "offsets"} <= arrays.keys() else _pixels)(arrays)
    check_count(count, path)
    labels = arrays.get("label", arrays.get("labels", np.zeros(count, int)))
    splits = arrays.get("split", np.zeros(count, int))
    check_integers("label", labels, count)
    check_integers("split", splits, count)
    check(np.isin(splits, range(len(SPLITS))).all(), "split holds more than 0, 1 and 2")
    return [
        Item(
            f"item {i}",
            SPLITS[splits[i]],
            int(labels[i]),
            functools.partial(read, i),
            functools.partial(content, i),
        )
        for i in range(count)
    ]


def _images_key(names: Container[str]) -> str:
    """Return the key of an npz's images; empty if it has none."""
    return next((key for key in _IMAGES if key in names), "")


def _pixels(arrays: dict[str, NumpyArray]) -> tuple[Read, Read, int]:
    images = arrays[_images_key(arrays)]
    check(images.dtype == np.uint8, f"images are {images.dtype}, not uint8")
    _checked_images(images.shape)
    return lambda i: encode(images[i]), lambda i: images[i].tobytes(), len(images)


def _checked_images(shape: Sequence[int]) -> Sequence[int]:
    fits = min(shape, default=0) > 0 and (len(shape) == 3 or len(shape) == 4 and shape[3] in (1, 3))
    check(fits, f"images have the shape {list(shape)}, not [count, height, width, 1 or 3]")
    return shape


def _ragged(arrays: dict[str, NumpyArray]) -> tuple[Read, Read, int]:
    encoded, offsets = arrays["jpeg"], arrays["offsets"]
    check(encoded.dtype == np.uint8 and encoded.ndim == 1, "jpeg isn't a row of uint8")
    check(offsets.size > 1, "offsets are fewer than two")
    check_integers("offsets", offsets, offsets.size)
    # int64: differences of unsigned offsets would wrap around.
    offsets = offsets.astype(np.int64)
    rises = offsets[0] >= 0 and (np.diff(offsets) >= 0).all() and offsets[-1] <= encoded.size
    check(rises, f"offsets don't rise from 0 to {encoded.size}, the length of jpeg, at most")

    def read(i: int) -> bytes:
        return encoded[offsets[i] : offsets[i + 1]].tobytes()

    return read, read, offsets.size - 1
