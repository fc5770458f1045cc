"""Cache the latents of a dataset on disk, encoded once.

A cache is a folder of array_record shards with a `stamp.json` that states the first stage, the
images and how they were prepared. Shards are written atomically, so an interrupted encoding
resumes where it stopped; a cache whose stamp differs raises ConfigError. With flips, both versions
of an image are encoded, because the latent of a mirrored image isn't the mirrored latent.
"""

import json
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import TypeAlias

import grain
import jax
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from rich.progress import track

from sparsejax.atomic import replacing, write_text
from sparsejax.data.stamps import Stamp
from sparsejax.errors import ConfigError
from sparsejax.rendering.pixels import to_unit_range
from sparsejax.seeds import check_seed
from sparsejax.storage import require_writable
from sparsejax.types import ArrayLike, Batch, Batches, NumpyArray, PathLike, Shape

Encode: TypeAlias = Callable[[NumpyArray], ArrayLike]

SHARD = 1024  # images
_FORMAT = 1


def encode_dataset(
    folder: PathLike,
    images: grain.MapDataset,
    encode: Encode,
    shape: Shape,
    identity: Stamp,
    *,
    flip: bool,
    batch_size: int = 32,
    content: Stamp | None = None,
) -> None:
    """Encode images into a cache; complete shards of an earlier run are kept.

    Args:
      folder: folder of the cache, created if necessary.
      images: random-access dataset of `{"image": uint8 [height, width, channels]}`.
      encode: `encode(float32 [batch_size, height, width, channels] in [-1, 1]) -> latents
        [batch_size, h, w, c]`, any array on any device.
      shape: shape of one image's latents, (h, w, c).
      identity: JSON-serializable dictionary of what determines the latents. The value of `images`,
        if any, starts with the name of the dataset and a space.
      flip: whether to encode mirrored images too.
      batch_size: number of images to encode at once.
      content: JSON-serializable stamp of the images; if it agrees with the cache's, the dataset may
        have another name.

    Raises:
      ConfigError: the folder holds a cache with another identity.
    """
    folder = pathlib.Path(folder)
    stamp = _check_stamp(folder, identity, content)
    if stamp and "std" in stamp:
        return
    require_writable(folder, "the folder of latents (config.task.latents_dir)")
    folder.mkdir(parents=True, exist_ok=True)
    shards = math.ceil(len(images) / SHARD)
    record = (2 if flip else 1, *shape)
    stamp = {"format": _FORMAT, "identity": identity, "record": record, "shards": shards}
    stamp |= {"content": content} if content else {}
    _write_stamp(folder, stamp)
    missing = [i for i in range(shards) if not _shard_path(folder, i, shards).exists()]
    for index in track(missing, description=f"encoding {len(images):,} images"):
        part = images[index * SHARD : min((index + 1) * SHARD, len(images))]
        _write_shard(
            _shard_path(folder, index, shards), _encode_part(part, encode, flip, batch_size)
        )
    std = _standard_deviation(_read_shards(folder, stamp))
    _write_stamp(folder, stamp | {"std": std})


def open_latents(
    folder: PathLike, identity: Stamp, content: Stamp | None = None
) -> tuple[grain.MapDataset, float]:
    """Open a finished cache.

    Args:
      folder: folder of the cache.
      identity: as for `encode_dataset`.
      content: as for `encode_dataset`.

    Returns:
      Tuple of a `grain.MapDataset` of latents [versions, h, w, c] float32 and the standard
      deviation of all their values.

    Raises:
      ConfigError: there is no finished cache, or it has another identity.
    """
    stamp = _check_stamp(folder, identity, content)
    if not stamp or "std" not in stamp:
        raise ConfigError(
            f"latent cache {str(folder)!r} is {'not finished' if stamp else 'absent'}"
        )
    return _read_shards(pathlib.Path(folder), stamp), stamp["std"]


def read_std(folder: PathLike, first_stage: str) -> float:
    """Return the standard deviation of a cache's latents, for any images.

    Args:
      folder: folder of the cache.
      first_stage: value of `first_stage` that its identity must have.

    Raises:
      ConfigError: there is no finished cache for this first stage.
    """
    stamp = _read_stamp(folder) or {}
    if "std" not in stamp or stamp["identity"].get("first_stage") != first_stage:
        raise ConfigError(
            f"latent cache {str(folder)!r} is absent, not finished or of another first stage: "
            "the scale of latents can't be read; name the cache in config.task.latents_dir, or "
            "set config.task.latent_scale to the number that training used"
        )
    return stamp["std"]


