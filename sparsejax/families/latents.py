"""Latent Diffusion: the UNet denoises the latents of a frozen first stage."""

import functools
import pathlib

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from sparsejax.data import images as data
from sparsejax.data import latents as cache
from sparsejax.data.builders import stamp
from sparsejax.data.stamps import stamp_file, stamp_folder
from sparsejax.errors import ConfigError, require
from sparsejax.families.autoencoder import build_autoencoder
from sparsejax.families.denoising import denoising_task
from sparsejax.families.images import prepare_images, reference_images
from sparsejax.models import first_stage
from sparsejax.models.published import FREE_ARGUMENTS, comparable

_ENCODED_AT_ONCE = 16  # images on a device
_DECODED_AT_ONCE = 8


def latents_task(config):
    """Return the Task of a UNet on the latents of the images of `config.task`.

    The first stage is a file, or the workdir of a finished run of the task `autoencoder`. The
    training images are encoded once, by `prepare`, and cached (`data.latents`).

    Args:
      config: resolved ConfigDict; `first_stage.path` names the first stage, and for a file
        that doesn't say it itself, `kind` and `model` how it is built. See `denoising_task`.

    Returns:
      Task; samples and reference are [count, height, width, channels] float32 in [-1, 1].

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    settings = config.task
    path, model = find_first_stage(config.first_stage)
    size, factor = settings.image_size, model.factor
    fits = size >= factor and size % factor == 0
    require(fits, "task.image_size", size, f"multiples of {factor}, the first stage's factor")
    channels = config.model.in_channels
    accepted = f"{model.z_channels}, of the first stage's latents"
    require(channels == model.z_channels, "model.in_channels", channels, accepted)
    scale = settings.latent_scale
    beside = path.parent / "latents" / f"{data.label(settings)}-{size}"
    folder = pathlib.Path(settings.latents_dir or beside)
    load = functools.cache(lambda: _load(path, model))
    shape = (size // factor, size // factor, model.z_channels)

    def identity():
        return {
            "first_stage": first_stage.digest(load()),
            "images": data.describe(settings, settings.split),
            "flip": settings.flip,
        }

    def prepare():
        images = prepare_images(config)
        if jax.process_index() == 0:
            encode = _make_encode(model, load())
            cache.encode_dataset(
                folder,
                images,
                encode,
                shape,
                identity(),
                flip=settings.flip,
                batch_size=_ENCODED_AT_ONCE * jax.local_device_count(),
                content=stamp(settings),
            )
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"encoded {folder}")

    def batches(start, stop):
        latents, std = cache.open_latents(folder, identity(), stamp(settings))
        return cache.latent_batches(
            latents, scale or 1 / std, config.batch_size, config.seed, start, stop
        )

    def frozen():
        used = scale or 1 / cache.read_std(folder, first_stage.digest(load()))
        return {"params": load(), "scale": np.float32(used)}

    def decode(frozen, z):
        """Decode scaled latents [count, h, w, c], few at once: decoders need much memory."""

        def decode_one(z):
            return model.apply({"params": frozen["params"]}, z[None], method="decode")[0]

        return jax.lax.map(decode_one, z / frozen["scale"], batch_size=_DECODED_AT_ONCE)

    return denoising_task(
        config,
        size // factor,
        batches=batches,
        reference=lambda: reference_images(settings),
        labelled=lambda: data.load_images(settings, settings.split),
        decode=decode,
        frozen=frozen,
        prepare=prepare,
    )


def stamp_first_stage(settings):
    """Return the stamp (`data.stamps`) of the first stage that `config.first_stage` names.

    Raises:
      ConfigError: there is none.
    """
    path = _first_stage_file(settings)
    if path.is_dir():
        return stamp_folder(path, [file for file in path.rglob("*") if file.is_file()])
    return stamp_file(path)


def find_first_stage(settings):
    """Return the file of a first stage and the model that runs it.

    Args:
      settings: `config.first_stage`.

    Returns:
      Tuple of the path and a VQModel or KLModel.

    Raises:
      ConfigError: there is no such file, or it is built otherwise than `first_stage.model` says.
    """
    path = _first_stage_file(settings)
    try:
        described = first_stage.read_description(path)
    except ValueError as error:
        raise ConfigError(f"config.first_stage.path is {settings.path!r}: {error}") from error
    if described is None:
        key = "first_stage.kind", "first_stage.model"
        return path, build_autoencoder(settings.kind, settings.model, *key)
    kind, arguments = described
    given = settings.model.to_dict()
    arguments |= {key: given[key] for key in given if key in FREE_ARGUMENTS}
    model = build_autoencoder(kind, ConfigDict(arguments), f"first_stage.path ({path})", str(path))
    for key, value in given.items():
        theirs = getattr(model, key, None)
        agrees = key in FREE_ARGUMENTS or comparable(key, value) == comparable(key, theirs)
        require(agrees, f"first_stage.model.{key}", value, f"{theirs!r}, as {path} is built")
    return path, model


def _first_stage_file(settings):
    """Return the path of a first stage's file, or of diffusers' folder."""
    require(settings.path, "first_stage.path", settings.path, "a file, or the workdir of a run")
    path = pathlib.Path(settings.path)
    if (path / first_stage.FILE).exists():
        path = path / first_stage.FILE
    accepted = (
        f"a file, a folder of diffusers, or the workdir of a finished run ({first_stage.FILE})"
    )
    require(path.exists(), "first_stage.path", settings.path, accepted)
    return path


def _load(path, model):
    try:
        return first_stage.load_first_stage(path, model)
    except ValueError as error:
        raise ConfigError(f"config.first_stage.path is {str(path)!r}: {error}") from error


def _make_encode(model, params):
    """Return `encode(images [batch, ...]) -> latents`, compiled, over this process's devices."""
    devices = jax.local_devices()
    encode = jax.pmap(
        lambda params, x: model.apply({"params": params}, x, method="encode"),
        in_axes=(None, 0),
        devices=devices,
    )

    def over_devices(images):
        parts = images.reshape(len(devices), -1, *images.shape[1:])
        latents = np.asarray(encode(params, parts))
        return latents.reshape(-1, *latents.shape[2:])

    return over_devices
