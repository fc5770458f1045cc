"""Cache the latents of a dataset on disk, encoded once.

A cache is a folder of array_record shards with a `stamp.json` that states the first stage, the
images and how they were prepared. Shards are written atomically, so an interrupted encoding
resumes where it stopped; a cache whose stamp differs raises ConfigError. Damaged shards, and all
shards if the stamp is damaged or missing, are encoded again with a warning. One process encodes a
cache at a time; others wait for it. With flips, both versions
of an image are encoded, because the latent of a mirrored image isn't the mirrored latent.
"""

import json
import logging
import math
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import TypeAlias

import grain
import jax
import numpy as np
from rich.progress import track

from sparsejax import checksums, lease
from sparsejax.atomic import set_aside, write_text
from sparsejax.data.shards import PATTERN, Latents, is_whole, shard_path, split, write_shard
from sparsejax.data.stamps import Stamp
from sparsejax.errors import ConfigError
from sparsejax.rendering.pixels import to_unit_range
from sparsejax.seeds import check_seed
from sparsejax.storage import read_object, require_writable
from sparsejax.types import ArrayLike, Batch, Batches, NumpyArray, PathLike, Shape, Value

Encode: TypeAlias = Callable[[NumpyArray], ArrayLike]

logger = logging.getLogger(__name__)

