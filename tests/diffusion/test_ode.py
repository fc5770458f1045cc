"""Rectified flow and EDM: paths, preconditioning, and samplers against their authors' code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.stats import kstest, norm

from sparsejax.diffusion import edm, flow, ode

START = np.linspace(-1.5, 1.5, 6)[:, None]
# NVlabs/edm, commit 008a4e5: `edm_sampler` with S_min=0.05, S_max=50, S_noise=1.003, of a network
# in float32. Keys: steps, S_churn.
EDM = {
    (5, 0): [-2.30565119, -1.48380959, -0.58633506, 0.42667347, 1.32545412, 2.14411521],
    (18, 0): [-1.03321719, -0.68200666, -0.26198044, 0.23115686, 0.65052509, 1.00133383],
    (18, 40): [-0.21249941, 0.08578227, 0.24888119, 0.14449649, -0.11240964, -0.26696816],
}
# diffusers 0.42.1: FlowMatchEulerDiscreteScheduler on even sigmas, and
# FlowMatchHeunDiscreteScheduler, whose sigmas go from 1 to 0.001, then to 0.
FLOW = {
    ("euler", 4): [-0.94836426, -0.59665524, -0.24494631, 0.10676271, 0.45847168, 0.81018066],
    ("euler", 10): [-0.90442085, -0.54517853, -0.18593639, 0.1733058, 0.53254802, 0.89179011],
    ("heun", 4): [-0.87158429, -0.50671305, -0.14184183, 0.22302946, 0.58790069, 0.95277194],
    ("heun", 10): [-0.87657535, -0.51255966, -0.14854406, 0.21547163, 0.57948723, 0.94350293],
}
SHARES, MEANS, STDS = (0.3, 0.7), (-0.6, 0.8), (0.3, 0.5)


def column(values):
    return values[:, None]


def network(x, c_noise):
    """F of the recorded trajectories."""
    return 0.3 * jnp.tanh(x) + 0.1 * column(c_noise)


def edm_derivative(x, sigma):
    factors = edm.precondition(sigma, 0.5)
    output = network(column(factors.c_in) * x, factors.c_noise)
    return (x - column(factors.c_skip) * x - column(factors.c_out) * output) / column(sigma)


@pytest.mark.parametrize("case", EDM)
def test_edm_equals_its_authors_sampler(case):
    steps, churn = case
    with jax.enable_x64(True):
        ours = ode.heun_sample(
            edm_derivative,
            edm.SIGMA_MAX * jnp.asarray(START),
            edm.sigmas(steps),
            lambda i: column(jnp.cos(jnp.arange(6) + i)),
            churn=churn,
        )
    np.testing.assert_allclose(ours[:, 0], EDM[case], atol=5e-6)


def test_preconditioning_equals_its_authors():
    """D at x = 0.7 by `EDMPrecond` of NVlabs/edm with the same F."""
    with jax.enable_x64(True):
        sigma, x = jnp.array([0.002, 0.3, 80.0]), jnp.full((3, 1), 0.7)
        ours = x - column(sigma) * edm_derivative(x, sigma)
    expected = [0.7002092599868774, 0.5713111758232117, 0.05611402541399002]
    np.testing.assert_allclose(ours[:, 0], expected, rtol=2e-7)


def test_preconditioned_inputs_and_targets_have_unit_variance():
    """The aim of the factors (Karras et al. 2022, appendix B.6), for data of that deviation."""
    rng = np.random.default_rng(0)
    for sigma in (0.01, 0.5, 3.0, 60.0):
        x_0, noise = 0.7 * rng.normal(size=(2, 100_000)).astype(np.float32)
        noise /= 0.7
        levels = jnp.full(100_000, sigma)
        factors = edm.precondition(levels, 0.7)
        np.testing.assert_allclose((factors.c_in * (x_0 + sigma * noise)).std(), 1, rtol=0.01)
        target = edm.target_of(x_0, noise, levels, 0.7)
        np.testing.assert_allclose(target.std(), 1, rtol=0.02)
        denoised = factors.c_skip * (x_0 + sigma * noise) + factors.c_out * target
        np.testing.assert_allclose(denoised, x_0, atol=1e-4 * max(1, sigma))


@pytest.mark.parametrize("case", FLOW)
def test_flow_equals_diffusers(case):
    sampler, steps = case

    def velocity(x, t):
        return x / 2 + column((flow.TIME_SCALE * t - 500) / 1000)

    x = jnp.asarray(START, jnp.float32)
    if sampler == "euler":
        ours = ode.euler_sample(velocity, x, flow.times(steps))
    else:
        sigmas = np.append(np.linspace(1, 0.001, steps), 0)
        ours = ode.heun_sample(velocity, x, sigmas)
    np.testing.assert_allclose(ours[:, 0], FLOW[case], atol=1e-6)


def test_paths_are_straight_from_data_to_noise():
    rng = np.random.default_rng(1)
    x_0, noise = rng.normal(size=(2, 3, 4, 4, 1)).astype(np.float32)
    t = jnp.array([0.0, 0.3, 1.0])
    x_t = flow.interpolate(x_0, noise, t)
    np.testing.assert_array_equal(x_t[0], x_0[0])
    np.testing.assert_array_equal(x_t[2], noise[2])
    velocity = flow.velocity(x_0, noise)
    moved = flow.interpolate(x_0, noise, t + 0.25)
    np.testing.assert_allclose(moved - x_t, 0.25 * velocity, atol=1e-6)
    np.testing.assert_allclose(flow.predict_x_0(x_t, velocity, t), x_0, atol=1e-6)


def test_times_and_noise_levels_have_their_distributions():
    keys = jax.random.split(jax.random.key(0), 4000)
    logits = {name: jax.vmap(draw)(keys) for name, draw in flow.TIMES.items()}
    assert kstest(logits["uniform"], "uniform").pvalue > 0.01
    t = np.asarray(logits["logit_normal"])
    assert kstest(np.log(t / (1 - t)), norm.cdf).pvalue > 0.01
    sigma = np.asarray(jax.vmap(edm.draw_sigma)(keys))
    assert kstest(np.log(sigma), norm(-1.2, 1.2).cdf).pvalue > 0.01


def mixture_x_0(x, scale, sigma, xp):
    """E[x_0 | x], x = scale x_0 + sigma n, of data that are a mixture of two Gaussians."""
    log, weighted = [], []
    for share, mean, std in zip(SHARES, MEANS, STDS, strict=True):
        variance = scale**2 * std**2 + sigma**2
        distance = x - scale * mean
        log.append(np.log(share) - distance**2 / (2 * variance) - xp.log(variance) / 2)
        weighted.append(mean + scale * std**2 / variance * distance)
    first = 1 / (1 + xp.exp(log[1] - log[0]))
    return first * weighted[0] + (1 - first) * weighted[1]


def flow_velocity(x, t, xp):
    return (x - mixture_x_0(x, 1 - t, t, xp)) / t


def edm_slope(x, sigma, xp):
    return (x - mixture_x_0(x, 1.0, sigma, xp)) / sigma


@pytest.mark.parametrize(("sample", "order"), [(ode.euler_sample, 1), (ode.heun_sample, 2)])
@pytest.mark.parametrize("of", ["flow", "edm"])
def test_the_error_falls_with_the_order_of_the_solver(sample, order, of):
    """With the exact denoiser of a mixture, against scipy's solution to 1e-10."""
    slope, largest = {"flow": (flow_velocity, 1.0), "edm": (edm_slope, 80.0)}[of]
    with jax.enable_x64(True):
        start, errors = largest * np.linspace(-2, 2, 9), []
        exact = solve_ivp(
            lambda t, x: slope(x, t, np), (largest, 1e-7), start, rtol=1e-11, atol=1e-11
        ).y[:, -1]
        for steps in (40, 80, 160):
            times = flow.times(steps) if of == "flow" else edm.sigmas(steps)
            ends = sample(lambda x, t: slope(x, column(t), jnp), jnp.asarray(column(start)), times)
            errors.append(np.abs(np.asarray(ends)[:, 0] - exact).max())
    falls = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (falls > order - 0.25).all(), (errors, falls)
    assert errors[-1] < 0.02 / 10 ** (order - 1)


def test_churn_keeps_the_distribution():
    """Samples of a stochastic sampler with the exact denoiser follow the mixture."""
    key = jax.random.key(0)
    x = edm.SIGMA_MAX * jax.random.normal(key, (4000, 1))
    slope = lambda x, t: edm_slope(x, column(t), jnp)  # noqa: E731
    noise = lambda i: jax.random.normal(jax.random.fold_in(key, i), x.shape)  # noqa: E731
    drawn = ode.heun_sample(slope, x, edm.sigmas(64), noise, churn=30)
    still = ode.heun_sample(slope, x, edm.sigmas(64), noise)
    assert np.abs(drawn - still).mean() > 0.1

    def cdf(x):
        parts = zip(SHARES, MEANS, STDS, strict=True)
        return sum(share * norm.cdf(x, mean, std) for share, mean, std in parts)

    # S_noise = 1.003 makes up for blurred denoisers; the exact one isn't.
    assert kstest(np.asarray(drawn)[:, 0], cdf).statistic < 0.04
