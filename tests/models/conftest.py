import jax
import jax.numpy as jnp
import pytest


@pytest.fixture
def float64():
    """In float32 two programs of one network differ by 1e-5; in float64 by next to nothing."""
    with jax.enable_x64(True):
        yield lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)
