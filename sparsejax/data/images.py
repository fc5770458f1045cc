"""Image datasets by name, and the input pipeline of training.

Functions take `config.task` and read from it dataset, source, url, columns, held_out, image_size,
padding, channels and data_dir.
"""

import concurrent.futures
import functools
import os

import grain
import jax
import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from sparsejax.data import decoding, files, hugging_face, publishers
from sparsejax.data.builders import SKETCHES, full_name, image_sets, open_builder
from sparsejax.data.splits import check_split
from sparsejax.errors import require
from sparsejax.rendering.pixels import to_unit_range
from sparsejax.seeds import check_seed
from sparsejax.types import Batches, Example, NumpyArray, Pictures

# Pillow decodes without holding the GIL; prefetched batches are held in memory.
_THREADS = max(2, min(8, os.cpu_count() or 2))


def open_images(settings: ConfigDict, split: str) -> grain.MapDataset:
    """Open a dataset for random access, preparing it on disk the first time.

    Images are decoded, cropped and resized when they are read (`decoding.decode`).

    Args:
      settings: `config.task`.
      split: as in tensorflow-datasets, such as train, validation or train[:12500].

    Returns:
      grain.MapDataset of `{"image": [size, size, channels] uint8, "label": int}`, with
      `len()`; label is 0 if the dataset has none.

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    is_image_set = settings.dataset not in SKETCHES
    require(is_image_set, "task.dataset", settings.dataset, ", ".join(image_sets()))
    size = settings.image_size
    require(1 <= size <= 65536, "task.image_size", size, "1 to 65536")
    border = settings.padding
    accepted = f"less than half of task.image_size ({size})"
    require(2 * border < size, "task.padding", border, accepted)
    builder = open_builder(settings)
    check_split(settings, split, builder)
    decoders = {"image": tfds.decode.SkipDecoding()}
    source = builder.as_data_source(split=split, decoders=decoders)
    channels = settings.channels or builder.info.features["image"].shape[-1]

    def example(record: Example) -> Example:
        image = decoding.decode(record["image"], size - 2 * border, channels)
        image = np.pad(image, ((border, border), (border, border), (0, 0)))
        return {"image": image, "label": int(record.get("label", 0))}

    return grain.MapDataset.source(source).map(example)


def load_images(settings: ConfigDict, split: str) -> tuple[Pictures, NumpyArray]:
    """Load a dataset into memory, once; raises what `open_images` raises.

    Args:
      settings: `config.task`.
      split: as in tensorflow-datasets, such as train, validation or train[:12500].

    Returns:
      Tuple of images [count, size, size, channels] uint8 and labels [count] int64.
    """
    return _load(ml_collections.FrozenConfigDict(settings), split, describe(settings, split))


def load_labels(settings: ConfigDict, split: str) -> NumpyArray:
    """Return the labels of a dataset in the order of its images; raises what `open_images` raises.

    Args:
      settings: `config.task`.
      split: as in tensorflow-datasets, such as train, validation or train[:12500].

    Returns:
      [count] int64; 0 if the dataset has none, -1 for an image without.
    """
    frozen = ml_collections.FrozenConfigDict(settings)
    return _load_labels(frozen, split, describe(settings, split))


@functools.cache
def _load_labels(settings: ConfigDict, split: str, description: str) -> NumpyArray:
    del description  # see `_load`
    builder = open_builder(settings)
    decoders = {"image": tfds.decode.SkipDecoding()}  # images are read, but not decoded
    source = builder.as_data_source(split=split, decoders=decoders)
    return np.array([int(record.get("label", 0)) for record in source], np.int64)


def number_of_classes(settings: ConfigDict) -> int:
    """Return how many classes the labels of training and reference split tell apart.

    It is 1 without labels.

    Args:
      settings: `config.task`.

    Raises:
      ConfigError: see `open_images`.
    """
    features = open_builder(settings).info.features
    known = getattr(features["label"], "num_classes", None) if "label" in features else 1
    splits = settings.split, settings.reference_split
    return known or 1 + max(int(load_labels(settings, split).max(initial=0)) for split in splits)


@functools.cache
def _load(settings: ConfigDict, split: str, description: str) -> tuple[Pictures, NumpyArray]:
    """Load; the description distinguishes contents of the same files."""
    del description
    dataset = open_images(settings, split)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        examples = list(pool.map(dataset.__getitem__, range(len(dataset))))
    images = np.stack([example["image"] for example in examples])
    return images, np.array([example["label"] for example in examples], np.int64)


def describe(settings: ConfigDict, split: str) -> str:
    """Describe exactly which pixels `open_images` returns, to store with results.

    Returns:
      The builder's full name and version (for `files` and `hf` with a hash of the content), split,
      crop and resize method, and the number of channels if images are converted.
    """
    size, channels = settings.image_size, settings.channels
    converted = f"x{channels}" if channels else ""
    inner = size - 2 * settings.padding
    padded = f", padded to {size}x{size}" if settings.padding else ""
    return f"{full_name(settings)} {split}, {decoding.METHOD} to {inner}x{inner}{converted}{padded}"


def label(settings: ConfigDict) -> str:
    """Return a short name for figures: that of the dataset, or of the source for one's own."""
    names = {"files": files.short_name, "hf": hugging_face.short_name}
    name = names.get(settings.dataset)
    return name(publishers.source(settings)) if name else settings.dataset


def image_batches(
    dataset: Pictures | grain.MapDataset,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    flip: bool = False,
    labels: NumpyArray | None = None,
) -> Batches:
    """Iterate over the training batches of steps `start` to `stop - 1`, for this process.

    A batch is a function of the step: shuffling and flips are seeded, epochs follow each other
    seamlessly, and access is random, so a resumed run sees the same batches as an uninterrupted
    one. Process p of P gets the p-th part of each global batch.

    Args:
      dataset: [count, height, width, channels] uint8, or the result of `open_images`; both give
        the same order.
      batch_size: global batch size, a multiple of the number of processes.
      seed: Python int.
      start: first step.
      stop: step to stop before.
      flip: mirror images left-right with probability 1/2, drawn anew in each epoch.
      labels: [count] int, to go with the images.

    Returns:
      Iterator of `{"image": [batch_size / P, height, width, channels] float32 in [-1, 1]}`, with
      `label` [batch_size / P] if there are labels; prefetched by threads.
    """
    seed = check_seed(seed)
    processes, process = jax.process_count(), jax.process_index()
    in_memory = isinstance(dataset, np.ndarray)

    def read(index: int) -> Example:
        example = {"image": dataset[index] if in_memory else dataset[index]["image"]}
        return example if labels is None else example | {"label": labels[index]}

    def scaled(example: Example) -> Example:
        return example | {"image": to_unit_range(example["image"])}

    examples = grain.MapDataset.range(len(dataset)).seed(seed).shuffle().repeat().map(read)
    if flip:
        examples = examples.random_map(_flip)
    batches = examples.map(scaled).batch(batch_size // processes)
    steps = slice(start * processes + process, stop * processes, processes)
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=8)
    return iter(batches.slice(steps).to_iter_dataset(read_options=options))


def _flip(example: Example, rng: np.random.Generator) -> Example:
    return example | {"image": example["image"][:, ::-1]} if rng.random() < 0.5 else example
