"""Samplers: DDPM, DDIM and DPM-Solver++, each a single compiled loop.

A sampler takes `denoise(x, t) -> eps` with x [batch, ...] and t [batch] int32, the start x_T, and
`noise(i) -> [batch, ...]`, the noise of its i-th iteration. `example_noise` draws it from one key
per example, so that samples depend neither on the batch size nor on the number of devices (up to
rounding); tests replay recorded noise.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from sparsejax.diffusion import process
from sparsejax.diffusion.noise_schedules import (
    NoiseSchedule,
    ddim_schedule,
    dpm_solver_schedule,
)
from sparsejax.types import Array, ArrayLike, Keys, Shape

Denoise: TypeAlias = Callable[[Array, Array], Array]  # (x, t) -> eps
Noise: TypeAlias = Callable[[Array], Array]  # of the number of the iteration


def example_noise(keys: Keys, shape: Shape) -> tuple[Array, Noise]:
    """Return a standard normal x_T and the `noise` function of a sampler, from one key per example.

    Args:
      keys: PRNG keys, [batch].
      shape: shape of one example, without the batch dimension.

    Returns:
      Tuple `(x_T [batch, *shape] float32, noise)`.

    Examples:
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> x_T, noise = example_noise(keys, (8, 8, 1))
      >>> x_T.shape, noise(0).shape
      ((2, 8, 8, 1), (2, 8, 8, 1))
    """

    def draw(i: ArrayLike) -> Array:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), shape))(keys)

    return draw(0), lambda i: draw(i + 1)


def ddim_step(
    x: Array,
    eps: Array,
    noise: Array,
    alpha: ArrayLike,
    alpha_prev: ArrayLike,
    sigma: ArrayLike,
    clip: float | None = None,
) -> tuple[Array, Array]:
    """Take one DDIM step (Song et al. 2021, equation 12).

    Args:
      x: x_t, [batch, ...].
      eps: predicted noise, the shape of `x`.
      noise: standard normal noise, the shape of `x`.
      alpha: alpha_bar at this step, scalar.
      alpha_prev: alpha_bar at the next sampling step (smaller t), scalar.
      sigma: standard deviation of the noise, scalar.
      clip: if given, the predicted x_0 is clipped to [-clip, clip] and eps recomputed from it.

    Returns:
      Tuple of x at the next step and the predicted x_0.
    """
    x_0 = (x - jnp.sqrt(1 - alpha) * eps) / jnp.sqrt(alpha)
    if clip is not None:
        x_0 = jnp.clip(x_0, -clip, clip)
        eps = (x - jnp.sqrt(alpha) * x_0) / jnp.sqrt(1 - alpha)
    direction = jnp.sqrt(jnp.maximum(1 - alpha_prev - sigma**2, 0)) * eps
    return jnp.sqrt(alpha_prev) * x_0 + direction + sigma * noise, x_0


def ddim_sample(
    denoise: Denoise,
    schedule: NoiseSchedule,
    x_T: Array,  # noqa: N803
    noise: Noise,
    *,
    steps: int,
    eta: float = 0.0,
    clip: float | None = None,
    last_alpha: float | None = None,
    spacing: str = "leading",
) -> Array:
    """Sample with DDIM.

    Args:
      denoise: `denoise(x, t) -> eps`.
      schedule: NoiseSchedule.
      x_T: standard normal start, [batch, ...].
      noise: `noise(i) -> [batch, ...]`; i = 0 is the noisiest step.
      steps: number of sampling steps, 1 to T.
      eta: 0 is deterministic, 1 as noisy as DDPM.
      clip: if given, predicted x_0 is clipped to [-clip, clip] (data in pixels).
      last_alpha: see `noise_schedules.ddim_schedule`.
      spacing: likewise.

    Returns:
      Samples, the shape of `x_T`.

    Raises:
      ValueError: `steps` is not in 1..T.
    """
    chosen = ddim_schedule(schedule, steps, eta, last_alpha, spacing)
    constants = jax.tree.map(jnp.asarray, chosen)
    constants = jax.tree.map(lambda x: x[::-1], constants)

    def step(i: Array, x: Array) -> Array:
        t, alpha, alpha_prev, sigma = (c[i] for c in constants)
        eps = denoise(x, jnp.full(x.shape[:1], t))
        draw = noise(i) if eta else jnp.zeros_like(x)
        return ddim_step(x, eps, draw, alpha, alpha_prev, sigma, clip)[0].astype(x.dtype)

    return jax.lax.fori_loop(0, steps, step, x_T)


def dpm_solver_sample(
    denoise: Denoise,
    schedule: NoiseSchedule,
    x_T: Array,  # noqa: N803
    *,
    steps: int,
    clip: float | None = None,
    last_alpha: float | None = None,
    spacing: str = "leading",
) -> Array:
    """Sample with DPM-Solver++(2M), a multistep solver of second order for few steps.

    Lu et al. (2022), "DPM-Solver++", algorithm 2. It is deterministic, and takes one pass per step
    as DDIM does.

    Args:
      denoise: `denoise(x, t) -> eps`.
      schedule: NoiseSchedule.
      x_T: standard normal start, [batch, ...].
      steps: number of sampling steps, 1 to T.
      clip: if given, predicted x_0 is clipped to [-clip, clip] (data in pixels).
      last_alpha: see `noise_schedules.ddim_schedule`.
      spacing: likewise.

    Returns:
      Samples, the shape of `x_T`.

    Raises:
      ValueError: `steps` is not in 1..T.
    """
    chosen = dpm_solver_schedule(schedule, steps, last_alpha, spacing)
    constants = jax.tree.map(jnp.asarray, chosen)

    def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        x, x_0_before = carry
        t, alpha, sigma, keep, move, extrapolate = (c[i] for c in constants)
        eps = denoise(x, jnp.full(x.shape[:1], t))
        x_0 = (x - sigma * eps) / alpha
        if clip is not None:
            x_0 = jnp.clip(x_0, -clip, clip)
        middle = x_0 + extrapolate * (x_0 - x_0_before)
        return (keep * x + move * middle).astype(x.dtype), x_0.astype(x.dtype)

    return jax.lax.fori_loop(0, steps, step, (x_T, jnp.zeros_like(x_T)))[0]


def ddpm_sample(
    denoise: Denoise,
    schedule: NoiseSchedule,
    x_T: Array,  # noqa: N803
    noise: Noise,
    *,
    noise_weight: float = 1.0,
    clip: float | None = None,
) -> Array:
    """Sample with DDPM's ancestral sampler: all T diffusion steps.

    Ho et al. (2020), algorithm 2, with the posterior variance.

    Args:
      denoise: `denoise(x, t) -> eps`.
      schedule: NoiseSchedule.
      x_T: standard normal start, [batch, ...].
      noise: `noise(i) -> [batch, ...]`; i = 0 is t = T - 1.
      noise_weight: factor on the posterior's standard deviation.
      clip: if given, predicted x_0 is clipped to [-clip, clip] (data in pixels).

    Returns:
      Samples, the shape of `x_T`.
    """
    last = schedule.steps - 1

    def step(i: Array, x: Array) -> Array:
        t = jnp.full(x.shape[:1], last - i)
        eps = denoise(x, t)
        if clip is None:
            mean = process.posterior_mean_of_eps(schedule, x, t, eps)
        else:
            x_0 = jnp.clip(process.predict_x_0(schedule, x, t, eps), -clip, clip)
            mean, _, _ = process.q_posterior(schedule, x_0, x, t)
        variance = process.at(schedule.posterior_variance, t, x.ndim)
        sigma = noise_weight * jnp.sqrt(variance) * (i < last)
        return (mean + sigma * noise(i)).astype(x.dtype)

    return jax.lax.fori_loop(0, last + 1, step, x_T)
