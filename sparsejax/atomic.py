"""Atomic writes: a file is written completely or not at all, whatever ends the process or machine.

A file is written under a name of its own, forced to the disk, and only then given its name. So
several processes may write the same file: the last one counts.
"""

import contextlib
import errno
import itertools
import os
import pathlib
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
PathLike: TypeAlias = str | os.PathLike[str]

_ABANDONED = 3600.0  # seconds: nothing that is still being written stays unchanged for so long
# Of file systems that can't force a folder to the disk.
_CANT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF)


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[pathlib.Path]:
    """Yield a temporary path, which replaces `path` if the body succeeds.

    What a killed process left of the same file is removed once it is an hour old; until then it is
    in nobody's way.

    Args:
      path: file to write; its folder must exist.

    Yields:
      A path in the same folder, with the same suffix, that no other process uses.

    Examples:
      `with replacing("model.safetensors") as partial: save_file(tensors, partial)`
    """
    path = pathlib.Path(path)
    partial = path.with_name(f"partial-{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        yield partial
        _sync(partial)
        _open_to_others(partial)
        _remove_abandoned(partial, path.name)
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):  # it is there only if something was raised
            partial.unlink()
    with _unless_unsupported():
        _sync(path.parent)


def _open_to_others(path: pathlib.Path) -> None:
    """Give a file the rights of any new file; safetensors writes files for their owner alone."""
    if stat.S_IMODE(path.stat().st_mode) != 0o600:
        return
    umask = os.umask(0o077)  # there is no other way to read it; files of other threads stay private
    os.umask(umask)
    with contextlib.suppress(OSError):  # some file systems have no rights
        path.chmod(0o666 & ~umask)


def write_text(path: PathLike, text: str) -> None:
    """Write `text` to the file `path`, as UTF-8."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_npz(path: PathLike, arrays: Mapping[str, Array]) -> None:
    """Write an npz of arrays by name to the file `path`, which need not end in `.npz`."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy has a flag among the names


def append_lines(path: PathLike, lines: Iterable[bytes]) -> None:
    """Append lines to a file that need not exist, and force them to the disk."""
    with open(path, "ab") as file:
        file.write(b"".join(line + b"\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())


def set_aside(path: PathLike) -> pathlib.Path:
    """Rename a damaged file or folder to the first free `<name>.damaged-<i>`; return that path."""
    path = pathlib.Path(path)
    names = (path.with_name(f"{path.name}.damaged-{i}") for i in itertools.count(1))
    free = next(name for name in names if not os.path.lexists(name))
    path.rename(free)
    return free


def _sync(path: pathlib.Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _unless_unsupported() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _CANT_SYNC:
            raise


def _remove_abandoned(partial: pathlib.Path, name: str) -> None:
    """Remove what killed processes left of a file; its age is told by the storage's own clock."""
    now = partial.stat().st_mtime
    pattern = re.compile(r"partial-(\d+-[0-9a-f]{8}-)?" + re.escape(name))
    with contextlib.suppress(OSError):  # it is somebody else's, or gone by now
        for other in filter(pattern.fullmatch, os.listdir(partial.parent)):
            path = partial.with_name(other)
            if path != partial and path.stat().st_mtime < now - _ABANDONED:
                path.unlink()
