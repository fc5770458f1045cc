"""Diffusion on images: the Latent Diffusion UNet, eps-prediction, grids of pictures."""

import functools

import jax
import jax.numpy as jnp

from sparsejax.configuration import require
from sparsejax.data import images as data
from sparsejax.diffusion import process, samplers, schedules
from sparsejax.models.flops import layer_flops
from sparsejax.models.unet import UNet
from sparsejax.tasks.grid import image_grid
from sparsejax.tasks.task import Task

SAMPLERS = ("ddim", "ddpm")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def images_task(config):
    """Return the Task of a UNet on the images of `config.task.dataset`.

    Args:
      config: resolved ConfigDict; `model` holds arguments of `models.unet.UNet`, its dtype by
        name.

    Returns:
      Task; samples and reference are [count, height, width, channels] float32 in [-1, 1].

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    name, size = config.task.dataset, config.task.image_size
    require(name in data.DATASETS, "task.dataset", name, ", ".join(data.DATASETS))
    _check_model(config.model, size)
    _check_sampling(config)
    schedule = _noise_schedule(config.diffusion)
    model = UNet(**(config.model.to_dict() | {"dtype": DTYPES[config.model.dtype]}))
    shape = (size, size, config.model.in_channels)
    example_inputs = (
        jax.ShapeDtypeStruct((1, *shape), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    )

    @functools.cache
    def load():
        images, _ = data.load_images(name, config.task.data_dir or None)
        accepted = f"{images.shape[1]}, the size of {name}"
        require(images.shape[1:3] == (size, size), "task.image_size", size, accepted)
        channels = config.model.in_channels
        accepted = f"{images.shape[3]}, the channels of {name}"
        require(images.shape[3] == channels, "model.in_channels", channels, accepted)
        return images

    load()

    def init(key):
        inputs = (jnp.zeros(x.shape, x.dtype) for x in example_inputs)
        return model.init(key, *inputs)["params"]

    def apply(params, x, t, *, train=False, rngs=None):
        return model.apply({"params": params}, x, t, train=train, rngs=rngs)

    return Task(
        init=init,
        apply=apply,
        loss=functools.partial(_loss, schedule),
        sample=functools.partial(_sample, schedule, shape, config.sample),
        render=image_grid,
        batches=lambda start, stop: data.image_batches(
            load(), config.batch_size, config.seed, start, stop
        ),
        reference=lambda: data.to_unit_range(load()),
        layer_flops=lambda params: layer_flops(model, params, *example_inputs),
        example_inputs=example_inputs,
    )


def _loss(schedule, apply, params, batch, keys, train):
    """Mean eps loss; t and noise are drawn per example, from the example's own key."""
    x_0 = batch["image"]

    def draw(key):
        t_key, noise_key = jax.random.split(key)
        t = jax.random.randint(t_key, (), 0, schedule.steps)
        return t, jax.random.normal(noise_key, x_0.shape[1:])

    t, noise = jax.vmap(draw)(keys)
    x_t = process.q_sample(schedule, x_0, t, noise)
    rngs = {"dropout": jax.random.fold_in(keys[0], 0)}
    eps = apply(params, x_t, t, train=train, rngs=rngs)
    return jnp.mean(process.eps_loss(eps, noise))


def _sample(schedule, shape, settings, apply, params, key, count, start=0):
    indices = start + jnp.arange(count)
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
    x_T, noise = samplers.example_noise(keys, shape)  # noqa: N806
    denoise = functools.partial(apply, params)
    if settings.sampler == "ddpm":
        return samplers.ddpm_sample(denoise, schedule, x_T, noise, clip=settings.clip)
    return samplers.ddim_sample(
        denoise, schedule, x_T, noise, steps=settings.steps, eta=settings.eta, clip=settings.clip
    )


def _noise_schedule(diffusion):
    accepted = ", ".join(schedules.BETAS)
    known = diffusion.schedule in schedules.BETAS
    require(known, "diffusion.schedule", diffusion.schedule, accepted)
    require(diffusion.steps >= 2, "diffusion.steps", diffusion.steps, "2 or more")
    limits = {k: diffusion[k] for k in ("start", "end") if diffusion[k] is not None}
    if diffusion.schedule == "cosine":
        require(not limits, "diffusion.start/end", limits, "none with the cosine schedule")
    for key, beta in limits.items():
        require(0 < beta < 1, f"diffusion.{key}", beta, "(0, 1)")
    return schedules.noise_schedule(schedules.BETAS[diffusion.schedule](diffusion.steps, **limits))


def _check_model(model, image_size):
    fields = set(UNet.__dataclass_fields__) - {"parent", "name"}
    for key in model:
        require(key in fields, f"model.{key}", model[key], f"no such key; {', '.join(fields)}")
    halvings = len(model.channel_mult) - 1
    multiple = 2**halvings
    require(
        image_size >= multiple and image_size % multiple == 0,
        "task.image_size",
        image_size,
        f"multiples of {multiple}: model.channel_mult halves images {halvings} times",
    )
    width, groups = model.model_channels, model.norm_groups
    require(groups >= 1, "model.norm_groups", groups, "1 or more")
    is_multiple = width > 0 and width % groups == 0
    require(is_multiple, "model.model_channels", width, f"multiples of {groups} (norm_groups)")
    head = model.num_head_channels
    for level, mult in enumerate(model.channel_mult):
        attends = 2**level in model.attention_resolutions or level == halvings
        divides = head >= 1 and mult * width % head == 0
        accepted = f"divisors of {mult * width}, the channels at resolution {2**level}"
        require(divides or not attends, "model.num_head_channels", head, accepted)
    require(model.dtype in DTYPES, "model.dtype", model.dtype, ", ".join(DTYPES))
    same = model.in_channels == model.out_channels
    accepted = f"{model.in_channels}, as model.in_channels"
    require(same, "model.out_channels", model.out_channels, accepted)


def _check_sampling(config):
    sampler, steps = config.sample.sampler, config.sample.steps
    require(sampler in SAMPLERS, "sample.sampler", sampler, ", ".join(SAMPLERS))
    total = config.diffusion.steps
    require(1 <= steps <= total, "sample.steps", steps, f"1 to {total} (diffusion.steps)")
    require(0 <= config.sample.eta <= 1, "sample.eta", config.sample.eta, "[0, 1]")
