"""Convolutions in other forms: equal to numpy's and XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from sparsejax.models.convolutions import convolve

OPTIONS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("padding", [[(1, 1), (1, 1)], [(1, 2), (2, 1)]])
def test_convolutions_of_maps_smaller_than_the_window_are_products_of_patches(size, padding):
    """Equal to a convolution written as sums over numpy slices; no convolution is left."""
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, *size, 4)), rng.normal(size=(3, 3, 4, 5))
    padded = np.pad(x, [(0, 0), *padding, (0, 0)])
    height, width = padded.shape[1] - 2, padded.shape[2] - 2
    expected = sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)
    )

    def run(x, kernel):
        return convolve(x, kernel, (1, 1), padding, **OPTIONS)

    inputs = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    np.testing.assert_allclose(run(*inputs), expected, rtol=1e-5, atol=1e-5)
    assert "conv_general_dilated" not in str(jax.make_jaxpr(run)(*inputs))


def test_a_convolution_of_one_pixel_is_a_dense_layer():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 5, 4, 3)), rng.normal(size=(1, 1, 3, 6))

    def run(x, kernel):
        return convolve(x, kernel, (1, 1), [(0, 0), (0, 0)], **OPTIONS)

    np.testing.assert_allclose(run(x, kernel), x @ kernel[0, 0], rtol=1e-5, atol=1e-5)
    assert "conv_general_dilated" not in str(jax.make_jaxpr(run)(x, kernel))


def test_maps_of_fewer_positions_than_channels_are_products_of_patches():
    def has_convolution(batch, size, channels, strides=(1, 1)):
        x, kernel = jnp.ones((batch, size, size, channels)), jnp.ones((3, 3, channels, 2))
        run = lambda x, k: convolve(x, k, strides, [(1, 1), (1, 1)], **OPTIONS)  # noqa: E731
        return "conv_general_dilated" in str(jax.make_jaxpr(run)(x, kernel))

    assert not has_convolution(1, 4, 16)
    assert not has_convolution(1, 4, 16, (2, 2))
    assert not has_convolution(4, 2, 2)
    assert has_convolution(2, 4, 16)
    assert has_convolution(1, 4, 15, (2, 2))


CASES = [
    ((3, 64, 64, 48), (3, 3), (1, 1), [(1, 1), (1, 1)]),  # in two parts
    ((5, 64, 48, 56), (3, 5), (1, 1), [(2, 0), (0, 3)]),  # in three parts of unequal numbers
    ((2, 9, 8, 3), (3, 3), (2, 2), [(1, 1), (1, 1)]),
    ((2, 8, 8, 3), (3, 3), (2, 2), [(0, 1), (0, 1)]),
    ((1, 7, 11, 3), (3, 2), (2, 3), [(0, 0), (1, 0)]),
    ((1, 5, 4, 24), (3, 3), (2, 1), [(1, 1), (1, 1)]),  # patches
]


@pytest.mark.parametrize(("shape", "window", "strides", "padding"), CASES)
def test_convolutions_and_their_gradients_are_those_of_xla(shape, window, strides, padding):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(*window, shape[-1], 4)), jnp.float32)

    def run(function):
        y, gradients = jax.vjp(lambda x, k: function(x, k, strides, padding, **OPTIONS), x, kernel)
        cotangent = jnp.asarray(np.random.default_rng(1).normal(size=y.shape), jnp.float32)
        return y, *gradients(cotangent)

    expected = run(jax.lax.conv_general_dilated)
    for ours, theirs in zip(run(convolve), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_gradients_on_a_cpu_are_convolutions_that_its_library_runs(strides):
    """Neither dilated nor with axes in another order, which is a hundred times slower in a loop."""
    if jax.default_backend() != "cpu":
        pytest.skip("gradients are XLA's own on other platforms")
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))

    def total(x, kernel):
        return convolve(x, kernel, strides, [(1, 1), (1, 1)], **OPTIONS).sum()

    jaxpr = jax.make_jaxpr(jax.grad(total, (0, 1)))(x, kernel)
    found = [eqn for eqn in _equations(jaxpr.jaxpr) if eqn.primitive.name == "conv_general_dilated"]
    assert len(found) == 3
    for eqn in found:
        assert eqn.params["lhs_dilation"] == eqn.params["rhs_dilation"] == (1, 1)
        numbers = eqn.params["dimension_numbers"]
        assert numbers.lhs_spec == numbers.out_spec == (0, 3, 1, 2)
        assert numbers.rhs_spec == (3, 2, 0, 1)


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from _equations(inner)


@pytest.mark.parametrize(
    "options", [{"rhs_dilation": (2, 2)}, {"lhs_dilation": (2, 2)}, {"feature_group_count": 2}]
)
def test_convolutions_with_dilation_or_groups_are_those_of_xla(options):
    rng = np.random.default_rng(0)
    groups = options.get("feature_group_count", 1)
    x = rng.normal(size=(1, 2, 2, 64)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 64 // groups, 4)).astype(np.float32)
    arguments = (x, kernel, (1, 1), [(2, 2), (2, 2)])
    ours = convolve(*arguments, **OPTIONS, **options)
    theirs = jax.lax.conv_general_dilated(*arguments, **OPTIONS, **options)
    np.testing.assert_array_equal(ours, theirs)