_FORMAT, _STAMP = 1, "stamp.json"


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
      ConfigError: the folder holds a cache with another identity, or the standard deviation of the
        latents is no positive number.
    """
    folder, parts = pathlib.Path(folder), split(len(images))
    wanted = {
        "format": _FORMAT,
        "identity": identity,
        "record": [2 if flip else 1, *shape],
        "shards": len(parts),
    }
    paths = [shard_path(folder, index, len(parts)) for index in range(len(parts))]
    sizes = [len(part) for part in parts]
    if _is_finished(folder, wanted, content) and all(map(is_whole, paths, sizes)):
        return
    require_writable(folder, "the folder of latents (config.task.latents_dir)")
    with lease.hold_in_turn(folder):
        stamp = _begin(folder, wanted, content)
        whole = list(map(is_whole, paths, sizes))
        _warn_of_damaged(path for path, fine in zip(paths, whole, strict=True) if not fine)
        missing = [index for index, fine in enumerate(whole) if not fine]
        for index in track(missing, description=f"encoding {len(images):,} images"):
            part = images[parts[index].start : parts[index].stop]
            write_shard(paths[index], _encode_part(part, encode, flip, batch_size))
        if "std" not in stamp:
            std = _standard_deviation(_read_shards(folder, stamp))
            _require_std(f"the latents of {str(folder)!r}", std)
            _write_stamp(folder, stamp | {"std": std})


def _is_finished(folder: pathlib.Path, wanted: Stamp, content: Stamp | None) -> bool:
    stamp, _ = _find_stamp(folder, wanted, content)
    return stamp is not None and "std" in stamp


def _begin(folder: pathlib.Path, wanted: Stamp, content: Stamp | None) -> Stamp:
    """Return the stamp of a cache to be completed, which is written if there is none.

    Shards without a stamp are removed: nothing says what images and first stage they are of.
    """
    for partial in folder.glob("partial-*"):  # of killed processes: the lease is ours
        partial.unlink(missing_ok=True)
    stamp, problem = _find_stamp(folder, wanted, content)
    if stamp is not None:
        return stamp
    shards = sorted(folder.glob(PATTERN))
    if shards or problem:
        logger.warning(
            "latent cache %s: %s %s; all images are encoded again",
            *(folder, _STAMP, problem or "is missing"),
        )
    for path in shards:
        set_aside(path) if path.is_dir() else path.unlink()
    if os.path.lexists(folder / _STAMP):
        set_aside(folder / _STAMP)
    stamp = wanted | ({"content": content} if content else {})
    _write_stamp(folder, stamp)
    return stamp


def _warn_of_damaged(paths: Iterable[pathlib.Path]) -> None:
    names = [path.name for path in paths if os.path.lexists(path)]
    if names:
        listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        logger.warning("%d damaged shards of latents are encoded again: %s", len(names), listed)


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
    stamp, problem = _find_stamp(folder, {"format": _FORMAT, "identity": identity}, content)
    if not stamp or "std" not in stamp:
        found = "not finished" if stamp else f"damaged: {_STAMP} {problem}" if problem else "absent"
        raise ConfigError(f"latent cache {str(folder)!r} is {found}")
    return _read_shards(pathlib.Path(folder), stamp), stamp["std"]


def read_std(folder: PathLike, first_stage: str) -> float:
    """Return the standard deviation of a cache's latents, for any images.

    Args:
      folder: folder of the cache.
      first_stage: value of `first_stage` that its identity must have.

    Raises:
      ConfigError: there is no finished cache for this first stage.
    """
    stamp = _read_stamp(folder)[0] or {}
    is_finished = "std" in stamp and stamp.get("format") == _FORMAT
    if not is_finished or stamp["identity"].get("first_stage") != first_stage:
        raise ConfigError(
            f"latent cache {str(folder)!r} is absent, not finished or of another first stage: "
            "the scale of latents can't be read; name the cache in config.task.latents_dir, or "
            "set config.task.latent_scale to the number that training used"
        )
    return stamp["std"]


def latent_batches(
    latents: grain.MapDataset,
    scale: float,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    labels: NumpyArray | None = None,
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
      labels: [count] int, to go with the latents.

    Returns:
      Iterator of `{"latent": [batch_size / P, h, w, c] float32}`, with `label` [batch_size / P] if
      there are labels.
    """
    processes, process = jax.process_count(), jax.process_index()

    def with_label(index: int, versions: NumpyArray) -> Batch:
        example = {"latent": versions}
        # The index goes on counting in later epochs.
        return example if labels is None else example | {"label": labels[index % len(labels)]}

    def choose(example: Batch, rng: np.random.Generator) -> Batch:
        versions = example["latent"]
        return example | {"latent": scale * versions[rng.integers(len(versions))]}

    dataset = (
        latents.map_with_index(with_label)
        .seed(check_seed(seed))
        .shuffle()
        .repeat()
        .random_map(choose)
    )
    dataset = dataset.batch(batch_size // processes)
    steps = slice(start * processes + process, stop * processes, processes)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    return iter(dataset.slice(steps).to_iter_dataset(read_options=options))


def _read_stamp(folder: PathLike) -> tuple[Stamp | None, str]:
    """Return a cache's stamp, or None and what is wrong with it, if it is there.

    Raises:
      ConfigError: its standard deviation is none.
    """
    path = pathlib.Path(folder) / _STAMP
    if not os.path.lexists(path):
        return None, ""
    try:
        stamp = read_object(path)
    except ConfigError as error:
        return None, str(error).removeprefix(f"{path} ")
    if isinstance(stamp.get("identity"), dict) and stamp.get("format") != _FORMAT:
        return stamp, ""  # of another version: it is stale, not damaged
    if "std" in stamp:
        _require_std(str(path), stamp["std"])
    written = stamp.pop("checksum", None)  # older versions wrote none
    if written not in (None, checksums.of_json(stamp)):
        return None, "has another checksum than was written"
    record, shards = stamp.get("record"), stamp.get("shards")
    fits = isinstance(record, list) and len(record) > 1 and all(map(_is_count, record))
    if not isinstance(stamp.get("identity"), dict) or not fits or not _is_count(shards):
        return None, "says nothing of first stage, images or shape"
    return stamp, ""


def _is_count(value: Value) -> bool:
    return type(value) is int and 0 < value < 2**31


def _require_std(name: str, std: Value) -> None:
    """Raise ConfigError unless latents can be divided by a standard deviation."""
    if type(std) not in (int, float) or not 1e-30 <= std <= 1e30:
        raise ConfigError(
            f"{name}: the standard deviation (std) is {std!r}; accepted: a number from 1e-30 to "
            "1e30; delete the cache to encode it again"
        )


def _find_stamp(folder: PathLike, wanted: Stamp, content: Stamp | None) -> tuple[Stamp | None, str]:
    """Return a cache's stamp, or None and what is wrong with it, if it is there.

    Raises:
      ConfigError: the cache is another one than `wanted`.
    """
    stamp, problem = _read_stamp(folder)
    if stamp is None:
        return None, problem
    _check_identity(folder, stamp, wanted["identity"], content)
    differing = [key for key in wanted if key != "identity" and stamp[key] != wanted[key]]
    if differing:
        key = differing[0]
        return None, f"says {key} {stamp[key]!r} instead of {wanted[key]!r}"
    return stamp, ""


def _check_identity(folder: PathLike, stamp: Stamp, identity: Stamp, content: Stamp | None) -> None:
    """Raise ConfigError if a cache is of another first stage or of other images."""
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


def _read_shards(folder: PathLike, stamp: Stamp) -> grain.MapDataset:
    paths = [shard_path(folder, index, stamp["shards"]) for index in range(stamp["shards"])]
    return grain.MapDataset.source(Latents(paths, tuple(stamp["record"])))


def _write_stamp(folder: pathlib.Path, stamp: Stamp) -> None:
    stamp = stamp | {"checksum": checksums.of_json(stamp)}
    write_text(folder / _STAMP, json.dumps(stamp, indent=2) + "\n")


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
    variance = squares / count - (total / count) ** 2
    return math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.nan
