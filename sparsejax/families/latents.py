"""Latent Diffusion: a network denoises the latents of a frozen first stage."""

import contextlib
import functools
import pathlib

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from sparsejax import values
from sparsejax.data import images as data
from sparsejax.data import latents as cache
from sparsejax.data.builders import lacking, stamp
from sparsejax.data.latents import Encode
from sparsejax.data.stamps import Stamp, stamp_file, stamp_folder
from sparsejax.errors import ConfigError, require
from sparsejax.families.arguments import is_count, require_fact
from sparsejax.families.autoencoder import build_autoencoder
from sparsejax.families.denoising import NETWORKS, denoising_model
from sparsejax.families.family import Data, Facts, Family, Model
from sparsejax.families.images import (
    image_counts,
    labels_of,
    prepare_images,
    reference_images,
    reference_labels,
    shown_images,
)
from sparsejax.models import first_stage
from sparsejax.models.arguments import FREE_ARGUMENTS, comparable
from sparsejax.models.autoencoder import KLModel, VQModel
from sparsejax.models.pipelines import FirstStage
from sparsejax.parallel import on_local_devices, shard_batch
from sparsejax.types import Array, Batches, Frozen, Params

_ENCODED_AT_ONCE = 16  # images per device
_DECODED_AT_ONCE = 8
_PUBLISHED = "https://ommer-lab.com/files/latent-diffusion/vq-f4.zip"  # of CompVis' model zoo


def latents_model(config: ConfigDict, facts: Facts | None = None) -> Model:
    """Return the Model of a network on the latents of images.

    The first stage is a file, or the workdir of a finished run of the task `autoencoder`. If it is
    missing but `facts` describes its latents, the Model is built nonetheless; it samples latents
    when given `()` in place of what `frozen` returns.

    Args:
      config: resolved ConfigDict; `first_stage.path` names the first stage, and `kind` and `model`
        describe the architecture of a file that doesn't. See `denoising_model`.
      facts: `latent_size`, height and width of the latents; `first_stage`, the digest of the
        first stage's weights; `latent_scale`, the factor that the network's latents are multiplied
        by, known once they are encoded. By default the first stage is read, and the scale unknown.

    Returns:
      Model; samples are [count, height, width, channels] float32 in [-1, 1].

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    settings = config.task
    stage = functools.cache(lambda: _load_first_stage(config.first_stage))
    size = facts["latent_size"] if facts else latent_size(config)

    def frozen() -> Frozen:
        network, params = stage()
        if facts is None or facts.get("latent_scale") is None:
            raise ConfigError(
                f"config.task.latent_scale is {settings.latent_scale}, and no complete latent "
                "cache of this first stage was found to read it from; accepted: the number used in "
                "training, or the folder of the cache as config.task.latents_dir"
            )
        ours = first_stage.digest(params)
        if facts["first_stage"] != ours:
            raise ConfigError(
                f"config.first_stage.path is {config.first_stage.path!r}, whose weights (digest "
                f"{ours}) aren't those of the training; accepted: the first stage of digest "
                f"{facts['first_stage']}"
            )
        fits = size * network.factor == settings.image_size
        accepted = f"{size * network.factor}, the size that the first stage decodes latents to"
        require(fits, "task.image_size", settings.image_size, accepted)
        return {"params": params, "scale": np.float32(facts["latent_scale"])}

    def decode(frozen: Frozen, z: Array) -> Array:
        """Decode scaled latents [count, h, w, c], a few at a time: decoders need much memory."""
        if not frozen:
            return z
        network, _ = stage()

        def decode_one(z: Array) -> Array:
            return network.apply({"params": frozen["params"]}, z[None], method="decode")[0]

        return jax.lax.map(decode_one, z / frozen["scale"], batch_size=_DECODED_AT_ONCE)

    def pipeline_stage() -> FirstStage:
        network, params = stage()
        return FirstStage(network, params, float(frozen()["scale"]), settings.image_size)

    return denoising_model(
        config, size, "latent", decode=decode, frozen=frozen, first_stage=pipeline_stage
    )


def latents_data(config: ConfigDict) -> Data:
    """Return the Data of the latents of the images of `config.task`.

    The training images are encoded once, by `prepare`, and cached (`data.latents`).

    Args:
      config: resolved ConfigDict; see `latents_model`.

    Returns:
      Data; the reference is images [count, height, width, channels] float32 in [-1, 1].

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    settings = config.task
    size = _find_size(config)
    path, network = find_first_stage(config.first_stage)
    scale = settings.latent_scale
    beside = path.parent / "latents" / f"{data.label(settings)}-{settings.image_size}"
    folder = pathlib.Path(settings.latents_dir or beside)
    load = functools.cache(lambda: _load(path, network))

    def identity() -> Stamp:
        return {
            "first_stage": first_stage.digest(load()),
            "images": data.describe(settings, settings.split),
            "flip": settings.flip,
        }

    def prepare() -> None:
        images = prepare_images(config)
        if jax.process_index() == 0:
            cache.encode_dataset(
                folder,
                images,
                _make_encode(network, load()),
                (size, size, network.z_channels),
                identity(),
                flip=settings.flip,
                batch_size=_ENCODED_AT_ONCE * jax.local_device_count(),
                content=stamp(settings),
            )
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"encoded {folder}")

    def batches(start: int, stop: int) -> Batches:
        latents, std = cache.open_latents(folder, identity(), stamp(settings))
        labels = labels_of(config, settings.split).get("label")
        return cache.latent_batches(
            latents, scale or 1 / std, config.batch_size, config.seed, start, stop, labels
        )

    def facts() -> Facts:
        digest = first_stage.digest(load())
        known = {"latent_size": size, "first_stage": digest, "latent_scale": scale}
        if scale is None:
            with contextlib.suppress(ConfigError):  # the latents aren't encoded yet, or are gone
                known["latent_scale"] = 1 / cache.read_std(folder, digest)
        return known

    return Data(
        batches=batches,
        reference=lambda: reference_images(settings),
        label=data.label(settings),
        split=settings.reference_split,
        facts=facts,
        prepare=prepare,
        sizes=lambda: image_counts(config),
        labelled=lambda: data.load_images(settings, settings.labelled_split or settings.split),
        reference_labels=reference_labels(config),
        shown=shown_images(config),
    )


