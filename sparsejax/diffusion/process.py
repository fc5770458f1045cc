"""The forward process q, its posterior, and the eps-prediction loss."""

import jax.numpy as jnp

from sparsejax.diffusion.noise_schedules import NoiseSchedule
from sparsejax.types import Array, ArrayLike


def at(values: ArrayLike, t: Array, ndim: int) -> Array:
    """Return `values[t]` with axes appended, so that [batch] broadcasts over `ndim` dimensions."""
    looked_up = jnp.asarray(values)[t]
    return looked_up.reshape(looked_up.shape + (1,) * (ndim - looked_up.ndim))


def q_sample(schedule: NoiseSchedule, x_0: Array, t: Array, noise: Array) -> Array:
    """Draw x_t ~ q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I).

    Ho et al. (2020), equation 4.

    Args:
      schedule: NoiseSchedule.
      x_0: data, [batch, ...].
      t: diffusion steps, [batch] int, 0..T-1.
      noise: standard normal noise, the shape of `x_0`.

    Returns:
      x_t, the shape of `x_0`.
    """
    signal = at(schedule.sqrt_alphas_cumprod, t, x_0.ndim) * x_0
    return signal + at(schedule.sqrt_one_minus_alphas_cumprod, t, x_0.ndim) * noise


def predict_x_0(schedule: NoiseSchedule, x_t: Array, t: Array, eps: Array) -> Array:
    """Return x_0 = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t).

    Args:
      schedule: NoiseSchedule.
      x_t: noisy data, [batch, ...].
      t: diffusion steps, [batch] int, 0..T-1.
      eps: noise, the shape of `x_t`.

    Returns:
      x_0, the shape of `x_t`.
    """
    scaled = at(schedule.sqrt_recip_alphas_cumprod, t, x_t.ndim) * x_t
    return scaled - at(schedule.sqrt_recipm1_alphas_cumprod, t, x_t.ndim) * eps


def q_posterior(
    schedule: NoiseSchedule, x_0: Array, x_t: Array, t: Array
) -> tuple[Array, Array, Array]:
    """Return mean, variance, clipped log variance of q(x_{t-1} | x_t, x_0).

    Ho et al. (2020), equations 6 and 7.

    Args:
      schedule: NoiseSchedule.
      x_0: data, [batch, ...].
      x_t: noisy data, [batch, ...].
      t: diffusion steps, [batch] int, 0..T-1.

    Returns:
      Tuple of the mean [batch, ...] and two arrays [batch, 1, ...].
    """
    mean = (
        at(schedule.posterior_mean_coef1, t, x_t.ndim) * x_0
        + at(schedule.posterior_mean_coef2, t, x_t.ndim) * x_t
    )
    variance = at(schedule.posterior_variance, t, x_t.ndim)
    return mean, variance, at(schedule.posterior_log_variance_clipped, t, x_t.ndim)


def posterior_mean_of_eps(schedule: NoiseSchedule, x_t: Array, t: Array, eps: Array) -> Array:
    """Return the mean of q(x_{t-1} | x_t, x_0) from the noise instead of x_0.

    (x_t - beta / sqrt(1 - alpha_bar) eps) / sqrt(alpha): Ho et al. (2020), algorithm 2. It doesn't
    divide by alpha_bar, which may be close to zero at the last t.

    Args:
      schedule: NoiseSchedule.
      x_t: noisy data, [batch, ...].
      t: diffusion steps, [batch] int, 0..T-1.
      eps: noise, the shape of `x_t`.

    Returns:
      The shape of `x_t`.
    """
    weights = schedule.betas / schedule.sqrt_one_minus_alphas_cumprod
    scale = 1 / jnp.sqrt(1 - schedule.betas)
    return at(scale, t, x_t.ndim) * (x_t - at(weights, t, x_t.ndim) * eps)


def eps_loss(eps: Array, noise: Array) -> Array:
    """Return each example's mean squared error between predicted and true noise.

    L_simple of Ho et al. (2020), equation 14.

    Args:
      eps: predicted noise, [batch, ...].
      noise: the noise that was added, the shape of `eps`.

    Returns:
      [batch] float32.
    """
    error = eps.astype(jnp.float32) - noise
    return jnp.mean(error**2, axis=tuple(range(1, error.ndim)))


def sequence_eps_loss(eps: Array, noise: Array, lengths: Array) -> Array:
    """Return each sequence's squared error of predicted noise, averaged over its own points.

    Args:
      eps: predicted noise, [batch, length, features].
      noise: the noise that was added, the shape of `eps`.
      lengths: [batch] int; points beyond are ignored.

    Returns:
      [batch] float32.
    """
    per_point = jnp.mean((eps.astype(jnp.float32) - noise) ** 2, axis=-1)
    valid = jnp.arange(eps.shape[1]) < lengths[:, None]
    return jnp.sum(jnp.where(valid, per_point, 0), axis=1) / lengths
