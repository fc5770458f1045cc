"""Shards of a latent cache: array_record files of float32 latents, checked when they are read."""

import contextlib
import pathlib
from collections.abc import Sequence

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from sparsejax.atomic import replacing, set_aside
from sparsejax.errors import ConfigError, reason
from sparsejax.types import NumpyArray, PathLike, Shape

SHARD = 1024  # images
PATTERN = "latents-[0-9]*-of-[0-9]*.array_record"


def split(count: int) -> list[range]:
    """Return the indices of the images of each shard."""
    return [range(start, min(start + SHARD, count)) for start in range(0, count, SHARD)]


def shard_path(folder: PathLike, index: int, shards: int) -> pathlib.Path:
    """Return the path of one of the shards of a cache."""
    return pathlib.Path(folder) / f"latents-{index:05d}-of-{shards:05d}.array_record"


def write_shard(path: pathlib.Path, latents: NumpyArray) -> None:
    """Write latents [count, versions, h, w, c] float32 to a shard."""
    if path.is_dir():  # which a file can't replace
        set_aside(path)
    with replacing(path) as partial:
        # One latent per group, since they are read in random order. Latents hardly compress.
        writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
        for latent in latents:
            writer.write(latent.tobytes())
        writer.close()


def is_whole(path: pathlib.Path, count: int) -> bool:
    """Return whether a file is a shard of `count` images; their bytes are checked when read."""
    try:
        reader = ArrayRecordReader(str(path))
        try:
            return reader.ok() and reader.num_records() == count
        finally:
            reader.close()
    except Exception:  # noqa: BLE001  it raises whatever the damage causes
        return False


class Latents:
    """The latents of a cache by index, [versions, h, w, c] float32."""

    def __init__(self, paths: Sequence[pathlib.Path], shape: Shape) -> None:
        """Open the shards.

        Args:
          paths: of all shards, in order.
          shape: (versions, h, w, c).

        Raises:
          ConfigError: a shard can't be opened.
        """
        self._paths, self._shape = paths, shape
        try:
            self._source = grain.sources.ArrayRecordDataSource([str(path) for path in paths])
        except Exception as error:
            raise ConfigError(
                f"latent cache {str(paths[0].parent)!r} can't be opened: {reason(error)}; "
                "accepted: whole shards; the command that trains encodes those that aren't"
            ) from error

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._source)

    def __getitem__(self, index: int) -> NumpyArray:
        """Return the latents of one image.

        Raises:
          ConfigError: they are damaged; names the shard, which is renamed so that it is encoded
            again.
        """
        try:
            return self._decoded(self._source[index])
        except Exception:  # noqa: BLE001  the storage may have failed for a moment
            pass
        path = self._paths[index // SHARD]
        try:
            reader = ArrayRecordReader(str(path))
            return self._decoded(reader.read([index % SHARD])[0])
        except Exception as error:
            kept = "delete it"
            with contextlib.suppress(OSError):  # the cache may be read-only
                kept = f"it was set aside as {set_aside(path)}"
            raise ConfigError(
                f"{path} is damaged at image {index % SHARD}: {reason(error)}; {kept}, and the "
                "same command encodes it again"
            ) from error

    def _decoded(self, record: bytes) -> NumpyArray:
        return np.frombuffer(record, np.float32).reshape(self._shape)
