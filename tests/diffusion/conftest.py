import pytest

from sparsejax.diffusion import schedules


@pytest.fixture(scope="session")
def ldm():
    """The noise schedule of the published Latent Diffusion models."""
    return schedules.noise_schedule(schedules.scaled_linear_betas(1000))
