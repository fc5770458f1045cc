"""Samplers of a config for diffusion in T steps: shared by all families with it."""

import numpy as np
from ml_collections import ConfigDict

from sparsejax.diffusion import samplers
from sparsejax.diffusion.noise_schedules import NoiseSchedule, ddim_schedule, remaining_signal
from sparsejax.errors import require
from sparsejax.schema import SAMPLERS_OF
from sparsejax.types import Array, NumpyArray

# Largest sqrt(alpha_bar_T) for which sampling from pure noise is accurate.
_LARGEST_SIGNAL = 0.05
_MOST_STEPS = 100_000


def check_sampling(config: ConfigDict) -> None:
    """Check that the sampler is one of the process's, and takes no more steps than that has.

    Args:
      config: resolved ConfigDict.

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    name, sampler = config.diffusion.process, config.sample.sampler
    accepted = f"{', '.join(SAMPLERS_OF[name])} with diffusion.process {name}"
    require(sampler in SAMPLERS_OF[name], "sample.sampler", sampler, accepted)
    steps, total = config.sample.steps, config.diffusion.steps
    if config.diffusion.process == "ddpm":
        fits = config.sample.sampler == "ddpm" or 1 <= steps <= total  # ddpm takes all of them
        require(fits, "sample.steps", steps, f"1 to {total} (diffusion.steps)")
    else:
        require(1 <= steps <= _MOST_STEPS, "sample.steps", steps, f"1 to {_MOST_STEPS}")


def passes_per_sample(config: ConfigDict) -> int:
    """Return the forward passes per sample of diffusion in T steps, without guidance."""
    is_ddpm = config.sample.sampler == "ddpm"
    return config.diffusion.steps if is_ddpm else config.sample.steps


def visited_times(config: ConfigDict, schedule: NoiseSchedule) -> NumpyArray:
    """Return the times at which a sampler of diffusion in T steps evaluates the network.

    Args:
      config: resolved ConfigDict.
      schedule: noise schedule of the model.

    Returns:
      [calls] int, from 0 to T - 1.
    """
    settings = config.sample
    if settings.sampler == "ddpm":
        return np.arange(schedule.steps)
    return ddim_schedule(schedule, settings.steps, settings.eta, None, settings.spacing).timesteps


def run_sampler(
    schedule: NoiseSchedule,
    settings: ConfigDict,
    denoise: samplers.Denoise,
    x_T: Array,  # noqa: N803
    noise: samplers.Noise,
    *,
    ends_at_one: bool,
) -> Array:
    """Sample with the sampler of `config.sample`.

    Args:
      schedule: noise schedule of the model.
      settings: `config.sample`.
      denoise: `denoise(x_t, t) -> eps`.
      x_T: pure noise [count, ...].
      noise: the noise of each step; see `samplers.example_noise`.
      ends_at_one: whether the last step of DDIM or DPM-Solver++ ends at alpha_bar = 1, or at that
        of t = 0.

    Returns:
      Samples [count, ...].
    """
    if settings.sampler == "ddpm":
        return samplers.ddpm_sample(
            denoise, schedule, x_T, noise, noise_weight=settings.noise_weight, clip=settings.clip
        )
    options = {"steps": settings.steps, "clip": settings.clip, "spacing": settings.spacing}
    options["last_alpha"] = 1.0 if ends_at_one else None
    if settings.sampler == "dpmpp_2m":
        return samplers.dpm_solver_sample(denoise, schedule, x_T, **options)
    return samplers.ddim_sample(denoise, schedule, x_T, noise, eta=settings.eta, **options)


def warnings_of(schedule: NoiseSchedule) -> tuple[str, ...]:
    """Return warnings about a run's noise schedule, usually none."""
    signal = remaining_signal(schedule)
    if signal <= _LARGEST_SIGNAL:
        return ()
    return (
        f"sampling starts from pure noise, but after all {schedule.steps} diffusion steps "
        f"sqrt(alpha_bar) is {signal:.3f}, more than {_LARGEST_SIGNAL}: samples will not follow "
        "the data (see config.diffusion)",
    )
