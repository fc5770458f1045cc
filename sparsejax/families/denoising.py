"""Diffusion with a UNet or a transformer.

Shared by pixels and latents: `images_model` and `latents_model` supply what is denoised.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sparsejax.diffusion import samplers
from sparsejax.errors import require
from sparsejax.families import dit, unet
from sparsejax.families.arguments import build_module
from sparsejax.families.backbone import Backbone, Network
from sparsejax.families.conditioning import (
    check_conditioning,
    conditioned,
    drop_labels,
    grid_columns,
    guided_passes,
    guided_span,
    sampled_labels,
)
from sparsejax.families.family import Model
from sparsejax.families.objectives import Objective, objective_of
from sparsejax.models.flops import layer_flops
from sparsejax.models.published import check_params
from sparsejax.network_values import kind_of
from sparsejax.rendering.images import image_grid
from sparsejax.types import (
    Apply,
    Array,
    Batch,
    Frozen,
    Keys,
    Params,
    PathLike,
    PRNGKey,
    PyTree,
    Value,
)

BACKBONES = {"unet": unet.BACKBONE, "dit": dit.BACKBONE}
NETWORKS = {kind: backbone.module for kind, backbone in BACKBONES.items()}


def denoising_model(
    config: ConfigDict,
    size: int,
    example: str,
    *,
    decode: Callable[[Frozen, Array], Array] | None = None,
    **others: Value,
) -> Model:
    """Return the Model of a network that denoises examples [size, size, model.in_channels].

    Args:
      config: resolved ConfigDict; `task.kind` names the backbone, and `model` holds the arguments
        of its network, its dtype by name.
      size: height and width of what is denoised.
      example: name of the examples in a batch.
      decode: `decode(frozen, examples) -> images`; None if examples are images.
      **others: further fields of the Model.

    Returns:
      Model; samples are images [count, height, width, channels] float32 in [-1, 1].

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    backbone = _backbone(config.task)
    network = build_module(backbone.module, config.model, "model")
    backbone.check(network, config, size)
    classes = network.classes
    check_conditioning(config, classes)
    objective = objective_of(config)
    span = guided_span(config.sample, objective.network_time)
    shape = (size, size, network.in_channels)
    example_inputs = _example_inputs(network, size)

    def init(key: PRNGKey) -> Params:
        inputs = (jnp.zeros(x.shape, x.dtype) for x in example_inputs)
        return network.init(key, *inputs)["params"]

    def sample(
        apply: Apply,
        params: Params,
        frozen: Frozen,
        key: PRNGKey,
        count: int,
        start: int | Array = 0,
    ) -> Array:
        indices = start + jnp.arange(count)
        predict = conditioned(config.sample, span, classes, apply, params, indices)
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
        drawn = objective.sample(predict, *samplers.example_noise(keys, shape))
        return decode(frozen, drawn) if decode else drawn

    def load(path: PathLike) -> Params:
        params = backbone.load(path, network)
        check_params(params, jax.eval_shape(init, jax.random.key(0)), path, backbone.to_names)
        return params

    return Model(
        network=network,
        init=init,
        apply=functools.partial(_apply, network),
        loss=functools.partial(denoising_loss, objective, example, network),
        sample=sample,
        render=functools.partial(image_grid, columns=grid_columns(config.sample, classes)),
        layer_flops=lambda params: layer_flops(network, params, *example_inputs),
        passes_per_sample=guided_passes(objective.visited, span),
        labels=functools.partial(sampled_labels, config.sample, classes) if classes else None,
        schedule=objective.schedule,
        load=load,
        warnings=objective.warnings,
        units=functools.partial(backbone.units, network),
        widths=backbone.widths(network),
        narrow=functools.partial(backbone.narrow, network),
        **others,
    )


def _backbone(settings: ConfigDict) -> Backbone:
    kind = kind_of(BACKBONES, settings.kind)
    require(kind in BACKBONES, "task.kind", kind, ", ".join(BACKBONES))
    return BACKBONES[kind]


def _example_inputs(network: Network, size: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Return the shapes of x, t and, if the network takes them, labels, of one example."""
    x = jax.ShapeDtypeStruct((1, size, size, network.in_channels), jnp.float32)
    t = labels = jax.ShapeDtypeStruct((1,), jnp.int32)
    return (x, t, labels) if network.classes else (x, t)


def _apply(
    network: Network,
    params: Params,
    x: Array,
    t: Array,
    labels: Array | None = None,
    *,
    train: bool = False,
    rngs: dict[str, Keys] | None = None,
) -> PyTree:
    keys = rngs and rngs["dropout"]
    return network.apply({"params": params}, x, t, labels, train=train, dropout_keys=keys)


def denoising_loss(
    objective: Objective,
    example: str,
    network: Network,
    apply: Apply,
    params: Params,
    batch: Batch,
    keys: Keys,
    train: bool,
) -> Array:
    """Return the mean loss; t, noise and dropout come from each example's own key.

    Args:
      objective: Objective.
      example: name of the examples in a batch.
      network: of it, only `classes` and `label_dropout` are read.
      apply: `apply(params, x, t, train=..., rngs=...) -> output`; labels come after t, if the
        network takes any.
      params: what `apply` takes.
      batch: dictionary of the examples x_0 [batch, height, width, channels], and of `label` [batch]
        int for a network that takes labels.
      keys: a PRNG key per example [batch].
      train: whether dropout is on.
    """
    x_0 = batch[example]

    def draw(key: PRNGKey) -> tuple[Array, Array, PRNGKey]:
        t_key, noise_key, dropout_key = jax.random.split(key, 3)
        return objective.draw(t_key), jax.random.normal(noise_key, x_0.shape[1:]), dropout_key

    t, noise, dropout_keys = jax.vmap(draw)(keys)
    x, network_t = objective.inputs(x_0, noise, t)
    inputs: tuple[Array, ...] = (x, network_t)
    if network.classes:
        labels, rate = batch["label"], network.label_dropout if train else 0.0
        inputs += (drop_labels(labels, keys, rate, network.classes),)
    output = apply(params, *inputs, train=train, rngs={"dropout": dropout_keys})
    return jnp.mean(objective.loss(output, x_0, noise, t))
