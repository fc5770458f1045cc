"""The product of active blocks is that of a kernel with zeros, in each of its forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.compact import products
from sparsejax.compact.products import by_columns, by_patches, multiply_blocks

INPUTS, OUTPUTS = 4, 8
INDEX = np.array([[0, 2], [1, 2], [0, 3]], np.int32)  # 2 of 4 input blocks for each of 3
# Shape of x but for channels, taps, strides, padding.
LAYERS = {
    "3x3": ((2, 5, 6), (3, 3), (1, 1), [(1, 1), (1, 1)]),
    "halving": ((2, 6, 5), (3, 3), (2, 2), [(0, 1), (0, 1)]),
    "tiny map": ((2, 2, 2), (3, 3), (1, 1), [(1, 1), (1, 1)]),
    "1x1": ((2, 3, 3), (1, 1), (1, 1), [(0, 0), (0, 0)]),
    "strided 1x1": ((2, 5, 5), (1, 1), (2, 2), [(0, 0), (0, 0)]),
    "dense": ((2, 5), (), (1, 1), [(0, 0), (0, 0)]),
}


def with_zeros(kernel, index):
    """Compact kernels as ordinary ones of 4 input blocks, by a loop."""
    count, *taps, _, _ = kernel.shape
    full = np.zeros((*taps, 4 * INPUTS, count * OUTPUTS), np.float32)
    for j, row in enumerate(index):
        for place, i in enumerate(row):
            part = kernel[j][..., place * INPUTS : (place + 1) * INPUTS, :]
            full[..., i * INPUTS : (i + 1) * INPUTS, j * OUTPUTS : (j + 1) * OUTPUTS] = part
    return full


def draw(name):
    """Return x, a compact kernel, and a direction in which outputs are differentiated."""
    shape, taps, _, _ = LAYERS[name]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((*shape, 4 * INPUTS), np.float32)
    kernel = rng.standard_normal((3, *taps, 2 * INPUTS, OUTPUTS), np.float32)
    shape = jax.eval_shape(lambda: dense(name, x, with_zeros(kernel, INDEX))).shape
    return x, kernel, rng.standard_normal(shape, np.float32)


def dense(name, x, kernel):
    _, taps, strides, padding = LAYERS[name]
    if not taps:
        return x @ kernel
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)


@pytest.mark.parametrize(
    ("form", "platform"), [(by_columns, "cpu"), (by_columns, "gpu"), (by_patches, "gpu")]
)
@pytest.mark.parametrize("name", LAYERS)
def test_it_is_the_dense_product_with_zeros_and_so_are_its_gradients(
    name, form, platform, monkeypatch
):
    monkeypatch.setattr(products, "platform", lambda: platform)
    jax.clear_caches()  # of the other platform
    x, kernel, direction = draw(name)
    _, _, strides, padding = LAYERS[name]

    def run(x, kernel):
        y = form(x, kernel, jnp.array(INDEX), strides, tuple(padding))
        return (y * direction).sum(), y

    def expected(x, full):
        y = dense(name, x, full)
        return (y * direction).sum(), y

    @jax.jit
    def both(*args):
        ours, theirs = args[:2], (args[0], args[2])
        with_gradients = lambda f: jax.grad(f, (0, 1), has_aux=True)  # noqa: E731
        return with_gradients(run)(*ours), with_gradients(expected)(*theirs)

    ((d_x, d_kernel), y), ((d_x0, d_full), y0) = both(x, kernel, with_zeros(kernel, INDEX))
    assert y.shape == direction.shape
    np.testing.assert_allclose(y, y0, atol=1e-5)
    np.testing.assert_allclose(d_x, d_x0, atol=1e-5)
    mask = with_zeros(np.ones_like(kernel), INDEX)
    np.testing.assert_allclose(with_zeros(np.asarray(d_kernel), INDEX), mask * d_full, atol=1e-5)


@pytest.mark.parametrize("form", [by_columns, by_patches])
def test_bfloat16_sums_in_float32(form):
    """Products of bfloat16 numbers differ from exact ones by the rounding of the result alone."""
    x, kernel, direction = (jnp.asarray(a, jnp.bfloat16) for a in draw("3x3"))

    def run(x, kernel):
        y = form(x, kernel, jnp.array(INDEX), (1, 1), ((1, 1), (1, 1)))
        return (y * direction).sum(), y

    (_, d_kernel), y = jax.jit(jax.grad(run, (0, 1), has_aux=True))(x, kernel)
    assert (y.dtype, d_kernel.dtype) == (jnp.bfloat16, jnp.bfloat16)
    x, kernel, y = (np.asarray(a, np.float32) for a in (x, kernel, y))
    exact = dense("3x3", x, with_zeros(kernel, INDEX))
    np.testing.assert_allclose(y, exact, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize(("platform", "form"), [("cpu", by_columns), ("gpu", by_patches)])
def test_small_maps_are_patches_on_an_accelerator(platform, form, monkeypatch):
    monkeypatch.setattr(products, "platform", lambda: platform)
    x, kernel, _ = draw("3x3")
    args = (x, kernel, jnp.array(INDEX), (1, 1), ((1, 1), (1, 1)))
    assert str(jax.make_jaxpr(lambda *a: multiply_blocks(*a, *args[3:]))(*args[:3])) == str(
        jax.make_jaxpr(lambda *a: form(*a, *args[3:]))(*args[:3])
    )
