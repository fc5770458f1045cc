"""Layers that networks share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.models.layers import Dropout, GroupNorm


@pytest.mark.parametrize("shape", [(2, 5, 4, 12), (3, 7, 12)])
def test_group_norm_equals_numpy_and_flax(shape):
    rng = np.random.default_rng(0)
    x = (3 + rng.normal(size=shape)).astype(np.float32)
    params = {name: rng.normal(size=12).astype(np.float32) for name in ("scale", "bias")}
    got = GroupNorm(4, epsilon=1e-5).apply({"params": params}, x)
    parts = x.astype(np.float64).reshape(shape[0], -1, 4, 3)
    mean, variance = parts.mean((1, 3), keepdims=True), parts.var((1, 3), keepdims=True)
    normal = ((parts - mean) / np.sqrt(variance + 1e-5)).reshape(shape)
    np.testing.assert_allclose(got, normal * params["scale"] + params["bias"], atol=2e-5)
    flax = nn.GroupNorm(4, epsilon=1e-5).apply({"params": params}, x)
    np.testing.assert_allclose(got, flax, atol=2e-5)
    assert GroupNorm(4, dtype=jnp.bfloat16).apply({"params": params}, x).dtype == jnp.bfloat16


def test_dropout_of_an_example_depends_on_its_own_key_alone():
    """The rate is kept, what stays is scaled, and no two examples or layers drop the same."""
    keys, x = jax.random.split(jax.random.key(0), 4), jnp.ones((4, 40, 50))

    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, keys):
            return [Dropout(0.3, name=name)(x, keys) for name in ("one", "other")]

    one, other = map(np.asarray, Two().apply({}, x, keys))
    for part in (slice(0, 2), slice(2, 4)):
        np.testing.assert_array_equal(Two().apply({}, x[part], keys[part])[0], one[part])
    assert set(np.unique(one)) == {0, np.float32(1 / 0.7)}
    # Of 8,000 draws, five standard deviations around the rate.
    assert abs((one == 0).mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / one.size)
    drawn = [*(one == 0), *(other == 0)]
    for i, mask in enumerate(drawn):
        for another in drawn[:i]:  # independent masks agree in 0.3^2 + 0.7^2 of the places
            assert abs((mask == another).mean() - 0.58) < 0.06
    for unchanged in (Dropout(0.3).apply({}, x, None), Dropout(0.0).apply({}, x, keys)):
        np.testing.assert_array_equal(unchanged, x)
