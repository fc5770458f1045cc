"""Diffusion on the pixels of small images."""

from sparsejax.data import images as data
from sparsejax.errors import require
from sparsejax.families.arguments import check_batch_size
from sparsejax.families.denoising import denoising_task

_IN_MEMORY = 2**30  # bytes of pixels; larger sets are decoded while training


def images_task(config):
    """Return the Task of a UNet on the images of `config.task`.

    Args:
      config: resolved ConfigDict; see `denoising_task`.

    Returns:
      Task; samples and reference are [count, height, width, channels] float32 in [-1, 1].

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    settings = config.task
    check_channels(config)
    return denoising_task(
        config,
        settings.image_size,
        batches=lambda start, stop: training_batches(config, start, stop),
        reference=lambda: reference_images(settings),
        labelled=lambda: data.load_images(settings, settings.split),
        prepare=lambda: prepare_images(config),
    )


def check_channels(config):
    """Refuse a model whose input doesn't have the channels of the images.

    Opens the training split, so that missing data is refused here too.
    """
    image = data.open_images(config.task, config.task.split)[0]["image"]
    accepted = f"{image.shape[2]}, the channels of {data.label(config.task)}"
    channels = config.model.in_channels
    require(channels == image.shape[2], "model.in_channels", channels, accepted)


def prepare_images(config):
    """Open the training images, preparing them on disk the first time.

    Opens `reference_split` too, which is read only when training is over.

    Returns:
      As `data.images.open_images`.

    Raises:
      ConfigError: a split can't be opened, or `batch_size` is larger than that of training.
    """
    settings = config.task
    data.open_images(settings, settings.reference_split)
    images = data.open_images(settings, settings.split)
    check_batch_size(config, len(images))
    return images


def training_batches(config, start, stop):
    """Return the iterator over the training images of steps `start` to `stop - 1`."""
    settings = config.task
    images = data.open_images(settings, settings.split)
    if len(images) * images[0]["image"].nbytes <= _IN_MEMORY:
        images, _ = data.load_images(settings, settings.split)
    return data.image_batches(
        images, config.batch_size, config.seed, start, stop, flip=settings.flip
    )


def reference_images(settings):
    """Return the images of `reference_split`, [count, height, width, channels] in [-1, 1]."""
    return data.to_unit_range(data.load_images(settings, settings.reference_split)[0])
