"""The forward process q, its posterior, what a network predicts, and the losses."""

import jax.numpy as jnp
import numpy as np

from sparsejax.diffusion.noise_schedules import NoiseSchedule
from sparsejax.types import Array, ArrayLike, NumpyArray


def append_axes(values: Array, ndim: int) -> Array:
    """Return values [batch] with axes appended, so that they broadcast over `ndim` dimensions."""
    return values.reshape(values.shape + (1,) * (ndim - values.ndim))


def at(values: ArrayLike, t: Array, ndim: int) -> Array:
    """Return `values[t]` with axes appended, so that [batch] broadcasts over `ndim` dimensions."""
    return append_axes(jnp.asarray(values)[t], ndim)


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


def target_of(schedule: NoiseSchedule, predicts: str, x_0: Array, noise: Array, t: Array) -> Array:
    """Return what a network is trained to predict at x_t.

    Args:
      schedule: NoiseSchedule.
      predicts: one of `schema.PREDICTIONS`: `eps`, the noise (Ho et al. 2020); `x_0`, the data;
        `v`, sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans and Ho 2022, section 4).
      x_0: data, [batch, ...].
      noise: standard normal noise, the shape of `x_0`.
      t: diffusion steps, [batch] int, 0..T-1.

    Returns:
      The shape of `x_0`.
    """
    if predicts == "eps":
        return noise
    if predicts == "x_0":
        return x_0
    signal = at(schedule.sqrt_alphas_cumprod, t, x_0.ndim)
    return signal * noise - at(schedule.sqrt_one_minus_alphas_cumprod, t, x_0.ndim) * x_0


def eps_of(schedule: NoiseSchedule, predicts: str, x_t: Array, output: Array, t: Array) -> Array:
    """Return the noise that follows from a network's output at x_t.

    eps = sqrt(alpha_bar) v + sqrt(1 - alpha_bar) x_t, or (x_t - sqrt(alpha_bar) x_0) / sqrt(1 -
    alpha_bar).

    Args:
      schedule: NoiseSchedule.
      predicts: see `target_of`.
      x_t: noisy data, [batch, ...].
      output: the network's output, the shape of `x_t`.
      t: diffusion steps, [batch] int, 0..T-1.

    Returns:
      The shape of `x_t`.
    """
    if predicts == "eps":
        return output
    signal = at(schedule.sqrt_alphas_cumprod, t, x_t.ndim)
    sigma = at(schedule.sqrt_one_minus_alphas_cumprod, t, x_t.ndim)
    return signal * output + sigma * x_t if predicts == "v" else (x_t - signal * output) / sigma


def min_snr_weights(schedule: NoiseSchedule, predicts: str, largest: float) -> NumpyArray:
    """Return the weights of the loss at each t that bound the signal-to-noise ratio, [T] float32.

    Min-SNR-gamma (Hang et al. 2023, section 3.4): the error of x_0 is weighted with min(SNR,
    gamma), SNR = alpha_bar / (1 - alpha_bar). The error of eps is SNR times that of x_0, the error
    of v SNR + 1 times.

    Args:
      schedule: NoiseSchedule.
      predicts: see `target_of`.
      largest: gamma; 5 in the paper.
    """
    alpha_bar = np.asarray(schedule.alphas_cumprod, np.float64)
    ratio = alpha_bar / (1 - alpha_bar)
    share = {"eps": ratio, "x_0": np.ones_like(ratio), "v": ratio + 1}[predicts]
    return (np.minimum(ratio, largest) / share).astype(np.float32)


def simple_loss(output: Array, target: Array) -> Array:
    """Return each example's mean squared error.

    L_simple of Ho et al. (2020), equation 14, where the target is the noise.

    Args:
      output: of the network, [batch, ...].
      target: what it should be (`target_of`), the shape of `output`.

    Returns:
      [batch] float32.
    """
    error = output.astype(jnp.float32) - target
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
