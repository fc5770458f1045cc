"""Convolutions, channels last, in the form that is fastest where they run.

XLA hands convolutions and products to a library on a CPU, but not all: those with zeros between the
entries of an operand, or with axes in another order inside of a loop, it computes itself, and one
takes up to 100 times as long. So their gradients are written here as plain convolutions.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp

from sparsejax.models.platform import platform
from sparsejax.types import Array, Input

Pads: TypeAlias = Sequence[tuple[int, int]]  # (low, high) of height and width

_NUMBERS = ("NHWC", "HWIO", "NHWC")
_LARGEST = 2**18  # numbers of x in a product that sums over positions: more leave the cache
_MOST_PARTS = 8  # such products of a layer: each takes time to compile


def convolve(
    x: Array,
    kernel: Array,
    window_strides: Sequence[int],
    padding: str | Pads,
    **options: Input,
) -> Array:
    """Convolve like `lax.conv_general_dilated`, by matrix products where they are faster.

    Where the maps of a batch have fewer positions than channels, the kernel is the larger operand,
    and the gradients of a convolution transpose it in memory: those of a product of patches don't,
    and 3x3 convolutions of 4x4 maps take half the time on a CPU. For maps smaller than the window,
    XLA swaps image and kernel, which yields a convolution that no library optimizes: those of 2x2
    maps take 25 to 80 times as long as products of patches. A 1x1 window is a dense layer.

    Args:
      x: [batch, height, width, channels].
      kernel: [height, width, channels, features].
      window_strides: pair of ints.
      padding: pairs (low, high) for height and width.
      **options: other arguments of `lax.conv_general_dilated`.

    Returns:
      [batch, height / stride, width / stride, features].
    """
    if isinstance(padding, str) or not _is_plain(x, kernel, options):
        return jax.lax.conv_general_dilated(x, kernel, window_strides, padding, **options)
    batch, height, width, channels = x.shape
    rows, columns = kernel.shape[:2]
    is_small = height < rows and width < columns or rows == columns == 1
    if is_small or batch * height * width <= channels:
        return _multiply_patches(x, kernel, window_strides, padding)
    if platform() == "cpu":
        return _on_cpu(window_strides, padding)(x, kernel)
    return _convolve(x, kernel, padding, window_strides)


def _is_plain(x: Array, kernel: Array, options: dict[str, Input]) -> bool:
    """Return whether a convolution has neither dilation nor groups, nor anything else special."""
    for name, value in options.items():
        if name in ("lhs_dilation", "rhs_dilation"):
            is_default = value is None or all(factor == 1 for factor in value)
        else:
            is_default = name == "dimension_numbers" or value in (None, 1)
        if not is_default:
            return False
    return x.ndim == 4 and kernel.shape[2] == x.shape[-1]


def _convolve(x: Array, kernel: Array, padding: Pads, strides: Sequence[int] = (1, 1)) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_NUMBERS)


def _multiply_patches(x: Array, kernel: Array, strides: Sequence[int], padding: Pads) -> Array:
    rows, columns, channels, features = kernel.shape
    x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
    down, right = strides
    height, width = (x.shape[1] - rows) // down + 1, (x.shape[2] - columns) // right + 1
    bottom, end = down * (height - 1) + 1, right * (width - 1) + 1
    taps = [
        x[:, i : i + bottom : down, j : j + end : right]
        for i in range(rows)
        for j in range(columns)
    ]
    patches = jnp.concatenate(taps, axis=-1).reshape(-1, rows * columns * channels)
    return (patches @ kernel.reshape(-1, features)).reshape(len(x), height, width, features)


def _on_cpu(strides: Sequence[int], padding: Pads) -> Callable[[Array, Array], Array]:
    """Return a convolution of x and kernel whose gradients are plain convolutions."""

    @jax.custom_vjp
    def run(x: Array, kernel: Array) -> Array:
        return _convolve(x, kernel, padding, strides)

    def forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
        return run(x, kernel), (x, kernel)

    def backward(saved: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
        x, kernel = saved
        whole = [x.shape[i + 1] + sum(padding[i]) - kernel.shape[i] + 1 for i in (0, 1)]
        d_y = _between_zeros(d_y, strides, whole)
        return _input_gradient(kernel, padding, d_y), _kernel_gradient(x, padding, d_y)

    run.defvjp(forward, backward)
    return run


def _between_zeros(d_y: Array, strides: Sequence[int], lengths: Sequence[int]) -> Array:
    """Return the gradient of all positions, from that of every `stride`-th."""
    edges = [
        (0, length - stride * (n - 1) - 1, stride - 1)
        for n, stride, length in zip(d_y.shape[1:3], strides, lengths, strict=True)
    ]
    return jax.lax.pad(d_y, jnp.zeros((), d_y.dtype), [(0, 0, 0), *edges, (0, 0, 0)])


def _input_gradient(kernel: Array, padding: Pads, d_y: Array) -> Array:
    rest = [
        (size - 1 - low, size - 1 - high)
        for size, (low, high) in zip(kernel.shape[:2], padding, strict=True)
    ]
    return _convolve(d_y, jnp.swapaxes(kernel[::-1, ::-1], 2, 3), rest)


def _kernel_gradient(x: Array, padding: Pads, d_y: Array) -> Array:
    """Convolve x with the gradient: channels stand where examples were, examples where channels."""
    parts = max(1, min(x.size // _LARGEST, len(x), _MOST_PARTS))
    products = [
        _convolve(images.transpose(3, 1, 2, 0), maps.transpose(1, 2, 0, 3), padding)
        for images, maps in zip(jnp.array_split(x, parts), jnp.array_split(d_y, parts), strict=True)
    ]
    return functools.reduce(jnp.add, products).transpose(1, 2, 0, 3)
