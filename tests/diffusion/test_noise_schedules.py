import numpy as np
import pytest

from sparsejax.diffusion import noise_schedules


def test_scaled_linear_schedule_equals_latent_diffusions(golden, ldm):
    arrays = golden("b_ldm_schedule.npz")
    betas = noise_schedules.scaled_linear_betas(1000)
    np.testing.assert_allclose(betas, arrays["f64/betas"], rtol=1e-12)
    np.testing.assert_allclose(np.cumprod(1 - betas), arrays["f64/alphas_cumprod"], rtol=1e-12)
    for name, value in ldm._asdict().items():
        np.testing.assert_allclose(value, arrays[f"f32/{name}"], rtol=1e-6, err_msg=name)
        assert value.dtype == np.float32


def test_vlb_weights_equal_latent_diffusions(golden, ldm):
    expected = golden("b_ldm_schedule.npz")["f32/lvlb_weights"]
    np.testing.assert_allclose(noise_schedules.vlb_weights(ldm), expected, rtol=1e-6)


@pytest.mark.parametrize("steps", [10, 50, 100, 200, 250])
def test_ddim_schedule_equals_latent_diffusions(golden, ldm, steps):
    arrays = golden("b_ddim_schedule.npz")
    for eta in (0, 1):
        ours = noise_schedules.ddim_schedule(ldm, steps, eta)
        np.testing.assert_array_equal(ours.timesteps, arrays[f"S{steps}/timesteps"])
        np.testing.assert_allclose(ours.alphas, arrays[f"S{steps}/alphas"], rtol=1e-6)
        np.testing.assert_allclose(ours.alphas_prev, arrays[f"S{steps}/alphas_prev"], rtol=1e-6)
        np.testing.assert_allclose(ours.sigmas, arrays[f"S{steps}/eta{eta}/sigmas"], rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 3, 7, 300, 501, 999, 1000])
def test_ddim_timesteps_are_distinct_and_reach_the_noisy_end(ldm, steps):
    timesteps = noise_schedules.ddim_schedule(ldm, steps, 0.0).timesteps
    assert len(set(timesteps.tolist())) == steps
    assert timesteps[0] >= 0
    assert timesteps[-1] <= 999
    assert timesteps[-1] >= 999 - -(-1000 // steps)


@pytest.mark.parametrize("steps", [0, 1001])
def test_ddim_refuses_step_counts_outside_the_schedule(ldm, steps):
    with pytest.raises(ValueError, match="accepted: 1 to 1000"):
        noise_schedules.ddim_schedule(ldm, steps, 0.0)


def test_cosine_schedule_equals_chirodiffs(golden):
    arrays = golden("d_chirodiff_schedules.npz")
    for steps in (20, 35, 100, 1000):
        expected = arrays[f"cosine_T{steps}/betas"]
        np.testing.assert_allclose(noise_schedules.cosine_betas(steps), expected, atol=2e-6)


def test_linear_betas_are_ddpms():
    betas = noise_schedules.linear_betas(1000)
    assert betas[0] == 1e-4
    assert betas[-1] == pytest.approx(2e-2)
    np.testing.assert_allclose(np.diff(betas), (2e-2 - 1e-4) / 999)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [35, 100, 1000])
def test_chirodiff_schedules_equal_the_reference(golden, name, steps):
    expected = golden("d_chirodiff_schedules.npz")
    ours = noise_schedules.chirodiff_schedule(name, steps)
    pairs = {
        "betas": ours.betas,
        "alpha_bar": ours.alphas_cumprod,
        "sqrt_alpha_bar": ours.sqrt_alphas_cumprod,
        "sqrt_one_min_alpha_bar": ours.sqrt_one_minus_alphas_cumprod,
        "beta_tilde": ours.posterior_variance,
    }
    for key, values in pairs.items():
        np.testing.assert_allclose(values, expected[f"{name}_T{steps}/{key}"], atol=2e-6)


