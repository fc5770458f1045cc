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
from sparsejax.models.platform import platform
from sparsejax.types import Array

Strides: TypeAlias = tuple[int, int]
Pads: TypeAlias = Sequence[tuple[int, int]]  # (low, high) of height and width

_NO_PADS = ((0, 0), (0, 0))
_NUMBERS = ("NHWC", "HWIO", "NHWC")
_SMALL_MAPS = 4096  # positions of a batch


def multiply_blocks(
    x: Array,
    kernel: Array,
    index: Array,
    strides: Strides = (1, 1),
    padding: Pads = _NO_PADS,
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

    Returns:
      [batch, height / stride, width / stride, output blocks * outputs]; [..., output blocks *
      outputs] for a dense layer.
    """
    padding = tuple(padding)
    is_small = _is_plain(kernel, strides, padding) or x.size // x.shape[-1] <= _SMALL_MAPS
    form = by_patches if is_small and platform() != "cpu" else by_columns
    return form(x, kernel, index, strides, padding)


def _is_plain(kernel: Array, strides: Strides, padding: Pads) -> bool:
    """Return whether a layer is a product of its input as it is."""
    return kernel.shape[1:-2] in ((), (1, 1)) and strides == (1, 1) and padding == _NO_PADS


@functools.partial(jax.jit, static_argnums=(3, 4))
def by_columns(x: Array, kernel: Array, index: Array, strides: Strides, padding: Pads) -> Array:
    """Run one convolution or product per output block.

    Libraries run a narrow convolution nearly as fast as a product, and grouped ones slowly.

    Args:
      x: [batch, height, width, channels]; [..., channels] for a dense layer.
      kernel: see `multiply_blocks`.
      index: see `multiply_blocks`.
      strides: of height and width.
      padding: tuple of pairs (low, high) for height and width.

    Returns:
      See `multiply_blocks`.
    """
    count, width = index.shape[0], kernel.shape[-2]
    is_plain, lead = _is_plain(kernel, strides, padding), x.shape[:-1]
    if is_plain:  # as matrices: the gradients of other products transpose their operands in memory
        x, kernel = x.reshape(-1, x.shape[-1]), kernel.reshape(count, width, -1)
    blocks = x.reshape(*x.shape[:-1], -1, width // index.shape[1])
    columns = []
    # Split, not sliced: the derivative is one concatenation, and no sum of padded arrays.
    parts = jax.lax.split(kernel, [1] * count)
    for inputs, part in zip(_take_columns(blocks, index), parts, strict=True):
        if is_plain:
            columns.append(inputs @ part[0])
            continue
        pads = list(padding)
        columns.append(convolve(inputs, part[0], strides, pads, dimension_numbers=_NUMBERS))
    y = jnp.concatenate(columns, axis=-1)
    return y.reshape(*lead, -1) if is_plain else y


@functools.partial(jax.jit, static_argnums=(3, 4))
def by_patches(x: Array, kernel: Array, index: Array, strides: Strides, padding: Pads) -> Array:
    """Run one product of all patches, batched over output blocks.

    For plain products and small maps on accelerators, where one output block has too little to do.

    Args:
      x: [batch, height, width, channels]; [..., channels] for a dense layer.
      kernel: see `multiply_blocks`.
      index: see `multiply_blocks`.
      strides: of height and width.
      padding: tuple of pairs (low, high) for height and width.

    Returns:
      See `multiply_blocks`.
    """
    count, *taps, width, outputs = kernel.shape
    blocks = x.reshape(*x.shape[:-1], -1, width // index.shape[1])
    taken = _take(blocks, index)  # [..., count, active, inputs]
    if _is_plain(kernel, strides, padding):
        patches = taken.reshape(-1, count, width)
        y = jnp.einsum("njc,jcd->njd", patches, kernel.reshape(count, width, outputs))
        return y.reshape(*x.shape[:-1], count * outputs)
    taken = jnp.moveaxis(taken, -3, 0).reshape(count, *x.shape[:-1], width)
    taken = jnp.pad(taken, [(0, 0), (0, 0), *padding, (0, 0)])
    rows, columns = taps
    last = taken.shape[2] - rows + 1, taken.shape[3] - columns + 1  # exclusive
    parts = [
        taken[:, :, i : i + last[0] : strides[0], j : j + last[1] : strides[1]]
        for i in range(rows)
        for j in range(columns)
    ]
    shape = parts[0].shape[1:-1]
    patches = jnp.concatenate(parts, axis=-1).reshape(count, -1, rows * columns * width)
    y = jnp.einsum("jnc,jcd->njd", patches, kernel.reshape(count, -1, outputs))
    return y.reshape(*shape, count * outputs)


@jax.custom_vjp
def _take(blocks: Array, index: Array) -> Array:
    """Return the blocks [..., n, c] of an index [count, active]: [..., count, active, c].

    The derivative gathers too: the sum over output blocks of what each returns to an input block.
    That of `jnp.take` scatters, which is slow on accelerators.
    """
    return jnp.take(blocks, index, axis=-2, mode="clip")


def _take_forward(blocks: Array, index: Array) -> tuple[Array, tuple[Array, Array]]:
    return _take(blocks, index), (index, jnp.arange(blocks.shape[-2]))


def _take_backward(saved: tuple[Array, Array], d_taken: Array) -> tuple[Array, None]:
    index, inputs = saved
    count, active = index.shape
    is_taken = index[:, None, :] == inputs[:, None]  # [count, n, active]
    places = jnp.argmax(is_taken, axis=-1) + active * jnp.arange(count)[:, None]
    flat = d_taken.reshape(*d_taken.shape[:-3], count * active, -1)
    returned = jnp.take(flat, places, axis=-2, mode="clip")  # [..., count, n, c]
    zero = jnp.zeros((), d_taken.dtype)
    return jnp.where(is_taken.any(-1)[..., None], returned, zero).sum(-3), None


_take.defvjp(_take_forward, _take_backward)


@jax.custom_vjp
def _take_columns(blocks: Array, index: Array) -> tuple[Array, ...]:
    """Return the inputs of every output block, [..., active * c], from blocks [..., n, c].

    The derivative adds what an output block returns to the input blocks that it took, in place.
    """
    shape = (*blocks.shape[:-2], -1)
    return tuple(_take(blocks, one[None]).reshape(shape) for one in index)


def _take_columns_forward(
    blocks: Array, index: Array
) -> tuple[tuple[Array, ...], tuple[Array, Array]]:
    return _take_columns(blocks, index), (index, jnp.arange(blocks.shape[-2]))


def _take_columns_backward(
    saved: tuple[Array, Array], d_columns: tuple[Array, ...]
) -> tuple[Array, None]:
    index, inputs = saved
    lead, active = d_columns[0].shape[:-1], index.shape[1]
    width = d_columns[0].shape[-1] // active
    if platform() != "cpu":
        taken = [d_column.reshape(*lead, 1, active, width) for d_column in d_columns]
        pairs = zip(index, taken, strict=True)
        returned = [_take_backward((one[None], inputs), part)[0] for one, part in pairs]
        return functools.reduce(jnp.add, returned), None
    # Zeros made of an index, for every layer its own: constants are shared, and copied by each.
    zero = jnp.minimum(index[0, 0], 0).astype(d_columns[0].dtype)
    d_x = jnp.broadcast_to(zero, (*lead, len(inputs) * width))
    for one, d_column in zip(index, d_columns, strict=True):
        add = functools.partial(_add_block, index=one, d_column=d_column, width=width)
        d_x = jax.lax.fori_loop(0, active, add, d_x)  # unrolled it would compile for longer
    return d_x.reshape(*lead, len(inputs), width), None


def _add_block(i: Array, d_x: Array, index: Array, d_column: Array, width: int) -> Array:
    """Add the i-th block of a column's gradient to the input block that it was taken from."""
    part = jax.lax.dynamic_slice_in_dim(d_column, i * width, width, axis=-1)
    part += jax.lax.dynamic_slice_in_dim(d_x, index[i] * width, width, axis=-1)
    return jax.lax.dynamic_update_slice_in_dim(d_x, part, index[i] * width, axis=-1)


_take_columns.defvjp(_take_columns_forward, _take_columns_backward)
