"""How examples are noised, what a network learns from them, and how it is sampled.

One objective for each `diffusion.process`; `denoising_model` knows them as an Objective.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sparsejax.diffusion import edm, flow, noise_schedules, ode, process, samplers
from sparsejax.diffusion.noise_schedules import NoiseSchedule
from sparsejax.diffusion.process import append_axes
from sparsejax.errors import require
from sparsejax.families.sampling import (
    check_sampling,
    passes_per_sample,
    run_sampler,
    visited_times,
    warnings_of,
)
from sparsejax.schema import BY_PATH
from sparsejax.types import Array, NumpyArray, PRNGKey

Predict: TypeAlias = Callable[[Array, Array], Array]  # network(x, its t [batch]) -> output

_ODE_SAMPLERS = {"euler": ode.euler_sample, "heun": ode.heun_sample}
_LITTLE = 1e-3  # sqrt(alpha_bar): an error of eps is multiplied by 1000
# Keys of `config.diffusion` that only one process reads, and that process.
_READ_BY = dict.fromkeys(("predicts", "min_snr", "start", "end"), "ddpm")
_READ_BY |= {"times": "flow", "sigma_data": "edm"}


class Objective(NamedTuple):
    """A diffusion process with its loss and its sampler.

    Attributes:
      draw: `draw(key) -> t`, the time of one example in training.
      inputs: `inputs(x_0, noise, t) -> (x, t)`, what the network is given at times t [batch].
      loss: `loss(output, x_0, noise, t) -> [batch]`.
      sample: `sample(predict, x_T, noise) -> samples` from standard normal noise x_T and `noise(i)`
        of the i-th step, by calls of `predict(x, t)`.
      network_time: `network_time(t)`, what the network is given for a time, which grows with it.
      visited: the network's times of all calls of `predict`.
      schedule: noise schedule of `ddpm`; None for the others.
      warnings: see `Model.warnings`.
    """

    draw: Callable[[PRNGKey], Array]
    inputs: Callable[[Array, Array, Array], tuple[Array, Array]]
    loss: Callable[[Array, Array, Array, Array], Array]
    sample: Callable[[Predict, Array, samplers.Noise], Array]
    network_time: Callable[[float], float]
    visited: NumpyArray
    schedule: NoiseSchedule | None = None
    warnings: tuple[str, ...] = ()


def objective_of(config: ConfigDict) -> Objective:
    """Return the Objective of a config.

    Args:
      config: resolved ConfigDict.

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    name = config.diffusion.process
    check_sampling(config)
    for key, reader in _READ_BY.items():
        value, default = config.diffusion[key], BY_PATH[f"diffusion.{key}"].default
        where = f"{default!r} with diffusion.process {name}"
        require(reader == name or value == default, f"diffusion.{key}", value, where)
    churn = config.sample.churn
    takes_churn = name == "edm" and config.sample.sampler == "heun"
    where = f"0.0 with diffusion.process {name} and {config.sample.sampler}"
    require(takes_churn or not churn, "sample.churn", churn, where)
    return _OBJECTIVES[name](config)


def _ddpm(config: ConfigDict) -> Objective:
    """Diffusion in T steps: Ho et al. (2020)."""
    settings, sampling = config.diffusion, config.sample
    schedule = noise_schedule_of(settings)
    predicts, visited = settings.predicts, visited_times(config, schedule)

    def draw(key: PRNGKey) -> Array:
        return jax.random.randint(key, (), 0, schedule.steps)

    def inputs(x_0: Array, noise: Array, t: Array) -> tuple[Array, Array]:
        return process.q_sample(schedule, x_0, t, noise), t

    def loss(output: Array, x_0: Array, noise: Array, t: Array) -> Array:
        target = process.target_of(schedule, predicts, x_0, noise, t)
        losses = process.simple_loss(output, target)
        if settings.min_snr is None:
            return losses
        weights = process.min_snr_weights(schedule, predicts, settings.min_snr)
        return jnp.asarray(weights)[t] * losses

    def sample(predict: Predict, x_T: Array, noise: samplers.Noise) -> Array:  # noqa: N803
        def denoise(x: Array, t: Array) -> Array:
            return process.eps_of(schedule, predicts, x, predict(x, t), t)

        ends_at_one = bool(sampling.set_alpha_to_one)
        return run_sampler(schedule, sampling, denoise, x_T, noise, ends_at_one=ends_at_one)

    return Objective(
        draw=draw,
        inputs=inputs,
        loss=loss,
        sample=sample,
        network_time=lambda t: t * schedule.steps,
        visited=visited,
        schedule=schedule,
        warnings=warnings_of(schedule) + _unbounded(config, schedule, visited),
    )


def _unbounded(config: ConfigDict, schedule: NoiseSchedule, visited: NumpyArray) -> tuple[str, ...]:
    """Return a warning if sampling divides by next to nothing, and nothing bounds the data."""
    sampling = config.sample
    if (
        config.diffusion.predicts != "eps"
        or sampling.sampler == "ddpm"
        or sampling.clip is not None
    ):
        return ()
    first = schedule.sqrt_alphas_cumprod[visited.max()]
    if first >= _LITTLE:
        return ()
    text = f"sampling begins where the data are weighted {first:.1g}, so errors of the network are "
    return (f"{text}multiplied; set config.sample.clip to bound the predicted data",)


