"""Rectified flow: straight paths between data and noise, and the velocity along them.

Liu et al. (2022), in the direction of Esser et al. (2024): data at t = 0, noise at t = 1.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from sparsejax.diffusion.process import append_axes
from sparsejax.types import Array, PRNGKey

# Networks are given TIME_SCALE * t: their embeddings tell 0 to 1000 apart, as diffusers does.
TIME_SCALE = 1000.0

Draw: TypeAlias = Callable[[PRNGKey], Array]  # of the time of one example


def uniform_time(key: PRNGKey) -> Array:
    """Draw t, uniform in [0, 1): Liu et al. (2022), equation 1."""
    return jax.random.uniform(key)


def logit_normal_time(key: PRNGKey, mean: float = 0.0, std: float = 1.0) -> Array:
    """Draw t whose logit log(t / (1 - t)) is normal: more often in the middle of the path.

    Esser et al. (2024), section 3.1, where mean 0 and standard deviation 1 did best.
    """
    return jax.nn.sigmoid(mean + std * jax.random.normal(key))


TIMES: dict[str, Draw] = {"logit_normal": logit_normal_time, "uniform": uniform_time}


def interpolate(x_0: Array, noise: Array, t: Array) -> Array:
    """Return x_t = (1 - t) x_0 + t noise: Liu et al. (2022), equation 1, with their ends swapped.

    Args:
      x_0: data, [batch, ...].
      noise: standard normal noise, the shape of `x_0`.
      t: times in [0, 1], [batch].
    """
    t = append_axes(t, x_0.ndim)
    return (1 - t) * x_0 + t * noise


def velocity(x_0: Array, noise: Array) -> Array:
    """Return dx_t / dt = noise - x_0, what a network is trained to predict at x_t.

    Liu et al. (2022), equation 1.

    Args:
      x_0: data, [batch, ...].
      noise: standard normal noise, the shape of `x_0`.
    """
    return noise - x_0


def predict_x_0(x_t: Array, output: Array, t: Array) -> Array:
    """Return x_0 = x_t - t v from the velocity v.

    Args:
      x_t: noisy data, [batch, ...].
      output: v, as a network predicts it at x_t; the shape of `x_t`.
      t: times in [0, 1], [batch].
    """
    return x_t - append_axes(t, x_t.ndim) * output


def times(steps: int) -> Array:
    """Return the times of `steps` even steps from noise to data, [steps + 1] float32."""
    return jnp.linspace(1, 0, steps + 1)
