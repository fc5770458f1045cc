"""Diffusion on the pixels of small images."""

from collections.abc import Callable

import grain
import numpy as np
from ml_collections import ConfigDict

from sparsejax.data import images as data
from sparsejax.data.builders import open_builder, stamp
from sparsejax.data.splits import is_held_out, spread_over
from sparsejax.errors import require
from sparsejax.families.arguments import check_batch_size
from sparsejax.families.conditioning import check_classes, classes_of, in_turn
from sparsejax.families.denoising import NETWORKS, denoising_model
from sparsejax.families.family import Data, Facts, Family, Model
from sparsejax.rendering.pixels import to_unit_range
from sparsejax.types import Batch, Batches, NumpyArray

_IN_MEMORY = 2**30  # bytes of pixels; larger sets are decoded while training
_HELD_OUT_BATCH = 250


def images_model(config: ConfigDict, facts: Facts | None = None) -> Model:
    """Return the Model of a network on images of `config.task.image_size`.

    Args:
      config: resolved ConfigDict; see `denoising_model`.
      facts: ignored.

    Returns:
      Model; samples are [count, height, width, channels] float32 in [-1, 1].

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    del facts
    return denoising_model(config, config.task.image_size, "image")


def images_data(config: ConfigDict) -> Data:
    """Return the Data of the images of `config.task`.

    Args:
      config: resolved ConfigDict.

    Returns:
      Data; batches and reference are [count, height, width, channels] float32 in [-1, 1]. The
      held-out loss is measured if no image of `reference_split` is trained on.

    Raises:
      ConfigError: the images or a split are missing, or the images have another number of channels
        than the model.
    """
    settings = config.task
    check_channels(config)
    has_held_out = is_held_out(settings, open_builder(settings))

    def held_out() -> Batches:
        images, _ = data.load_images(settings, settings.reference_split)
        examples = {"image": to_unit_range(images)} | labels_of(config, settings.reference_split)
        for start in range(0, len(images), _HELD_OUT_BATCH):
            yield {key: x[start : start + _HELD_OUT_BATCH] for key, x in examples.items()}

    def training(most: int) -> NumpyArray:
        images, _ = data.load_images(settings, settings.split)
        return to_unit_range(images[spread_over(len(images), most)])

    return Data(
        batches=lambda start, stop: training_batches(config, start, stop),
        reference=lambda: reference_images(settings),
        label=data.label(settings),
        split=settings.reference_split,
        labelled=lambda: data.load_images(settings, settings.labelled_split or settings.split),
        prepare=lambda: prepare_images(config),
        sizes=lambda: image_counts(config),
        held_out=held_out if has_held_out else None,
        training=training if has_held_out else None,
        reference_labels=reference_labels(config),
        shown=shown_images(config),
    )


def check_channels(config: ConfigDict) -> None:
    """Check that the model's input has as many channels as the images.

    Opens the training split.

    Raises:
      ConfigError: the numbers differ, or the images are missing.
    """
    settings, channels = config.task, config.model.in_channels
    image = data.open_images(settings, settings.split)[0]["image"]
    accepted = f"{image.shape[2]}, the channels of {data.label(settings)}"
    accepted = f"{image.shape[2]}, as task.channels" if settings.channels else accepted
    require(channels == image.shape[2], "model.in_channels", channels, accepted)


def labels_of(config: ConfigDict, split: str) -> Batch:
    """Return the labels of a split for a network that takes them, `{"label": [count] int32}`.

    Images without a label, or with one that the network doesn't know, have that of none,
    `model.classes`. A network without classes gets {}.

    Args:
      config: resolved ConfigDict.
      split: as in tensorflow-datasets.
    """
    classes = classes_of(config)
    if not classes:
        return {}
    labels = data.load_labels(config.task, split)
    is_known = (labels >= 0) & (labels < classes)
    return {"label": np.where(is_known, labels, classes).astype(np.int32)}


def prepare_images(config: ConfigDict) -> grain.MapDataset:
    """Open the training images, preparing them on disk the first time.

    Opens `reference_split` and `labelled_split` too, which are read only when training is over.

    Returns:
      See `data.images.open_images`.

    Raises:
      ConfigError: a split can't be opened, `batch_size` exceeds the size of the training split, or
        the network knows another number of labels.
    """
    settings = config.task
    classes = classes_of(config)
    if classes:  # otherwise, labels needn't be read
        check_classes(classes, data.number_of_classes(settings), data.label(settings))
    for split in filter(None, (settings.reference_split, settings.labelled_split)):
        data.open_images(settings, split)
    images = data.open_images(settings, settings.split)
    check_batch_size(config, len(images))
    return images


def image_counts(config: ConfigDict) -> dict[str, int]:
    """Return the sizes of the training and the reference split; see `prepare_images`."""
    settings = config.task
    reference = data.open_images(settings, settings.reference_split)
    return {
        settings.split: len(prepare_images(config)),
        settings.reference_split: len(reference),
    }


def training_batches(config: ConfigDict, start: int, stop: int) -> Batches:
    """Return an iterator over the training batches of steps `start` to `stop - 1`."""
    settings = config.task
    images = data.open_images(settings, settings.split)
    if len(images) * images[0]["image"].nbytes <= _IN_MEMORY:
        images, _ = data.load_images(settings, settings.split)
    labels = labels_of(config, settings.split).get("label")
    return data.image_batches(
        images, config.batch_size, config.seed, start, stop, flip=settings.flip, labels=labels
    )


def reference_images(settings: ConfigDict) -> NumpyArray:
    """Return the images of `reference_split`, [count, height, width, channels] in [-1, 1]."""
    return to_unit_range(data.load_images(settings, settings.reference_split)[0])


def reference_labels(config: ConfigDict) -> Callable[[], NumpyArray] | None:
    """Return `Data.reference_labels` of images; None for a network without labels."""
    if not classes_of(config):
        return None
    return lambda: data.load_labels(config.task, config.task.reference_split)


def shown_images(config: ConfigDict) -> Callable[[int], NumpyArray] | None:
    """Return `shown(count) -> images of reference_split` with labels in turn, as samples have them.

    Returns None for a network without labels, or samples of one.
    """
    settings, classes = config.task, classes_of(config)
    if not classes or config.sample.label is not None:
        return None

    def shown(count: int) -> NumpyArray:
        labels = data.load_labels(settings, settings.reference_split)
        return reference_images(settings)[in_turn(labels, classes, count)]

    return shown


FAMILY = Family(
    model=images_model,
    data=images_data,
    networks=NETWORKS,
    stamp=lambda config: stamp(config.task),
)
