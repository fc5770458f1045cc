"""Read zips and npz files that others made: in bounded memory, and with one error.

Sizes are checked by the headers before anything is inflated or allocated, and only what the headers
say is inflated. Nothing is unpickled.
"""

import contextlib
import math
import os
import zipfile
from collections.abc import Iterable, Iterator
from typing import IO, Any, TypeAlias

import numpy as np

from sparsejax.errors import ConfigError, reason
from sparsejax.limits import VARIABLE, TooLargeError, check_limit, limits

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Header: TypeAlias = tuple[tuple[int, ...], np.dtype[Any]]

# The others can't be inflated in bounded pieces by zipfile.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class NpzError(ConfigError):
    """A file that isn't an npz, is damaged or holds too much; `problem` doesn't name the path."""

    def __init__(self, path: str | os.PathLike[str], problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.problem = problem


def problem(error: NpzError | OSError) -> str:
    """Return what is wrong with a file that `read_npz` can't read, without its path."""
    return error.problem if isinstance(error, NpzError) else reason(error)


def read_member(archive: zipfile.ZipFile, name: str, limit: str) -> bytes:
    """Return the bytes of one member of a zip.

    Args:
      archive: the zip.
      name: name of the member.
      limit: the limit (`sparsejax.limits`) on its bytes.

    Raises:
      TooLargeError: the member holds more bytes.
      Exception: anything that zipfile raises for a damaged member.
    """
    info = archive.getinfo(name)
    check_limit(limit, info.file_size, "bytes")
    with _open(archive, info) as file:
        return file.read(info.file_size)


def names(path: str | os.PathLike[str]) -> list[str]:
    """Return the names of the arrays of an npz; reads none of them.

    Args:
      path: the file.

    Raises:
      NpzError: the file isn't an npz or is damaged.
      OSError: it can't be opened.
    """
    with _archive(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def header(path: str | os.PathLike[str], key: str) -> Header:
    """Return shape and dtype of an array of an npz without reading the array.

    Args:
      path: the file.
      key: name of the array.

    Raises:
      NpzError: the file isn't an npz, is damaged or has no such array.
      OSError: it can't be opened.
    """
    with _archive(path) as archive, _open(archive, archive.getinfo(f"{key}.npy")) as file:
        return _header(file)


def read_npz(path: str | os.PathLike[str], keys: Iterable[str] | None = None) -> dict[str, Array]:
    """Read arrays of an npz.

    Args:
      path: the file.
      keys: names of the arrays to read; those that the file lacks are left out (default: all).

    Returns:
      `{name: array}`.

    Raises:
      NpzError: the file isn't an npz or is damaged, or an array holds objects or goes beyond the
        limits `array_bytes` and `array_inflation`.
      OSError: the file can't be opened.
    """
    with _archive(path) as archive:
        held = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
        wanted = sorted(held) if keys is None else [key for key in keys if key in held]
        return {key: _read_array(archive, key, os.path.getsize(path)) for key in wanted}


@contextlib.contextmanager
def _archive(path: str | os.PathLike[str]) -> Iterator[zipfile.ZipFile]:
    """Open an npz; whatever zipfile and numpy raise becomes an NpzError."""
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                yield archive
        except TooLargeError as error:
            raise NpzError(path, str(error)) from error
        except ConfigError:
            raise
        except Exception as error:  # zipfile and numpy raise many types
            raise NpzError(path, f"it isn't an npz, or is damaged ({reason(error)})") from error


def _open(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    if info.compress_type not in _METHODS:
        raise ValueError(f"{info.filename} is neither stored nor deflated")
    return archive.open(info)


def _read_array(archive: zipfile.ZipFile, key: str, file_size: int) -> Array:
    info = archive.getinfo(f"{key}.npy")
    most = max(limits().array_bytes, limits().array_inflation * min(info.compress_size, file_size))
    if info.file_size > most:
        raise TooLargeError(
            f"{key} inflates to {info.file_size:,} bytes; accepted: {most:,}, or more by "
            f"{VARIABLE}=array_bytes=N"
        )
    with _open(archive, info) as file:
        shape, dtype = _header(file)
        held = info.file_size - file.tell()
    if dtype.hasobject:
        raise ValueError(f"{key} holds Python objects")
    count = math.prod(shape)
    needed = count * dtype.itemsize
    if needed != held or (count and not dtype.itemsize):
        raise ValueError(f"{key} of {dtype} {list(shape)} has {held:,} bytes, not {needed:,}")
    with _open(archive, info) as file:  # anew: zipfile checks no sum after a seek
        return np.lib.format.read_array(file, allow_pickle=False)


def _header(file: IO[bytes]) -> Header:
    """Read the header of an array; raises many types for damaged ones."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"an array of the format {version}; accepted: (1, 0), (2, 0)")
    if min(shape, default=0) < 0:
        raise ValueError(f"the shape {list(shape)}")
    return shape, dtype
