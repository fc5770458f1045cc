import pytest

from sparsejax.diffusion import noise_schedules


@pytest.fixture(scope="session")
def ldm():
    """The noise schedule of the published Latent Diffusion models."""
    return noise_schedules.noise_schedule(noise_schedules.scaled_linear_betas(1000))