def _find_size(config: ConfigDict) -> int:
    """Return the size of latents; if there is none, say what the images lack too, at once."""
    try:
        return latent_size(config)
    except ConfigError as error:
        raise ConfigError(". ".join(filter(None, [str(error), lacking(config.task)]))) from error


def latent_size(config: ConfigDict) -> int:
    """Return height and width of the latents, after checking the model against the first stage.

    Raises:
      ConfigError: there is no first stage, or it doesn't fit the images or the model.
    """
    _, network = find_first_stage(config.first_stage)
    size, factor = config.task.image_size, network.factor
    fits = size >= factor and size % factor == 0
    require(fits, "task.image_size", size, f"multiples of {factor}, the first stage's factor")
    channels = config.model.in_channels
    accepted = f"{network.z_channels}, of the first stage's latents"
    require(channels == network.z_channels, "model.in_channels", channels, accepted)
    return size // factor


def stamp_first_stage(settings: ConfigDict) -> Stamp:
    """Return the stamp (`data.stamps`) of the first stage that `config.first_stage` names.

    Raises:
      ConfigError: there is no first stage.
    """
    path = _first_stage_file(settings)
    if path.is_dir():
        return stamp_folder(path, [file for file in path.rglob("*") if file.is_file()])
    return stamp_file(path)


def find_first_stage(settings: ConfigDict) -> tuple[pathlib.Path, VQModel | KLModel]:
    """Return the file of a first stage and the model that runs it.

    Args:
      settings: `config.first_stage`.

    Returns:
      Tuple of the path and a VQModel or KLModel.

    Raises:
      ConfigError: there is no such file, or its architecture differs from `first_stage.model`.
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
        require(agrees, f"first_stage.model.{key}", value, f"{theirs!r}, as in {path}")
    return path, model


def _first_stage_file(settings: ConfigDict) -> pathlib.Path:
    """Return the path of a first stage's file, or of a diffusers folder."""
    require(settings.path, "first_stage.path", settings.path, "a file, or the workdir of a run")
    path = pathlib.Path(settings.path)
    if (path / first_stage.FILE).exists():
        path = path / first_stage.FILE
    accepted = f"a file, a diffusers folder, or the workdir of a finished run ({first_stage.FILE})"
    if path.suffix == ".ckpt":
        accepted += (
            f"; the published VQ-f4 is model.ckpt in {_PUBLISHED}: unzip -p vq-f4.zip model.ckpt > "
            f"{path} (reading it needs pip install 'sparsejax[torch]')"
        )
    require(path.exists(), "first_stage.path", settings.path, accepted)
    return path


def _load_first_stage(settings: ConfigDict) -> tuple[VQModel | KLModel, Params]:
    """Return the first stage's network and parameters."""
    path, network = find_first_stage(settings)
    return network, _load(path, network)


def _load(path: pathlib.Path, model: VQModel | KLModel) -> Params:
    try:
        return first_stage.load_first_stage(path, model)
    except ValueError as error:
        raise ConfigError(f"config.first_stage.path is {str(path)!r}: {error}") from error


def _make_encode(model: VQModel | KLModel, params: Params) -> Encode:
    """Return `encode(images [batch, ...]) -> latents`, compiled, over this process's devices."""
    encode = on_local_devices(
        lambda params, images: model.apply({"params": params}, images, method="encode")
    )
    return lambda images: encode(params, shard_batch(images))


def _check_facts(config: ConfigDict, facts: Facts) -> None:
    size, digest = facts["latent_size"], facts["first_stage"]
    image_size = config.task.image_size
    accepted = f"divisors of {image_size} (config.task.image_size)"
    require_fact(is_count(size) and image_size % size == 0, "latent_size", size, accepted)
    require_fact(isinstance(digest, str) and digest, "first_stage", digest, "a digest")
    scale = facts.get("latent_scale")  # None if the cache of latents was missing
    fits = scale is None or (values.has_type(float, scale) and 1e-30 <= scale <= 1e30)
    require_fact(fits, "latent_scale", scale, "a number from 1e-30 to 1e30")


def _stamp(config: ConfigDict) -> dict[str, Stamp]:
    return stamp(config.task) | {"first_stage.path": stamp_first_stage(config.first_stage)}


FAMILY = Family(
    model=latents_model,
    data=latents_data,
    networks=NETWORKS,
    stamp=_stamp,
    facts=("latent_size", "first_stage"),
    check_facts=_check_facts,
)
