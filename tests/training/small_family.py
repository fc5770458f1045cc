"""A fully connected network in place of the UNet; the module that `tiny.small_config` imports."""

import jax.numpy as jnp
from flax import linen as nn

from sparsejax.families import Family, images, register_family
from sparsejax.models.flops import layer_flops
from sparsejax.models.unet import UNet

WIDTH = 32


class Small(nn.Module):
    """Two hidden layers."""

    @nn.compact
    def __call__(self, x, t):
        """Return the noise in x [batch, height, width, channels] at diffusion steps t [batch]."""
        waves = jnp.sin(t[:, None] / 2.0 ** jnp.arange(12))
        h = jnp.concatenate([x.reshape(len(x), -1), waves], axis=1)
        for _ in range(2):
            h = nn.silu(nn.Dense(WIDTH)(h))
        return nn.Dense(x[0].size)(h).reshape(x.shape)


def small_model(config, facts=None):
    """The Model of images with another network; `config.model` is checked as ever, and not used."""
    network, size = Small(), config.task.image_size
    inputs = jnp.zeros((1, size, size, 1)), jnp.zeros(1, jnp.int32)

    def apply(params, x, t, *, train=False, rngs=None):
        return network.apply({"params": params}, x, t)

    return images.images_model(config, facts)._replace(
        network=network,
        init=lambda key: network.init(key, *inputs)["params"],
        apply=apply,
        layer_flops=lambda params: layer_flops(network, params, *inputs),
    )


register_family(
    "small", Family(small_model, images.images_data, {None: UNet}, stamp=images.FAMILY.stamp)
)