def _flow(config: ConfigDict) -> Objective:
    """Rectified flow: Liu et al. (2022), Esser et al. (2024)."""
    sampling = config.sample

    def inputs(x_0: Array, noise: Array, t: Array) -> tuple[Array, Array]:
        return flow.interpolate(x_0, noise, t), flow.TIME_SCALE * t

    def loss(output: Array, x_0: Array, noise: Array, t: Array) -> Array:
        del t
        return process.simple_loss(output, flow.velocity(x_0, noise))

    def sample(predict: Predict, x_T: Array, noise: samplers.Noise) -> Array:  # noqa: N803
        del noise

        def velocity(x: Array, t: Array) -> Array:
            v = predict(x, flow.TIME_SCALE * t)
            if sampling.clip is None:
                return v
            x_0 = jnp.clip(flow.predict_x_0(x, v, t), -sampling.clip, sampling.clip)
            return (x - x_0) / append_axes(t, x.ndim)

        return _ODE_SAMPLERS[sampling.sampler](velocity, x_T, flow.times(sampling.steps))

    return Objective(
        draw=flow.TIMES[config.diffusion.times],
        inputs=inputs,
        loss=loss,
        sample=sample,
        network_time=lambda t: t * flow.TIME_SCALE,
        visited=flow.TIME_SCALE * _visited(np.asarray(flow.times(sampling.steps)), sampling),
    )


def _edm(config: ConfigDict) -> Objective:
    """Denoising at noise levels sigma, by a preconditioned network: Karras et al. (2022)."""
    sampling, sigma_data = config.sample, config.diffusion.sigma_data
    levels = edm.sigmas(sampling.steps)

    def inputs(x_0: Array, noise: Array, sigma: Array) -> tuple[Array, Array]:
        level = append_axes(sigma, x_0.ndim)
        factors = edm.precondition(level, sigma_data)
        return factors.c_in * (x_0 + level * noise), factors.c_noise.ravel()

    def loss(output: Array, x_0: Array, noise: Array, sigma: Array) -> Array:
        target = edm.target_of(x_0, noise, append_axes(sigma, x_0.ndim), sigma_data)
        return process.simple_loss(output, target)

    def sample(predict: Predict, x_T: Array, noise: samplers.Noise) -> Array:  # noqa: N803
        def derivative(x: Array, sigma: Array) -> Array:
            level = append_axes(sigma, x.ndim)
            factors = edm.precondition(level, sigma_data)
            output = predict(factors.c_in * x, factors.c_noise.ravel())
            x_0 = factors.c_skip * x + factors.c_out * output
            if sampling.clip is not None:
                x_0 = jnp.clip(x_0, -sampling.clip, sampling.clip)
            return (x - x_0) / level

        x = edm.SIGMA_MAX * x_T
        if sampling.sampler == "euler":
            return ode.euler_sample(derivative, x, levels)
        return ode.heun_sample(derivative, x, levels, noise, churn=sampling.churn)

    return Objective(
        draw=edm.draw_sigma,
        inputs=inputs,
        loss=loss,
        sample=sample,
        network_time=lambda sigma: float(np.log(max(sigma, 1e-30)) / 4),
        visited=np.log(_visited(levels, sampling)) / 4,
    )


def _visited(times: NumpyArray, sampling: ConfigDict) -> NumpyArray:
    """Return the times at which Euler's or Heun's steps evaluate the network."""
    corrected = times[1:-1] if sampling.sampler == "heun" else times[:0]
    return np.concatenate([times[:-1], corrected])


_OBJECTIVES = {"ddpm": _ddpm, "flow": _flow, "edm": _edm}


def noise_schedule_of(diffusion: ConfigDict) -> NoiseSchedule:
    """Return the NoiseSchedule of images or latents.

    Args:
      diffusion: `config.diffusion`.

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    accepted = ", ".join(noise_schedules.BETAS)
    known = diffusion.schedule in noise_schedules.BETAS
    require(known, "diffusion.schedule", diffusion.schedule, accepted)
    limits = {k: diffusion[k] for k in ("start", "end") if diffusion[k] is not None}
    if diffusion.schedule not in noise_schedules.LIMITS:
        for key, beta in limits.items():
            accepted = f"None with the {diffusion.schedule} schedule"
            require(False, f"diffusion.{key}", beta, accepted)
    return noise_schedules.noise_schedule(
        noise_schedules.BETAS[diffusion.schedule](diffusion.steps, **limits)
    )


def sampling_schedules(config: ConfigDict) -> tuple[NoiseSchedule, noise_schedules.DDIMSchedule]:
    """Return the schedules that a run on images or latents samples with.

    Args:
      config: resolved ConfigDict, whose `diffusion.process` is `ddpm`.

    Returns:
      Tuple of its NoiseSchedule and a DDIMSchedule of `sample.steps` steps (of all steps if
      `sample.sampler` is `ddpm`).

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    schedule, settings = noise_schedule_of(config.diffusion), config.sample
    steps = passes_per_sample(config)
    last_alpha = 1.0 if settings.set_alpha_to_one else None
    chosen = (settings.eta, last_alpha, settings.spacing)
    return schedule, noise_schedules.ddim_schedule(schedule, steps, *chosen)
