"""Noise schedules: betas, and the constants of the forward process that follow from them.

Computed in float64 and stored in float32, as in the reference implementations.
"""

from typing import NamedTuple

import jax
import numpy as np

from sparsejax.types import NumpyArray

# First and last beta at T = 1000: DDPM's, and those of Latent Diffusion (CelebA-HQ, Bedrooms).
LIMITS = {"linear": (1e-4, 2e-2), "scaled_linear": (1.5e-3, 1.95e-2)}
LARGEST_BETA = 0.999
_PURE_NOISE = 160.0  # sigma / alpha of linear schedules at T; twice EDM's largest sigma


def beta_limits(name: str, steps: int) -> tuple[float, float]:
    """Return a first and a last beta with which any number of steps ends in noise.

    The published limits are for 1000 steps. Scaled by 1000 / T, they take alpha_bar as far down in
    T steps (Dhariwal and Nichol 2021 do the same); betas are capped at 0.999, which matters for
    fewer than 20 steps.

    Args:
      name: `linear` or `scaled_linear`.
      steps: number of diffusion steps T.

    Examples:
      >>> beta_limits("linear", 1000), beta_limits("linear", 100), beta_limits("linear", 10)
      ((0.0001, 0.02), (0.001, 0.2), (0.01, 0.999))
    """
    start, end = (min(limit * (1000 / steps), LARGEST_BETA) for limit in LIMITS[name])
    return start, end


def _limits(name: str, steps: int, start: float | None, end: float | None) -> tuple[float, float]:
    defaults = beta_limits(name, steps)
    return defaults[0] if start is None else start, defaults[1] if end is None else end


def linear_betas(steps: int, start: float | None = None, end: float | None = None) -> NumpyArray:
    """Return linearly increasing betas, [steps] float64 (DDPM; Ho et al. 2020, section 4).

    Args:
      steps: number of diffusion steps T.
      start: beta of the first step; see `beta_limits` for the default.
      end: beta of the last step, likewise.
    """
    return np.linspace(*_limits("linear", steps, start, end), steps, dtype=np.float64)


def scaled_linear_betas(
    steps: int, start: float | None = None, end: float | None = None
) -> NumpyArray:
    """Return betas whose square roots increase linearly, [steps] float64.

    Latent Diffusion's schedule; the defaults are those of its CelebA-HQ and Bedrooms models.

    Args:
      steps: number of diffusion steps T.
      start: beta of the first step; see `beta_limits` for the default.
      end: beta of the last step, likewise.
    """
    first, last = np.sqrt(_limits("scaled_linear", steps, start, end))
    return np.linspace(first, last, steps, dtype=np.float64) ** 2


def cosine_betas(steps: int, offset: float = 8e-3, largest: float = LARGEST_BETA) -> NumpyArray:
    """Return betas whose alpha_bar follows a squared cosine, [steps] float64.

    Nichol and Dhariwal (2021), equation 17.

    Args:
      steps: number of diffusion steps T.
      offset: s in the paper; keeps the first betas from vanishing.
      largest: upper bound of the betas.
    """
    alpha_bar = _cosine_alpha_bar(steps, offset)
    return np.clip(1 - alpha_bar[1:] / alpha_bar[:-1], 0, largest)


def _cosine_alpha_bar(steps: int, offset: float = 8e-3) -> NumpyArray:
    t = np.arange(steps + 1, dtype=np.float64) / steps
    return np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2


BETAS = {
    "linear": linear_betas,
    "scaled_linear": scaled_linear_betas,
    "cosine": cosine_betas,
}


class NoiseSchedule(NamedTuple):
    """Constants of the forward process q and its posterior; every field [T] float32.

    `alphas_cumprod` is alpha_bar_t; `posterior_*` are of q(x_{t-1} | x_t, x_0) (Ho et al.
    2020, equations 6 and 7), the log variance clipped at t = 0, where the variance is zero.
    """

    betas: NumpyArray
    alphas_cumprod: NumpyArray
    alphas_cumprod_prev: NumpyArray
    sqrt_alphas_cumprod: NumpyArray
    sqrt_one_minus_alphas_cumprod: NumpyArray
    log_one_minus_alphas_cumprod: NumpyArray
    sqrt_recip_alphas_cumprod: NumpyArray
    sqrt_recipm1_alphas_cumprod: NumpyArray
    posterior_variance: NumpyArray
    posterior_log_variance_clipped: NumpyArray
    posterior_mean_coef1: NumpyArray
    posterior_mean_coef2: NumpyArray

    @property
    def steps(self) -> int:
        """Number of diffusion steps T."""
        return self.betas.shape[0]


