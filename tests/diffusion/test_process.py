import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.diffusion import noise_schedules, process
from sparsejax.schema import PREDICTIONS


@pytest.fixture(scope="module")
def reference(golden):
    arrays = golden("c_qsample_loss.npz")
    return {k: v.transpose(0, 2, 3, 1) if v.ndim == 4 else v for k, v in arrays.items()}


def test_q_sample_equals_the_reference(ldm, reference):
    ours = process.q_sample(ldm, reference["x0"], reference["t"], reference["noise"])
    np.testing.assert_allclose(ours, reference["x_t"], atol=1e-6)


def test_eps_loss_equals_the_reference(ldm, reference):
    ours = process.simple_loss(jnp.asarray(reference["eps"]), reference["noise"])
    np.testing.assert_allclose(ours, reference["loss_per_sample"], rtol=1e-6)
    np.testing.assert_allclose(ours.mean(), reference["loss"], rtol=1e-6)
    bound = (noise_schedules.vlb_weights(ldm)[reference["t"]] * ours).mean()
    np.testing.assert_allclose(bound, reference["loss_vlb"], rtol=1e-5)


def test_posterior_equals_the_reference(ldm, reference):
    x_0, x_t, t = reference["x0"], reference["x_t"], reference["t"]
    ours = process.q_posterior(ldm, x_0, x_t, t)
    names = ("posterior_mean", "posterior_variance", "posterior_log_variance")
    for value, name in zip(ours, names, strict=True):
        np.testing.assert_allclose(value, reference[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_predicted_start_equals_the_reference(ldm, reference):
    ours = process.predict_x_0(ldm, reference["x_t"], reference["t"], reference["noise"])
    scale = np.abs(reference["x0_from_eps"]).max()
    np.testing.assert_allclose(ours, reference["x0_from_eps"], atol=1e-5 * scale)


def test_prediction_inverts_q_sample(ldm, reference):
    x_0, t, noise = reference["x0"], reference["t"], reference["noise"]
    x_t = process.q_sample(ldm, x_0, t, noise)
    back = process.predict_x_0(ldm, x_t, t, noise)
    scale = np.asarray(ldm.sqrt_recip_alphas_cumprod)[t].reshape(-1, 1, 1, 1)
    assert (np.abs(back - x_0) < 1e-5 * scale).all()


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_the_noise_follows_from_what_is_predicted(ldm, reference, predicts):
    x_0, t, noise = reference["x0"], reference["t"], reference["noise"]
    x_t = process.q_sample(ldm, x_0, t, noise)
    target = process.target_of(ldm, predicts, x_0, noise, t)
    back = process.eps_of(ldm, predicts, x_t, target, t)
    scale = np.asarray(ldm.sqrt_recip_alphas_cumprod / ldm.sqrt_one_minus_alphas_cumprod)[t]
    assert (np.abs(back - noise) < 2e-6 * scale.reshape(-1, 1, 1, 1)).all()


def test_v_is_the_velocity_on_the_circle(ldm, reference):
    """x_t = cos(phi) x_0 + sin(phi) eps, v = dx_t / dphi (Salimans and Ho 2022, appendix D)."""
    x_0, noise, t = (reference[name].astype(np.float64) for name in ("x0", "noise", "t"))
    phi = np.arccos(np.sqrt(np.float64(ldm.alphas_cumprod)))[t.astype(int)].reshape(-1, 1, 1, 1)
    point = lambda angle: np.cos(angle) * x_0 + np.sin(angle) * noise  # noqa: E731
    slope = (point(phi + 1e-6) - point(phi - 1e-6)) / 2e-6
    v = process.target_of(ldm, "v", x_0, noise, t.astype(int))
    np.testing.assert_allclose(v, slope, atol=1e-5)


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_min_snr_weighs_the_same_error_of_the_data_the_same(ldm, reference, predicts):
    """Whatever is predicted, an x_0 that is off by 0.1 costs 0.01 min(SNR, gamma)."""
    x_0, t, noise = reference["x0"], reference["t"], reference["noise"]
    x_t = process.q_sample(ldm, x_0, t, noise)
    signal, sigma = (
        process.at(values, t, 4)
        for values in (ldm.sqrt_alphas_cumprod, ldm.sqrt_one_minus_alphas_cumprod)
    )
    eps = (x_t - signal * (x_0 + 0.1)) / sigma
    output = process.target_of(ldm, predicts, x_0 + 0.1, eps, t)
    losses = process.simple_loss(output, process.target_of(ldm, predicts, x_0, noise, t))
    alpha_bar = np.float64(ldm.alphas_cumprod)[t]
    expected = 0.01 * np.minimum(alpha_bar / (1 - alpha_bar), 5)
    weights = process.min_snr_weights(ldm, predicts, 5.0)[t]
    np.testing.assert_allclose(weights * losses, expected, rtol=2e-3)
