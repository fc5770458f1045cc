"""Samplers that follow an ordinary differential equation dx / dt = f(x, t) to t = 0.

Rectified flow's f is the velocity; EDM's, with t = sigma, is (x - D(x; sigma)) / sigma (Karras et
al. 2022, equations 1 and 3). Each sampler is a single compiled loop.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from sparsejax.diffusion.samplers import Noise
from sparsejax.types import Array, ArrayLike

Derivative: TypeAlias = Callable[[Array, Array], Array]  # f(x [batch, ...], t [batch])

# Noise levels at which churn adds noise, and its standard deviation: Karras et al. (2022), table 5.
_CHURN_MIN, _CHURN_MAX, _CHURN_NOISE = 0.05, 50.0, 1.003


def euler_sample(derivative: Derivative, x: Array, times: ArrayLike) -> Array:
    """Follow the equation by Euler's steps, one evaluation each.

    Args:
      derivative: `derivative(x, t)`.
      x: start, [batch, ...].
      times: decreasing times, [steps + 1].

    Returns:
      x at the last time.
    """
    times = jnp.asarray(times, x.dtype)

    def step(i: Array, x: Array) -> Array:
        return (x + (times[i + 1] - times[i]) * _at(derivative, x, times[i])).astype(x.dtype)

    return jax.lax.fori_loop(0, len(times) - 1, step, x)


def heun_sample(
    derivative: Derivative,
    x: Array,
    times: ArrayLike,
    noise: Noise | None = None,
    *,
    churn: float = 0.0,
) -> Array:
    """Follow the equation by Heun's steps, two evaluations each; the last one is Euler's.

    Karras et al. (2022), algorithm 1; with churn, algorithm 2: each step begins with a little new
    noise, which makes up for errors of earlier ones.

    Args:
      derivative: `derivative(x, t)`.
      x: start, [batch, ...].
      times: decreasing times, [steps + 1].
      noise: `noise(i) -> [batch, ...]`, standard normal noise of the i-th step; read with churn
        alone.
      churn: S_churn, for EDM only: 0 is deterministic.

    Returns:
      x at the last time.
    """
    times = jnp.asarray(times, x.dtype)
    steps = len(times) - 1
    gamma = min(churn / steps, math.sqrt(2) - 1)

    def step(i: Array, x: Array) -> Array:
        t, t_next = times[i], times[i + 1]
        if gamma and noise is not None:
            raised = t * (1 + gamma * ((t >= _CHURN_MIN) & (t <= _CHURN_MAX)))
            x = x + jnp.sqrt(jnp.maximum(raised**2 - t**2, 0)) * _CHURN_NOISE * noise(i)
            t = raised
        slope = _at(derivative, x, t)
        euler = x + (t_next - t) * slope

        def correct(euler: Array) -> Array:
            return x + (t_next - t) * (slope + _at(derivative, euler, t_next)) / 2

        is_last = i == steps - 1  # where the equation may be singular
        return jax.lax.cond(is_last, lambda euler: euler, correct, euler).astype(x.dtype)

    return jax.lax.fori_loop(0, steps, step, x.astype(times.dtype))


def _at(derivative: Derivative, x: Array, t: Array) -> Array:
    return derivative(x, jnp.full(x.shape[:1], t))