def noise_schedule(betas: NumpyArray, alpha_bar: NumpyArray | None = None) -> NoiseSchedule:
    """Return the NoiseSchedule of these betas.

    Args:
      betas: [T] float64, each in [0, 1).
      alpha_bar: [T] float64, if it is not the cumulative product of 1 - beta.

    Returns:
      NoiseSchedule of numpy arrays, float32.
    """
    betas = np.asarray(betas, np.float64)
    alphas = 1 - betas
    alpha_bar = np.cumprod(alphas) if alpha_bar is None else alpha_bar
    alpha_bar_prev = np.append(1.0, alpha_bar[:-1])
    variance = betas * (1 - alpha_bar_prev) / (1 - alpha_bar)
    fields = NoiseSchedule(
        betas=betas,
        alphas_cumprod=alpha_bar,
        alphas_cumprod_prev=alpha_bar_prev,
        sqrt_alphas_cumprod=np.sqrt(alpha_bar),
        sqrt_one_minus_alphas_cumprod=np.sqrt(1 - alpha_bar),
        log_one_minus_alphas_cumprod=np.log(1 - alpha_bar),
        sqrt_recip_alphas_cumprod=np.sqrt(1 / alpha_bar),
        sqrt_recipm1_alphas_cumprod=np.sqrt(1 / alpha_bar - 1),
        posterior_variance=variance,
        posterior_log_variance_clipped=np.log(np.maximum(variance, 1e-20)),
        posterior_mean_coef1=betas * np.sqrt(alpha_bar_prev) / (1 - alpha_bar),
        posterior_mean_coef2=(1 - alpha_bar_prev) * np.sqrt(alphas) / (1 - alpha_bar),
    )
    return jax.tree.map(lambda x: x.astype(np.float32), fields)


def chirodiff_schedule(name: str, steps: int) -> NoiseSchedule:
    """Return the NoiseSchedule of ChiroDiff's published code.

    `linear` scales DDPM's betas by 1000 / T, so that few steps also end in noise, and gives the
    last sampling step the variance of the one before. `cosine` caps betas at 0.999 but not
    alpha_bar, which is close to zero at the last step.

    Args:
      name: `linear` or `cosine`.
      steps: number of diffusion steps T; more than 20 for `linear`, where betas reach 1.

    Returns:
      NoiseSchedule.
    """
    if name == "cosine":
        alpha_bar = _cosine_alpha_bar(steps)
        return noise_schedule(cosine_betas(steps), alpha_bar[1:] / alpha_bar[0])
    schedule = noise_schedule(linear_betas(steps, 0.1 / steps, 20 / steps))
    variance = schedule.posterior_variance.copy()
    variance[0] = variance[1]
    return schedule._replace(posterior_variance=variance)


def vlb_weights(schedule: NoiseSchedule) -> NumpyArray:
    """Return the weights of the eps loss in the variational bound, [T] float32.

    As logged by Latent Diffusion: beta^2 / (2 sigma^2 alpha (1 - alpha_bar)), the first entry
    set to the second (sigma is zero there).

    Args:
      schedule: NoiseSchedule.
    """
    alphas = np.float32(1) - schedule.betas
    with np.errstate(divide="ignore"):
        weights = schedule.betas**2 / (
            2 * schedule.posterior_variance * alphas * (1 - schedule.alphas_cumprod)
        )
    weights[0] = weights[1]
    return weights


def remaining_signal(schedule: NoiseSchedule) -> float:
    """Return sqrt(alpha_bar_T), the signal left in what sampling takes to be pure noise."""
    return float(schedule.sqrt_alphas_cumprod[-1])


class DDIMSchedule(NamedTuple):
    """Constants of a DDIM trajectory in increasing t; every field [S].

    `timesteps` int32; `alphas` and `alphas_prev` are alpha_bar at this and the step before,
    `sigmas` the standard deviation of the noise (Song et al. 2021, equation 16).
    """

    timesteps: NumpyArray
    alphas: NumpyArray
    alphas_prev: NumpyArray
    sigmas: NumpyArray


def ddim_schedule(
    schedule: NoiseSchedule,
    steps: int,
    eta: float,
    last_alpha: float | None = None,
    spacing: str = "leading",
) -> DDIMSchedule:
    """Choose `steps` of the T diffusion steps, evenly spaced.

    `leading`, as in Latent Diffusion: fewer than T steps are t = 1 + floor(i T / S), i = 0..S-1, so
    that the noisiest t may be far from T. `trailing` (Lin et al. 2024, table 2) always begins at T
    - 1: t = round(T - i T / S) - 1. `karras` spaces sigma / alpha as `karras_sigmas` do, from that
    of t = T - 1 to that of t = 0, and the network is given the t nearest to each; levels above 160,
    of cosine schedules, are skipped: what they hold is noise. Steps that include t = 0 end at
    alpha_bar = 1 by default: ending at alpha_bar_0 would make the last one a no-op.

    Args:
      schedule: NoiseSchedule with T steps.
      steps: number S of sampling steps, 1 to T.
      eta: 0 for a deterministic trajectory, 1 for DDPM's noise.
      last_alpha: alpha_bar at which sampling ends (default: that of t = 0, as in Latent
        Diffusion); 1 ends at the predicted x_0 itself, as in ChiroDiff.
      spacing: one of `schema.SPACINGS`.

    Returns:
      DDIMSchedule: int32 timesteps, everything else float64 (cast where used).

    Raises:
      ValueError: `steps` is not in 1..T.
    """
    total = schedule.steps
    if not 1 <= steps <= total:
        raise ValueError(f"{steps} sampling steps; accepted: 1 to {total} (the diffusion steps)")
    alpha_bar = np.asarray(schedule.alphas_cumprod, np.float64)
    if spacing == "karras":
        timesteps, alphas = _karras_steps(alpha_bar, steps)
    elif spacing == "trailing":
        timesteps = np.round(total - np.arange(steps)[::-1] * (total / steps)).astype(int) - 1
        alphas = alpha_bar[timesteps]
    else:
        timesteps = np.arange(steps) * total // steps + (1 if steps < total else 0)
        alphas = alpha_bar[timesteps]
    if last_alpha is None:
        last_alpha = alpha_bar[0] if timesteps[0] > 0 else 1.0
    alphas_prev = np.append(last_alpha, alphas[:-1])
    sigmas = eta * np.sqrt((1 - alphas_prev) / (1 - alphas) * (1 - alphas / alphas_prev))
    return DDIMSchedule(timesteps.astype(np.int32), alphas, alphas_prev, sigmas)


