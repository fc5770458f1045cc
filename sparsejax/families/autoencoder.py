"""The first stage: an autoencoder trained to reconstruct images."""

import functools
import pathlib
from typing import NoReturn

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sparsejax.data import images as data
from sparsejax.data.builders import stamp
from sparsejax.errors import ConfigError, require
from sparsejax.families.arguments import build_module, check_widths
from sparsejax.families.family import Data, Facts, Family, Model
from sparsejax.families.images import images_data
from sparsejax.models.autoencoder import KLModel, VQModel
from sparsejax.models.first_stage import FILE, KINDS, load_first_stage, save_first_stage
from sparsejax.models.flops import layer_flops
from sparsejax.network_values import kind_of
from sparsejax.rendering.images import image_grid
from sparsejax.rendering.pixels import to_unit_range
from sparsejax.types import Apply, Array, Batch, Frozen, Keys, Params, PRNGKey, PyTree

_RECONSTRUCTED_AT_ONCE = 8  # images per device


def autoencoder_model(config: ConfigDict, facts: Facts | None = None) -> Model:
    """Return the Model of a first stage.

    The loss is the mean |x - reconstruction| plus `task.regulariser` times the model's codebook or
    KL loss; `models.autoencoder` lists the further terms of published first stages. Samples are
    reconstructions of the images in `reference_split` (the Data's `inputs`).

    Args:
      config: resolved ConfigDict; `task.kind` names the model, `model` holds its arguments.
      facts: ignored.

    Returns:
      Model; samples are [count, height, width, channels] float32 in [-1, 1].

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    del facts
    settings = config.task
    kind = kind_of(KINDS, settings.kind)
    network = build_autoencoder(kind, config.model, "task.kind", "model")
    weight = settings.regulariser
    size, factor = settings.image_size, network.factor
    fits = size >= factor and size % factor == 0
    require(fits, "task.image_size", size, f"multiples of {factor}")
    method = config.sparsity.method
    require(method == "dense", "sparsity.method", method, "dense: only the UNet is sparsified")
    latent_shape = (size // factor, size // factor, network.z_channels)

    def loss(apply: Apply, params: Params, batch: Batch, keys: Keys, train: bool) -> Array:
        x = batch["image"]
        noise = jax.vmap(lambda key: jax.random.normal(key, latent_shape))(keys)
        reconstruction, regulariser = apply(params, x, noise, train=train)
        return jnp.mean(jnp.abs(reconstruction - x)) + weight * regulariser

    def sample(
        apply: Apply,
        params: Params,
        frozen: Frozen,
        key: PRNGKey,
        count: int,
        start: int | Array = 0,
    ) -> Array:
        del key
        indices = (start + jnp.arange(count)) % len(frozen)

        def reconstruct(index: Array) -> Array:
            return apply(params, to_unit_range(frozen[index])[None])[0][0]

        return jax.lax.map(reconstruct, indices, batch_size=_RECONSTRUCTED_AT_ONCE)

    def frozen() -> NoReturn:
        raise ConfigError(
            "config.task.name is 'autoencoder': its samples are reconstructions of images, not "
            "made from noise; accepted: images, latents, strokes"
        )

    example = jax.ShapeDtypeStruct((1, size, size, network.in_channels), jnp.float32)
    return Model(
        network=network,
        init=lambda key: network.init(key, jnp.zeros(example.shape))["params"],
        apply=functools.partial(_apply, network),
        loss=loss,
        sample=sample,
        frozen=frozen,
        render=image_grid,
        layer_flops=lambda params: layer_flops(network, params, example),
        passes_per_sample=1,
        load=lambda path: load_first_stage(path, network),
        export=lambda params, folder: save_first_stage(
            pathlib.Path(folder) / FILE, params, kind, config.model.to_dict()
        ),
        closing_files=(FILE,),
    )


def _apply(
    network: VQModel | KLModel,
    params: Params,
    x: Array,
    noise: Array | None = None,
    *,
    train: bool = False,
    rngs: dict[str, Keys] | None = None,
) -> PyTree:
    del train, rngs
    return network.apply({"params": params}, x, noise)


def autoencoder_data(config: ConfigDict) -> Data:
    """Return the Data of `images_data`, with the reference images as inputs to reconstruct."""
    settings = config.task
    return images_data(config)._replace(
        inputs=lambda: jnp.asarray(data.load_images(settings, settings.reference_split)[0]),
        held_out=None,  # samples are reconstructions of the same images
        training=None,
    )


def build_autoencoder(
    kind: str, arguments: ConfigDict, kind_key: str, key: str
) -> VQModel | KLModel:
    """Return the VQModel or KLModel that a config describes, after checking its sizes.

    Args:
      kind: `vq` or `kl`.
      arguments: ConfigDict of its attributes.
      kind_key: config key of `kind`, for messages.
      key: config key of `arguments`, for messages.

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    require(kind in KINDS, kind_key, kind, ", ".join(KINDS))
    model = build_module(KINDS[kind], arguments, key)
    check_widths(key, "channels", model.channels, model.channel_mult)
    groups = model.norm_groups
    accepted = f"multiples of {groups} (norm_groups)"
    require(model.channels % groups == 0, f"{key}.channels", model.channels, accepted)
    return model


FAMILY = Family(
    model=autoencoder_model,
    data=autoencoder_data,
    networks=KINDS,
    stamp=lambda config: stamp(config.task),
)