def latent_batches(
    latents: grain.MapDataset, scale: float, batch_size: int, seed: int, start: int, stop: int
) -> Batches:
    """Iterate over the training batches of steps `start` to `stop - 1`, for this process.

    Like `images.image_batches`; if a cache holds both versions of an image, one is drawn.

    Args:
      latents: random-access dataset of [versions, h, w, c] float32.
      scale: factor applied to all latents.
      batch_size: global batch size, a multiple of the number of processes.
      seed: Python int.
      start: first step.
      stop: step to stop before.

    Returns:
      Iterator of `{"latent": [batch_size / P, h, w, c] float32}`.
    """
    processes, process = jax.process_count(), jax.process_index()

    def choose(versions: NumpyArray, rng: np.random.Generator) -> Batch:
        return {"latent": scale * versions[rng.integers(len(versions))]}

    dataset = latents.seed(check_seed(seed)).shuffle().repeat().random_map(choose)
    dataset = dataset.batch(batch_size // processes)
    steps = slice(start * processes + process, stop * processes, processes)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    return iter(dataset.slice(steps).to_iter_dataset(read_options=options))


def _read_stamp(folder: PathLike) -> Stamp | None:
    path = pathlib.Path(folder) / "stamp.json"
    if not path.exists():
        return None
    try:
        stamp = json.loads(path.read_text())
        return stamp if isinstance(stamp["identity"], dict) else {"identity": {}}
    except (ValueError, KeyError, TypeError):
        return {"identity": {}}


def _check_stamp(folder: PathLike, identity: Stamp, content: Stamp | None) -> Stamp | None:
    """Return a cache's stamp, or None; raise ConfigError if it differs from what is asked for."""
    stamp = _read_stamp(folder)
    if stamp is None:
        return None
    found = stamp["identity"] | {"format": stamp.get("format")}
    wanted = identity | {"format": _FORMAT}
    if content and stamp.get("content") == content:
        found, wanted = _without_name(found), _without_name(wanted)
    differing = [
        f"{key}: cached {found.get(key)!r}, asked for {wanted.get(key)!r}"
        for key in sorted(found.keys() | wanted.keys())
        if found.get(key) != wanted.get(key)
    ]
    if differing:
        raise ConfigError(
            f"latent cache {str(folder)!r} is stale:\n  " + "\n  ".join(differing) + "\n"
            "Delete it, or name another folder in config.task.latents_dir."
        )
    return stamp


def _without_name(identity: Stamp) -> Stamp:
    """Leave out the name of the dataset, which changes with its path."""
    return identity | {"images": str(identity.get("images")).partition(" ")[2]}


def _encode_part(
    images: grain.MapDataset, encode: Encode, flip: bool, batch_size: int
) -> NumpyArray:
    """Encode images; returns [count, versions, h, w, c] float32."""
    batches = images.batch(batch_size).to_iter_dataset(
        read_options=grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    )
    encoded = []
    for batch in batches:
        pixels = batch["image"]
        count = len(pixels)
        # All batches have the same shape, so only one program is compiled.
        pixels = np.pad(pixels, ((0, batch_size - count), (0, 0), (0, 0), (0, 0)))
        versions = [pixels, pixels[:, :, ::-1]] if flip else [pixels]
        latents = [np.asarray(encode(to_unit_range(x)), np.float32)[:count] for x in versions]
        encoded.append(np.stack(latents, axis=1))
    return np.concatenate(encoded)


def _shard_path(folder: PathLike, index: int, shards: int) -> pathlib.Path:
    return pathlib.Path(folder) / f"latents-{index:05d}-of-{shards:05d}.array_record"


def _write_shard(path: pathlib.Path, latents: NumpyArray) -> None:
    with replacing(path) as partial:
        # One latent per group, since they are read in random order. Latents hardly compress.
        writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
        for latent in latents:
            writer.write(latent.tobytes())
        writer.close()


def _read_shards(folder: PathLike, stamp: Stamp) -> grain.MapDataset:
    shards, shape = stamp["shards"], tuple(stamp["record"])
    paths = [str(_shard_path(folder, index, shards)) for index in range(shards)]
    source = grain.sources.ArrayRecordDataSource(paths)
    return grain.MapDataset.source(source).map(
        lambda record: np.frombuffer(record, np.float32).reshape(shape)
    )


def _write_stamp(folder: pathlib.Path, stamp: Stamp) -> None:
    write_text(folder / "stamp.json", json.dumps(stamp, indent=2) + "\n")


def _standard_deviation(latents: Iterable[NumpyArray]) -> float:
    """Return the standard deviation of all values of a dataset, float64."""
    count, total, squares = 0, 0.0, 0.0
    for latent in latents:
        values = latent.astype(np.float64)
        count, total, squares = (
            count + values.size,
            total + values.sum(),
            squares + (values**2).sum(),
        )
    return math.sqrt(squares / count - (total / count) ** 2)
