import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from sparsejax.diffusion import noise_schedules, process, samplers
from sparsejax.models import convert
from sparsejax.models.unet import UNet


@pytest.fixture(scope="module")
def steps_and_trajectories(golden):
    arrays = golden("c_ddim_steps.npz")
    return {
        k: v.transpose(*range(v.ndim - 3), -2, -1, -3) if v.ndim >= 4 else v
        for k, v in arrays.items()
    }


@pytest.fixture(scope="module")
def tiny_denoise(golden):
    state = golden("a_unet_tiny.npz")
    named = {k.removeprefix("sd/"): v for k, v in state.items() if k.startswith("sd/")}
    params = convert.unet_from_torch(named)
    model = UNet(3, 3, 32, 1, (2,), (1, 2), 16)
    return lambda x, t: model.apply({"params": params}, x, t)


@pytest.mark.parametrize("steps", [50, 200])
@pytest.mark.parametrize("eta", [0, 1])
def test_single_ddim_steps_equal_the_reference(ldm, steps_and_trajectories, steps, eta):
    schedule = noise_schedules.ddim_schedule(ldm, steps, eta)
    cases = {k.split("/")[0] for k in steps_and_trajectories if k.startswith(f"S{steps}_eta{eta}")}
    assert len(cases) == 3
    for case in cases:
        x, eps, noise, index, x_prev, x_0 = (
            steps_and_trajectories[f"{case}/{name}"]
            for name in ("x", "eps", "noise", "index", "x_prev", "pred_x0")
        )
        t, *constants = (c[index] for c in schedule)
        assert t == steps_and_trajectories[f"{case}/t"]
        ours = samplers.ddim_step(x, eps, noise, *constants)
        for value, expected in zip(ours, (x_prev, x_0), strict=True):
            np.testing.assert_allclose(value, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("eta", [0, 1])
def test_ddim_trajectory_equals_the_reference(ldm, steps_and_trajectories, tiny_denoise, eta):
    start, noises, end = (
        jnp.asarray(steps_and_trajectories[f"traj10_eta{eta}/{name}"])
        for name in ("x_T", "noises", "x_0")
    )
    sample = jax.jit(
        lambda x: samplers.ddim_sample(tiny_denoise, ldm, x, lambda i: noises[i], steps=10, eta=eta)
    )
    np.testing.assert_allclose(sample(start), end, atol=1e-4 * np.abs(end).max())


def test_ddpm_equals_a_numpy_loop(golden):
    """Ancestral sampling with a linear denoiser, against algorithm 2 of DDPM in float64."""
    betas = noise_schedules.linear_betas(20, 1e-3, 0.3)
    schedule = noise_schedules.noise_schedule(betas)
    rng = np.random.default_rng(0)
    x, noises = rng.normal(size=(2, 5)), rng.normal(size=(20, 2, 5))
    ours = samplers.ddpm_sample(
        lambda x, t: 0.3 * x + 0.01 * t[:, None],
        schedule,
        jnp.asarray(x, jnp.float32),
        lambda i: jnp.asarray(noises, jnp.float32)[i],
        noise_weight=0.75,
    )
    alpha, alpha_bar = 1 - betas, np.cumprod(1 - betas)
    for i, t in enumerate(range(19, -1, -1)):
        eps = 0.3 * x + 0.01 * t
        x = (x - betas[t] / np.sqrt(1 - alpha_bar[t]) * eps) / np.sqrt(alpha[t])
        if t:
            beta_tilde = betas[t] * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
            x = x + 0.75 * np.sqrt(beta_tilde) * noises[i]
    np.testing.assert_allclose(ours, x, rtol=1e-4)


def test_a_perfect_denoiser_returns_the_data(ldm):
    """With one data point, the true eps is known, and both samplers must end at the point."""
    point = jnp.linspace(-0.9, 0.9, 12).reshape(1, 2, 2, 3)

    def perfect(x, t):
        signal = process.at(ldm.sqrt_alphas_cumprod, t, 4)
        return (x - signal * point) / process.at(ldm.sqrt_one_minus_alphas_cumprod, t, 4)

    x_T, noise = samplers.example_noise(  # noqa: N806
        jax.random.split(jax.random.key(1), 3), (2, 2, 3)
    )
    for sample in (
        lambda: samplers.ddim_sample(perfect, ldm, x_T, noise, steps=25, clip=1.0),
        lambda: samplers.ddim_sample(perfect, ldm, x_T, noise, steps=25, eta=1.0),
        lambda: samplers.ddpm_sample(perfect, ldm, x_T, noise, clip=1.0),
    ):
        # DDIM stops at alpha_bar_0 = 0.9985, so a trace of the noise is left.
        np.testing.assert_allclose(jax.jit(sample)(), jnp.tile(point, (3, 1, 1, 1)), atol=0.2)


def test_clipping_keeps_predicted_data_in_range():
    x, eps = jnp.full((1, 2), 3.0), jnp.full((1, 2), -1.0)
    x_prev, x_0 = samplers.ddim_step(x, eps, 0.0, 0.5, 0.8, 0.0, clip=1.0)
    np.testing.assert_allclose(x_0, 1.0)
    eps = (3.0 - np.sqrt(0.5)) / np.sqrt(0.5)
    np.testing.assert_allclose(x_prev, np.sqrt(0.8) + np.sqrt(0.2) * eps, rtol=1e-6)


def test_samplers_clip_what_they_predict(ldm):
    """A denoiser that sees no noise anywhere predicts data far outside of the limit."""
    x_T, noise = samplers.example_noise(jax.random.split(jax.random.key(1), 2), (4, 4, 1))  # noqa: N806
    for sample in (samplers.ddpm_sample, functools.partial(samplers.ddim_sample, steps=20)):
        clipped, free = (
            np.abs(sample(lambda x, t: 0 * x, ldm, x_T, noise, clip=clip)).max()
            for clip in (0.1, None)
        )
        assert clipped < 0.3
        assert free > 1


def test_noise_of_an_example_does_not_depend_on_the_batch():
    """The random bits are the same; what becomes of them is rounded by differing programs.

    `jax.random.normal` is sqrt(2) u P(-log(1 - u^2)), P of degree 8 (Giles 2010). Half a unit of
    rounding for each operation, and one for the logarithm, propagated through Horner's scheme,
    add up to 6.2 halves at most, wherever u lies. Two programs differ by twice that.
    """
    keys = jax.random.split(jax.random.key(0), 4)
    start, noise = samplers.example_noise(keys, (3,))
    start_of_two, noise_of_two = samplers.example_noise(keys[2:], (3,))
    bound = 6.2 * np.finfo(np.float32).eps
    np.testing.assert_allclose(start[2:], start_of_two, rtol=bound)
    np.testing.assert_allclose(noise(5)[2:], noise_of_two(5), rtol=bound)
    # Nothing is drawn twice: not in another iteration, not for another example.
    drawn = np.concatenate([start, noise(0), noise(1), noise(5)])
    assert np.abs(drawn[:, None] - drawn)[~np.eye(len(drawn), dtype=bool)].max(-1).min() > 0.01


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_ddim_with_the_exact_denoiser_recovers_a_gaussian(name, steps):
    """Data N(m, s^2): the exact E[eps | x_t] is linear in x_t, and so is every DDIM step.

    With phi = atan2(sqrt(1 - alpha_bar), s sqrt(alpha_bar)), near pi / 2 for noise and 0 for data,
    a step multiplies the distance from the mean by cos(dphi), times the ratio of the marginals'
    standard deviations. So the samples' mean is m (1 - sqrt(alpha_bar_T) K), their standard
    deviation K = s / sigma_T prod cos(dphi). Up to x = 1.2, cos(x) > exp(-x^2 / 2 - x^4 / 6), and
    the dphi add up to pi / 2 at most: K > s exp(-pi / 4 (a + a^3 / 3)) with a the largest of them.
    And K < s / sigma_T < 1.0013 s, as alpha_bar_T < 0.05^2.
    """
    mean, std = 0.3, 0.2
    alpha_bar = np.cumprod(1 - noise_schedules.BETAS[name](steps))
    schedule = noise_schedules.noise_schedule(noise_schedules.BETAS[name](steps))

    def exact(x, t):
        a = jnp.asarray(alpha_bar, jnp.float32)[t][:, None]
        return jnp.sqrt(1 - a) * (x - jnp.sqrt(a) * mean) / (a * std**2 + 1 - a)

    x_T = jnp.array([[-1.0], [1.0]])  # noqa: N806  # mean 0, standard deviation 1
    ends = np.asarray(samplers.ddim_sample(exact, schedule, x_T, None, steps=steps))
    angles = np.arctan2(np.sqrt(1 - alpha_bar), std * np.sqrt(alpha_bar))
    turns = np.diff(np.append(0, angles))
    factor = std / np.sqrt(1 - alpha_bar[-1] * (1 - std**2)) * np.cos(turns).prod()
    np.testing.assert_allclose(ends.std(), factor, rtol=1e-3)
    np.testing.assert_allclose(ends.mean(), mean * (1 - np.sqrt(alpha_bar[-1]) * factor), rtol=1e-3)

    assert np.sqrt(alpha_bar[-1]) < 0.05
    largest = turns.max()
    assert largest < 1.2
    assert abs(ends.mean() - mean) < 0.05 * mean
    assert std * np.exp(-np.pi / 4 * (largest + largest**3 / 3)) < ends.std() < 1.0013 * std


LDM = noise_schedules.noise_schedule(noise_schedules.scaled_linear_betas(1000))
HUNDRED = noise_schedules.noise_schedule(noise_schedules.linear_betas(100, 1e-3, 0.2))
# What diffusers 0.42.1 (torch 2.13.0, float64) samples from np.linspace(-1.5, 1.5, 6) with eps =
# x / 2 + (t - 500) / 1000 and the noise cos(0..5 + i): a DDIMScheduler of the same betas with
# timestep_spacing="leading", steps_offset=1 and set_alpha_to_one=False, but for all 100 of 100
# steps 0 and True; `step` with use_clipped_model_output=True, clip_sample_range=1 where clipped.
DIFFUSERS = {
    "plain": (
        (LDM, {"steps": 50}),
        [-12.79835257, -8.95218490, -5.10601723, -1.25984957, 2.58631810, 6.43248577],
    ),
    "clipped": (
        (LDM, {"steps": 50, "clip": 1.0}),
        [-1.05680007, -0.93409486, -0.37380855, 0.56752021, 1.03299264, 1.05680007],
    ),
    "set_alpha_to_one": (
        (LDM, {"steps": 50, "clip": 1.0, "last_alpha": 1.0}),
        [-1.00000000, -0.89706263, -0.34729369, 0.57636500, 1.00000000, 1.00000000],
    ),
    "all_steps": (
        (HUNDRED, {"steps": 100, "clip": 1.0}),
        [-1.00000000, -0.45193073, 0.83142101, 1.00000000, 1.00000000, 1.00000000],
    ),
    "eta": (
        (LDM, {"steps": 50, "clip": 1.0, "eta": 1.0}),
        [0.34925916, 0.32417238, 0.38742305, 0.50592149, 0.61729688, 0.63653387],
    ),
}


@pytest.mark.parametrize("case", sorted(DIFFUSERS))
def test_ddim_equals_diffusers_with_the_settings_in_the_docs(case):
    (schedule, settings), expected = DIFFUSERS[case]
    ours = samplers.ddim_sample(
        lambda x, t: x / 2 + (t[:, None] - 500) / 1000,
        schedule,
        jnp.linspace(-1.5, 1.5, 6)[:, None],
        lambda i: jnp.cos(jnp.arange(6) + i)[:, None],
        **settings,
    )
    np.testing.assert_allclose(ours[:, 0], expected, rtol=1e-5, atol=2e-6)


# The same eps from the same start, by diffusers 0.42.1's DPMSolverMultistepScheduler with
# algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", lower_order_final=True, our
# timesteps and final_sigmas_type "sigma_min", or "zero" where sampling ends at alpha_bar = 1.
DPM_SOLVER = {
    (10, None): [-7.60162055, -5.05507353, -2.5085265, 0.03802098, 2.58456832, 5.13111447],
    (25, None): [-10.64269903, -7.31495949, -3.98721723, -0.65947718, 2.66826166, 5.99600323],
    (25, 1.0): [-10.42088559, -7.15646867, -3.89204894, -0.62763095, 2.6367856, 5.90120505],
    (50, None): [-11.91204946, -8.27340092, -4.63475416, -0.9961047, 2.64254414, 6.28119022],
}


# The same with use_karras_sigmas=True and final_sigmas_type "zero".
KARRAS = {
    10: [-9.73052279, -6.65233926, -3.57415902, -0.4959766, 2.58220504, 5.66038613],
    25: [-12.67407692, -8.86381788, -5.05355846, -1.24329869, 2.56696189, 6.37722282],
}


@pytest.mark.parametrize("steps", KARRAS)
def test_karras_spacing_equals_diffusers(steps):
    ours = samplers.dpm_solver_sample(
        lambda x, t: x / 2 + (t[:, None] - 500) / 1000,
        LDM,
        jnp.linspace(-1.5, 1.5, 6)[:, None],
        steps=steps,
        spacing="karras",
    )
    np.testing.assert_allclose(ours[:, 0], KARRAS[steps], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", DPM_SOLVER)
def test_dpm_solver_equals_diffusers(case):
    steps, last_alpha = case
    ours = samplers.dpm_solver_sample(
        lambda x, t: x / 2 + (t[:, None] - 500) / 1000,
        LDM,
        jnp.linspace(-1.5, 1.5, 6)[:, None],
        steps=steps,
        last_alpha=last_alpha,
    )
    np.testing.assert_allclose(ours[:, 0], DPM_SOLVER[case], rtol=2e-6, atol=1e-6)


def test_one_step_of_dpm_solver_is_ddims():
    """The first step is of first order, and nothing is left to extrapolate from."""
    start = jnp.linspace(-1.5, 1.5, 6)[:, None]
    denoise = lambda x, t: jnp.tanh(x)  # noqa: E731
    for clip in (None, 0.5):
        ours = samplers.dpm_solver_sample(denoise, LDM, start, steps=1, clip=clip)
        theirs = samplers.ddim_sample(denoise, LDM, start, None, steps=1, clip=clip)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def mixture_eps(alpha_bar, x, xp):
    """E[eps | x_t] of data that are N(-0.6, 0.3^2) or N(0.8, 0.5^2) with probability 0.3 and 0.7.

    The marginal of x_t is a mixture too, and eps = -sqrt(1 - alpha_bar) d log p / dx.
    """
    log, weighted = [], []
    for share, mean, std in ((0.3, -0.6, 0.3), (0.7, 0.8, 0.5)):
        variance = alpha_bar * std**2 + 1 - alpha_bar
        distance = x - xp.sqrt(alpha_bar) * mean
        log.append(np.log(share) - distance**2 / (2 * variance) - xp.log(variance) / 2)
        weighted.append(distance / variance)
    first = 1 / (1 + xp.exp(log[1] - log[0]))
    return xp.sqrt(1 - alpha_bar) * (first * weighted[0] + (1 - first) * weighted[1])


@pytest.mark.parametrize(
    ("sample", "order"),
    [
        (samplers.dpm_solver_sample, 2),
        (lambda *args, **kwargs: samplers.ddim_sample(*args, None, **kwargs), 1),
    ],
)
def test_the_error_falls_with_the_order_of_the_solver(sample, order):
    """With the exact denoiser, both solve the probability flow ODE, which scipy solves to 1e-9.

    In y = x / sqrt(alpha_bar) and s = sqrt(1 / alpha_bar - 1) it is dy / ds = eps (Song et al.
    2021, equation 14). The data's own noise, a first beta of 0.1, keeps log(alpha / sigma) finite:
    with the published schedules the last step is the longest by far, whatever their number.
    """
    with jax.enable_x64(True):
        betas = np.append(0.1, np.linspace(1e-5, 1e-3, 9999))
        alpha_bar, schedule = np.cumprod(1 - betas), noise_schedules.noise_schedule(betas)
        start = np.linspace(-2, 2, 9)

        def velocity(s, y):
            a = 1 / (1 + s**2)
            return mixture_eps(a, y * np.sqrt(a), np)

        def denoise(x, t):
            return mixture_eps(jnp.asarray(alpha_bar)[t][:, None], x, jnp)

        errors = []
        for steps in (40, 80, 160):
            ddim = noise_schedules.ddim_schedule(schedule, steps, 0.0)
            first, last = ddim.alphas[-1], ddim.alphas_prev[0]
            span = np.sqrt(1 / first - 1), np.sqrt(1 / last - 1)
            y = solve_ivp(
                velocity, span, start / np.sqrt(first), rtol=1e-10, atol=1e-10, method="DOP853"
            ).y[:, -1]
            ours = sample(denoise, schedule, jnp.asarray(start)[:, None], steps=steps)
            errors.append(np.abs(ours[:, 0] / np.sqrt(last) - y).max())
    falls = np.log2(np.divide(errors[:-1], errors[1:]))
    assert abs(falls[-1] - order) < 0.35, (errors, falls)
