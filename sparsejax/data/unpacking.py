"""Unpack a tar archive that others made: only files, only into its folder, in bounded memory."""

import gzip
import os
import pathlib
import shutil
import tarfile

from sparsejax import lease
from sparsejax.errors import ConfigError, reason
from sparsejax.limits import TooLargeError, check_limit, limits, too_large
from sparsejax.storage import storage_problem

_PIECE = 2**20  # bytes; more than names in headers take


def folder_of(archive: pathlib.Path) -> pathlib.Path:
    """Return the folder that an archive is unpacked to, beside it and named after it."""
    return archive.with_suffix("")


def unpack(archive: pathlib.Path) -> pathlib.Path:
    """Unpack a .tgz beside it, unless that was done before.

    Args:
      archive: the file.

    Returns:
      Folder of what it holds; if that is one folder, its content.

    Raises:
      ConfigError: the archive is damaged, holds anything but files or goes beyond the limits
        `image_bytes` and `archive_inflation`, or the disk is full.
    """
    folder = folder_of(archive)
    if folder.is_dir():
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        with lease.hold_in_turn(archive.parent) as guard:
            if not folder.is_dir():
                shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
                _extract(archive, partial)
                inner = list(partial.iterdir())
                guard()
                (inner[0] if len(inner) == 1 and inner[0].is_dir() else partial).rename(folder)
                shutil.rmtree(partial, ignore_errors=True)
    except ConfigError:
        raise
    except Exception as error:  # tarfile and gzip raise many types
        shutil.rmtree(partial, ignore_errors=True)
        problem = storage_problem(error) or reason(error)
        raise ConfigError(f"{archive} can't be unpacked: {problem}") from error
    return folder


def _extract(archive: pathlib.Path, folder: pathlib.Path) -> None:
    """Write the files of an archive to a folder; raises many types for damaged ones."""
    folder.mkdir()
    most, held = limits().archive_inflation * archive.stat().st_size, 0
    with _Stream(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as members:
        for member in members:
            if member.isdir():
                continue
            parts = pathlib.PurePosixPath(member.name).parts
            if not member.isreg() or ".." in parts or parts[:1] == ("/",):
                raise ValueError(f"it holds {member.name!r}, which isn't a file within it")
            check_limit("image_bytes", member.size, f"bytes in {member.name}")
            held += member.size
            if held > most:
                raise too_large("archive_inflation", "bytes for each of its own")
            path = folder.joinpath(*parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            content = members.extractfile(member)
            assert content is not None, "it is a regular file"
            with content, path.open("wb") as out:
                shutil.copyfileobj(content, out)
            os.utime(path, (member.mtime, member.mtime))  # part of the identity of a folder
        while piece := stream.read(_PIECE):  # up to the end, where gzip checks its sum
            held += len(piece)
            if held > most:
                raise too_large("archive_inflation", "bytes for each of its own")


class _Stream(gzip.GzipFile):
    """Raises TooLargeError for large pieces, which the headers of tar archives can ask for."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _PIECE:
            raise TooLargeError("a header of it is larger than any name")
        return super().read(size)
