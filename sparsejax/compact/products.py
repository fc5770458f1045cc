"""The product of a layer that holds blocks: y[j] = sum over i of x[index[j, i]] kernel[j, i].

Every output block j has as many active input blocks, so shapes say nothing of where these lie:
`index` is an array like any other. The form that is fastest depends on the platform; all give the
same numbers.
"""

import functools
from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp

from sparsejax.models.convolutions import convolve
from sparsejax.types import Array

Strides: TypeAlias = tuple[int, int]
Pads: TypeAlias = Sequence[tuple[int, int]]  # (low, high) of height and width

_NO_PADS = ((0, 0), (0, 0))


def multiply_blocks(
    x: Array,
    kernel: Array,
    index: Array,
    strides: Strides = (1, 1),
    padding: Pads = _NO_PADS,
    *,
    platform: str | None = None,
) -> Array:
    """Run a convolution or dense layer on its active blocks.

    Layers of equal shapes compile once: the product is jitted by itself.

    Args:
      x: [batch, height, width, channels]; [..., channels] for a dense layer.
      kernel: [output blocks, height, width, active * inputs, outputs], in the dtype of x; without
        height and width for a dense layer. `inputs` and `outputs` are those of a block, `active`
        is the number of active input blocks of every output block.
      index: the active input blocks, [output blocks, active] int32.
      strides: of height and width.
      padding: pairs (low, high) for height and width.
      platform: name of the platform that the form is for (default: that of JAX's default backend).

    Returns:
      [batch, height / stride, width / stride, output blocks * outputs]; [..., output blocks *
      outputs] for a dense layer.
    """
    form = _by_columns if (platform or jax.default_backend()) == "cpu" else _block_major
    return form(x, kernel, index, strides, tuple(padding))


@functools.partial(jax.jit, static_argnums=(3, 4))
def _by_columns(x: Array, kernel: Array, index: Array, strides: Strides, padding: Pads) -> Array:
    """Run one convolution per output block, and what is a plain product as one batched product.

    Libraries on CPUs run a convolution as fast as a product, and batched ones slowly.
    """
    count, width = index.shape[0], kernel.shape[-2]
    blocks = x.reshape(*x.shape[:-1], -1, width // index.shape[1])
    is_plain = kernel.shape[1:-2] in ((), (1, 1)) and strides == (1, 1) and padding == _NO_PADS
    if is_plain:
        taken = jnp.take(blocks, index, axis=-2, mode="clip").reshape(-1, count, width)
        y = jnp.einsum("njc,jcd->njd", taken, kernel.reshape(count, width, -1))
        return y.reshape(*x.shape[:-1], -1)
    columns = []
    # Split, not sliced: the derivative is one concatenation, and no sum of padded arrays.
    for one, part in zip(index, jax.lax.split(kernel, [1] * count), strict=True):
        taken = jnp.take(blocks, one, axis=-2, mode="clip").reshape(*x.shape[:-1], width)
        numbers = ("NHWC", "HWIO", "NHWC")
        columns.append(convolve(taken, part[0], strides, list(padding), dimension_numbers=numbers))
    return jnp.concatenate(columns, axis=-1)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _block_major(x: Array, kernel: Array, index: Array, strides: Strides, padding: Pads) -> Array:
    """Gather contiguous blocks, and run one product per tap, batched over output blocks.

    Matrix units need few large products; the sum over taps is at least float32.
    """
    if kernel.ndim == 3:
        flat = x.reshape(-1, 1, 1, x.shape[-1])
        y = _block_major(flat, kernel[:, None, None], index, (1, 1), _NO_PADS)
        return y.reshape(*x.shape[:-1], -1)
    (count, active), (_, rows, columns, width, outputs) = index.shape, kernel.shape
    x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
    batch, height, width_x, _ = x.shape
    blocks = jnp.moveaxis(x.reshape(*x.shape[:-1], -1, width // active), -2, 0)
    taken = jnp.take(blocks, index, axis=0, mode="clip")  # [count, active, batch, ...]
    taken = jnp.moveaxis(taken, 1, -2).reshape(count, *x.shape[:-1], width)
    last = height - rows + 1, width_x - columns + 1  # exclusive
    total = jnp.float32(0)
    for i in range(rows):
        for j in range(columns):
            tap = taken[:, :, i : i + last[0] : strides[0], j : j + last[1] : strides[1]]
            shape = tap.shape[1:-1]
            total = total + _batched_product(tap.reshape(count, -1, width), kernel[:, i, j])
    y = jnp.moveaxis(total.astype(x.dtype), 0, 1)  # [positions, count, outputs]
    return y.reshape(*shape, count * outputs)


@jax.custom_vjp
def _batched_product(x: Array, kernel: Array) -> Array:
    """Return x [j, n, c] times kernel [j, c, d], [j, n, d], at least float32.

    Both products of the derivative, too, take operands of x's dtype: automatic differentiation
    would multiply float32 by bfloat16, without the matrix units of bfloat16.
    """
    return _einsum("jnc,jcd->jnd", x, kernel)


def _einsum(formula: str, a: Array, b: Array) -> Array:
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.einsum(formula, a, b, preferred_element_type=wide)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _batched_product(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
    x, kernel = saved
    d_y = d_y.astype(x.dtype)
    d_x = _einsum("jnd,jcd->jnc", d_y, kernel)
    return d_x.astype(x.dtype), _einsum("jnc,jnd->jcd", x, d_y).astype(kernel.dtype)


_batched_product.defvjp(_forward, _backward)
