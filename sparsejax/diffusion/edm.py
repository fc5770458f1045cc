"""EDM: noise levels in place of diffusion steps, and a preconditioned network.

Karras et al. (2022), "Elucidating the Design Space of Diffusion-Based Generative Models". x = x_0 +
sigma n; a denoiser D(x; sigma) predicts x_0 by way of a network F, whose input and output have unit
variance at every noise level.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.diffusion.noise_schedules import karras_sigmas
from sparsejax.types import Array, NumpyArray, PRNGKey

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
P_MEAN, P_STD = -1.2, 1.2  # of ln sigma in training


class Preconditioning(NamedTuple):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise); fields have the shape of sigma."""

    c_skip: Array
    c_out: Array
    c_in: Array
    c_noise: Array


def precondition(sigma: Array, sigma_data: float) -> Preconditioning:
    """Return the factors at noise levels: Karras et al. (2022), table 1.

    Args:
      sigma: noise levels.
      sigma_data: standard deviation of the data; 0.5 in the paper.
    """
    total = sigma**2 + sigma_data**2
    return Preconditioning(
        c_skip=sigma_data**2 / total,
        c_out=sigma * sigma_data / jnp.sqrt(total),
        c_in=1 / jnp.sqrt(total),
        c_noise=jnp.log(sigma) / 4,
    )


def draw_sigma(key: PRNGKey) -> Array:
    """Draw a noise level of training: ln sigma is normal (Karras et al. 2022, table 1)."""
    return jnp.exp(P_MEAN + P_STD * jax.random.normal(key))


def target_of(x_0: Array, noise: Array, sigma: Array, sigma_data: float) -> Array:
    """Return what F is trained to predict: (x_0 - c_skip x) / c_out (equation 8).

    The weight of the loss, 1 / c_out^2, makes the mean squared error of F the whole loss.

    Args:
      x_0: data, [batch, ...].
      noise: standard normal noise, the shape of `x_0`.
      sigma: noise levels, [batch, 1, ...].
      sigma_data: see `precondition`.
    """
    factors = precondition(sigma, sigma_data)
    return (x_0 - factors.c_skip * (x_0 + sigma * noise)) / factors.c_out


def sigmas(steps: int) -> NumpyArray:
    """Return the noise levels of `steps` sampling steps, from the largest to 0, [steps + 1]."""
    return np.append(karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX), 0.0)
