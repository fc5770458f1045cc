"""Image datasets by name, and the input pipeline that feeds them to training."""

import contextlib
import functools
import io

import grain
import jax
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jax.experimental import multihost_utils

from sparsejax.data.digits import Digits

DATASETS = {"digits": Digits}


@functools.cache
def load_images(name, data_dir=None):
    """Load a small image dataset into memory, preparing it on disk the first time.

    Args:
      name: a key of `DATASETS`.
      data_dir: where tensorflow-datasets keeps prepared data; its own default if None.

    Returns:
      Tuple of images [count, height, width, channels] uint8 and labels [count] int64.
    """
    builder = DATASETS[name](data_dir=data_dir, file_format="array_record")
    with _quiet():
        if jax.process_index() == 0:
            builder.download_and_prepare()
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"prepared {name}")
            builder = DATASETS[name](data_dir=data_dir, file_format="array_record")
        examples = list(builder.as_data_source(split="train"))
    images = np.stack([example["image"] for example in examples])
    return images, np.array([example["label"] for example in examples])


@contextlib.contextmanager
def _quiet():
    """Hold back tensorflow-datasets' notes on TensorFlow and OpenCV, which aren't needed."""
    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def to_unit_range(images):
    """Map uint8 pixels to float32 in [-1, 1]."""
    return images.astype(np.float32) / 127.5 - 1


def to_pixels(images):
    """Map floats in [-1, 1] to uint8 pixels, clipped and rounded."""
    return np.clip(np.round((np.asarray(images, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def image_batches(images, batch_size, seed, start, stop):
    """Iterate over the training batches of steps `start` to `stop - 1`, for this process.

    A batch is a function of the step: shuffling is seeded, epochs follow one another without
    a seam, and access is random, so a resumed run sees what an uninterrupted one would.
    Process p of P gets the p-th part of each global batch.

    Args:
      images: [count, height, width, channels] uint8.
      batch_size: global batch size, a multiple of the number of processes.
      seed: Python int.
      start: first step.
      stop: step to stop before.

    Returns:
      Iterator of `{"image": [batch_size / P, height, width, channels] float32 in [-1, 1]}`,
      prefetched in threads.
    """
    processes, process = jax.process_count(), jax.process_index()
    dataset = (
        grain.MapDataset.source(images)
        .seed(seed)
        .shuffle()
        .repeat()
        .map(lambda image: {"image": to_unit_range(image)})
        .batch(batch_size // processes)
    )
    steps = slice(start * processes + process, stop * processes, processes)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    return iter(dataset.slice(steps).to_iter_dataset(read_options=options))