def karras_sigmas(steps: int, smallest: float, largest: float, rho: float = 7.0) -> NumpyArray:
    """Return noise levels whose steps grow with the noise, from the largest to the smallest.

    Karras et al. (2022), equation 5, without the last one, 0.

    Args:
      steps: number of levels.
      smallest: last level.
      largest: first level, the only one if `steps` is 1.
      rho: 1 spaces levels evenly; more puts more of them where there is little noise.

    Returns:
      [steps] float64.

    Examples:
      >>> karras_sigmas(3, 0.002, 80.0).round(3).tolist()
      [80.0, 2.515, 0.002]
    """
    ramp = np.linspace(0, 1, steps)
    ends = largest ** (1 / rho), smallest ** (1 / rho)
    return (ends[0] + ramp * (ends[1] - ends[0])) ** rho


def _karras_steps(alpha_bar: NumpyArray, steps: int) -> tuple[NumpyArray, NumpyArray]:
    """Return timesteps and alpha_bar in increasing t, at the levels of `karras_sigmas`."""
    levels = np.sqrt((1 - alpha_bar) / alpha_bar)
    sigmas = karras_sigmas(steps, levels[0], min(levels[-1], _PURE_NOISE))[::-1]
    timesteps = np.interp(np.log(sigmas), np.log(levels), np.arange(len(levels)))
    return np.round(timesteps).astype(int), 1 / (1 + sigmas**2)


class DPMSolverSchedule(NamedTuple):
    """Constants of a DPM-Solver++(2M) trajectory in decreasing t; every field [S].

    With lambda = log(alpha / sigma) and h its increase in a step, the step from x_t = alpha x_0 +
    sigma eps goes to `keep` x_t + `move` D, where D = x_0 + `extrapolate` (x_0 - x_0 of the step
    before) is the predicted data in the middle of the step.

    `timesteps` int32; `alphas` and `sigmas` at the beginning of a step; `keep` = sigma_next /
    sigma, `move` = alpha_next (1 - exp(-h)), `extrapolate` = h / (2 h of the step before).
    """

    timesteps: NumpyArray
    alphas: NumpyArray
    sigmas: NumpyArray
    keep: NumpyArray
    move: NumpyArray
    extrapolate: NumpyArray


_FEW = 15  # steps, below which the last one is of first order, as the authors recommend


def dpm_solver_schedule(
    schedule: NoiseSchedule,
    steps: int,
    last_alpha: float | None = None,
    spacing: str = "leading",
) -> DPMSolverSchedule:
    """Choose the steps of `ddim_schedule`, and weight them as DPM-Solver++(2M) does.

    Lu et al. (2022), "DPM-Solver++", algorithm 2. The first step is of first order, which is DDIM's
    with eta = 0; so is the last one if it ends without noise, or is one of fewer than 15.

    Args:
      schedule: NoiseSchedule with T steps.
      steps: number S of sampling steps, 1 to T.
      last_alpha: alpha_bar at which sampling ends; see `ddim_schedule`.
      spacing: likewise.

    Returns:
      DPMSolverSchedule: int32 timesteps, everything else float64 (cast where used).

    Raises:
      ValueError: `steps` is not in 1..T.
    """
    ddim = ddim_schedule(schedule, steps, 0.0, last_alpha, spacing)
    alpha_bar, next_alpha_bar = ddim.alphas[::-1], ddim.alphas_prev[::-1]
    alphas, sigmas = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    alphas_next, sigmas_next = np.sqrt(next_alpha_bar), np.sqrt(1 - next_alpha_bar)
    keep = sigmas_next / sigmas
    with np.errstate(divide="ignore"):  # without noise, lambda is infinite
        h = np.log(alphas_next / sigmas_next) - np.log(alphas / sigmas)
    extrapolate = np.zeros(steps)
    extrapolate[1:] = h[1:] / (2 * h[:-1])
    if sigmas_next[-1] == 0 or steps < _FEW:
        extrapolate[-1] = 0
    move = alphas_next - keep * alphas  # alpha_next exp(-h) = alpha sigma_next / sigma
    timesteps = ddim.timesteps[::-1]
    return DPMSolverSchedule(timesteps, alphas, sigmas, keep, move, extrapolate)
