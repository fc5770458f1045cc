import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.diffusion import noise_schedules, process


@pytest.fixture(scope="module")
def reference(golden):
    arrays = golden("c_qsample_loss.npz")
    return {k: v.transpose(0, 2, 3, 1) if v.ndim == 4 else v for k, v in arrays.items()}


def test_q_sample_equals_the_reference(ldm, reference):
    ours = process.q_sample(ldm, reference["x0"], reference["t"], reference["noise"])
    np.testing.assert_allclose(ours, reference["x_t"], atol=1e-6)


def test_eps_loss_equals_the_reference(ldm, reference):
    ours = process.eps_loss(jnp.asarray(reference["eps"]), reference["noise"])
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
