"""Rectified flow and EDM as objectives of a run: losses and samples of known networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.configuration import resolve
from sparsejax.errors import ConfigError
from sparsejax.families import build_data, build_model
from tests.training.tiny import tiny_config

FLOW = {"diffusion.process": "flow", "sample.sampler": "euler"}
EDM = {"diffusion.process": "edm", "sample.sampler": "heun", "diffusion.sigma_data": 0.7}
POINT = 0.25


def model_of(changes):
    return build_model(resolve(tiny_config(**changes)))


def scaled_identity(params, x, t, *, train=False, rngs=None):
    return params * x + t[:, None, None, None]


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(build_data(resolve(tiny_config())).reference()[:6])


def each(keys, images):
    """Keys of time and noise, and the noise, of each example."""
    for key, x in zip(keys, np.asarray(images), strict=True):
        t_key, noise_key = jax.random.split(key)
        yield t_key, x, np.asarray(jax.random.normal(noise_key, x.shape))


@pytest.mark.parametrize("times", ["logit_normal", "uniform"])
def test_flows_loss_is_of_the_velocity_at_each_examples_own_time(images, times):
    model = model_of(FLOW | {"diffusion.times": times})
    keys = jax.random.split(jax.random.key(3), 6)
    ours = model.loss(scaled_identity, 0.5, {"image": images}, keys, train=True)
    errors = []
    for t_key, x, noise in each(keys, images):
        t = jax.random.uniform(t_key)
        if times == "logit_normal":
            t = 1 / (1 + np.exp(-jax.random.normal(t_key)))
        x_t = (1 - t) * x + t * noise
        errors.append(((0.5 * x_t + 1000 * t - (noise - x)) ** 2).mean())
    np.testing.assert_allclose(ours, np.mean(errors), rtol=1e-4)


def test_edms_loss_is_the_weighted_one_of_its_authors(images):
    """Equation 2 with lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2."""
    keys = jax.random.split(jax.random.key(3), 6)
    ours = model_of(EDM).loss(scaled_identity, 0.5, {"image": images}, keys, train=True)
    errors = []
    for t_key, x, noise in each(keys, images):
        s, d = np.exp(-1.2 + 1.2 * jax.random.normal(t_key)), 0.7
        noisy = x + s * noise
        network = 0.5 * noisy / np.sqrt(s**2 + d**2) + np.log(s) / 4
        denoised = d**2 / (s**2 + d**2) * noisy + s * d / np.sqrt(s**2 + d**2) * network
        errors.append((s**2 + d**2) / (s * d) ** 2 * ((denoised - x) ** 2).mean())
    np.testing.assert_allclose(ours, np.mean(errors), rtol=1e-4)


def exact_flow(params, x, t):
    return (x - POINT) / (t / 1000)[:, None, None, None]


def exact_edm(params, x, c_noise):
    s, d = jnp.exp(4 * c_noise)[:, None, None, None], 0.7
    noisy = x * jnp.sqrt(s**2 + d**2)
    return (POINT - d**2 / (s**2 + d**2) * noisy) * jnp.sqrt(s**2 + d**2) / (s * d)


@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize(("process", "exact"), [(FLOW, exact_flow), (EDM, exact_edm)])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_exact_network_of_data_at_one_point_ends_there(process, exact, sampler, clip):
    model = model_of(process | {"sample.sampler": sampler, "sample.clip": clip})
    samples = model.sample(exact, None, (), jax.random.key(0), 4)
    np.testing.assert_allclose(samples, POINT, atol=1e-3)


def test_samples_are_clipped_where_the_network_predicts_data_far_outside():
    for changes in (FLOW, EDM):
        model = model_of(changes | {"sample.clip": 0.5})
        samples = model.sample(
            lambda p, x, t: -50.0 * jnp.ones_like(x), 0, (), jax.random.key(0), 2
        )
        np.testing.assert_allclose(np.abs(samples), 0.5, atol=1e-5)


def test_passes_are_counted_as_the_samplers_make_them():
    passes = {}
    for changes in (FLOW, EDM):
        for sampler, expected in (("euler", 7), ("heun", 13)):
            chosen = {"sample.sampler": sampler, "sample.steps": 7}
            model = model_of(changes | chosen)
            assert model.passes_per_sample == expected
            calls = []

            def network(params, x, t):
                jax.debug.callback(calls.append, t[0], ordered=True)  # noqa: B023
                return jnp.zeros_like(x)

            model.sample(network, None, (), jax.random.key(0), 1)
            jax.effects_barrier()
            assert len(calls) == expected
            passes[changes["diffusion.process"], sampler] = calls
    assert max(passes["flow", "euler"]) == 1000
    np.testing.assert_allclose(max(passes["edm", "heun"]), np.log(80) / 4, rtol=1e-5)


def test_churn_draws_noise_of_each_example():
    model = model_of(EDM | {"sample.churn": 10.0})
    whole = model.sample(exact_edm, None, (), jax.random.key(0), 4)
    still = model_of(EDM).sample(exact_edm, None, (), jax.random.key(0), 4)
    part = model.sample(exact_edm, None, (), jax.random.key(0), 2, start=2)
    np.testing.assert_allclose(whole[2:], part, atol=1e-5)
    np.testing.assert_allclose(whole, still, atol=1e-3)  # the exact network forgets it


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"diffusion.process": "flow"},
            "sampler is 'ddim'; accepted: euler, heun with diff",
        ),
        ({"sample.sampler": "heun"}, "sample.sampler is 'heun'; accepted: ddim, ddpm, dpmpp_2m w"),
        (FLOW | {"diffusion.predicts": "v"}, "diffusion.predicts is 'v'; accepted: 'eps' with dif"),
        (EDM | {"diffusion.min_snr": 5.0}, "diffusion.min_snr is 5.0; accepted: None with diffus"),
        (FLOW | {"diffusion.sigma_data": 0.7}, "sigma_data is 0.7; accepted: 0.5 with diffusion.p"),
        (EDM | {"diffusion.times": "uniform"}, "times is 'uniform'; accepted: 'logit_normal' with"),
        ({"diffusion.times": "uniform"}, "times is 'uniform'; accepted: 'logit_normal' with"),
        (FLOW | {"sample.steps": 0}, "sample.steps is 0; accepted: 1 to 100000"),
        (FLOW | {"sample.churn": 1.0}, "sample.churn is 1.0; accepted: 0.0 with diffusion.process"),
    ],
)
def test_keys_of_another_process_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        model_of(changes)


def test_sampling_from_where_nothing_is_left_of_the_data_needs_a_bound():
    """Only where eps is divided by next to nothing."""
    risky = {"diffusion.schedule": "cosine", "diffusion.steps": 1000, "sample.steps": 20}
    risky |= {"sample.spacing": "trailing", "sample.clip": None}
    (line,) = model_of(risky).warnings
    assert "set config.sample.clip" in line
    for changes in (
        {"sample.clip": 1.0},
        {"sample.spacing": "leading"},
        {"sample.spacing": "karras"},
        {"sample.sampler": "ddpm"},
        {"diffusion.predicts": "v"},
        {"diffusion.schedule": "linear"},
    ):
        assert model_of(risky | changes).warnings == ()