@pytest.mark.parametrize(
    ("name", "start", "end"), [("linear", 1e-4, 2e-2), ("scaled_linear", 1.5e-3, 1.95e-2)]
)
def test_default_betas_end_in_noise_whatever_the_number_of_steps(name, start, end):
    """Limits times 1000 / T, at most 0.999; sqrt(alpha_bar_T) in float64 by numpy alone."""
    for steps in (*range(2, 60), 100, 200, 999, 1000, 1001, 4000):
        betas = noise_schedules.BETAS[name](steps)
        assert betas.shape == (steps,)
        assert betas[0] == pytest.approx(min(start * 1000 / steps, 0.999), rel=1e-12)
        assert betas[-1] == pytest.approx(min(end * 1000 / steps, 0.999), rel=1e-12)
        assert np.sqrt(np.prod(1 - betas)) < 0.05, steps
    root = np.sqrt if name == "scaled_linear" else np.asarray
    expected = np.linspace(root(start), root(end), 1000) ** (2 if name == "scaled_linear" else 1)
    np.testing.assert_array_equal(noise_schedules.BETAS[name](1000), expected)


def test_a_limit_that_is_given_is_not_scaled():
    betas = noise_schedules.linear_betas(100, end=0.05)
    np.testing.assert_allclose(betas[[0, -1]], [1e-3, 0.05], rtol=1e-12)
    betas = noise_schedules.scaled_linear_betas(100, start=4e-4)
    np.testing.assert_allclose(betas[[0, -1]], [4e-4, 0.195], rtol=1e-12)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_every_number_of_ddim_steps_has_distinct_timesteps_below_t(spacing):
    """Also where T / S lies between 1 and 2, or S does not divide T; no step goes nowhere."""
    for total in range(1, 41):
        schedule = noise_schedules.noise_schedule(np.linspace(0.01, 0.3, total))
        for steps in range(1, total + 1):
            ours = noise_schedules.ddim_schedule(schedule, steps, 1.0, spacing=spacing)
            assert len(ours.timesteps) == steps
            assert ours.timesteps.tolist() == sorted(set(ours.timesteps.tolist()))
            assert ours.timesteps[0] >= 0
            assert ours.timesteps[-1] < total
            assert spacing == "leading" or ours.timesteps[-1] == total - 1
            assert (ours.alphas_prev > ours.alphas).all(), (total, steps)
            end = schedule.alphas_cumprod[0] if ours.timesteps[0] else 1
            assert end < 1 or steps == total or spacing == "trailing"
            assert ours.alphas_prev[0] == end


@pytest.mark.parametrize(
    "schedule",
    [
        noise_schedules.chirodiff_schedule("cosine", 1000),
        noise_schedules.noise_schedule(noise_schedules.cosine_betas(1000)),
    ],
    ids=["chirodiff", "images"],
)
def test_karras_spacing_of_cosine_schedules_begins_where_there_is_something_left_of_the_data(
    schedule,
):
    """More than at t > 990, steps are where the data are seen through little noise."""
    ours = noise_schedules.ddim_schedule(schedule, 50, 0.0, 1.0, spacing="karras")
    assert np.sqrt((1 - ours.alphas[-1]) / ours.alphas[-1]) == pytest.approx(160)
    assert np.sum(ours.timesteps < 500) > 2 * np.sum(ours.timesteps > 990)
    # DDIM with the exact network of N(0, s^2) data draws from nearly that distribution: the ratio
    # of standard deviations of a step is known.
    std, data = 1.0, 0.5
    for alpha, after in zip(ours.alphas[::-1], ours.alphas_prev[::-1], strict=True):
        gain = np.sqrt(alpha) * data**2 / (alpha * data**2 + 1 - alpha)  # of E[x_0 | x]
        noise = (1 - np.sqrt(alpha) * gain) / np.sqrt(1 - alpha)
        std *= np.sqrt(after) * gain + np.sqrt(1 - after) * noise
    assert std == pytest.approx(data, rel=0.1)


def test_karras_spacing_goes_from_the_noisiest_to_the_first_step():
    """Ever less noise; the nearest timesteps may repeat, since they are whole numbers."""
    for total in range(2, 41):
        schedule = noise_schedules.noise_schedule(np.linspace(0.01, 0.3, total))
        for steps in range(2, total + 1):
            ours = noise_schedules.ddim_schedule(schedule, steps, 1.0, spacing="karras")
            assert ours.timesteps.tolist() == sorted(ours.timesteps.tolist())
            assert (ours.timesteps[0], ours.timesteps[-1]) == (0, total - 1)
            assert (ours.alphas_prev > ours.alphas).all(), (total, steps)
            assert ours.alphas_prev[0] == 1
            nearest = np.asarray(schedule.alphas_cumprod)[ours.timesteps]
            np.testing.assert_allclose(nearest[[0, -1]], ours.alphas[[0, -1]], rtol=1e-5)
