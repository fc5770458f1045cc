"""Blocks as units: groups of input channels by groups of output channels, with all taps.

A kernel [..., input channels, output channels] has a grid of units [input blocks, output blocks].
"""

from typing import TypeAlias

import jax.numpy as jnp

from sparsejax.types import Array, Leaf, Shape

BlockSize: TypeAlias = int | tuple[int, int]  # (inputs, outputs) in channels; one number: square


def block_of(shape: Shape, size: BlockSize) -> tuple[int, int] | None:
    """Return the block of a layer, (inputs, outputs) in channels.

    Args:
      shape: of a kernel [..., input channels, output channels].
      size: a number is used as it is; of a pair, the outputs are the most that are asked for: the
        layer has the largest divisor up to it that is a multiple of 8.

    Returns:
      Pair of ints, or None if the layer doesn't divide into such blocks.

    Example:
      >>> block_of((3, 3, 224, 672), (16, 64))
      (16, 56)
    """
    if len(shape) < 2:
        return None
    if isinstance(size, int):
        return (size, size) if shape[-2] % size == 0 and shape[-1] % size == 0 else None
    inputs, most = size
    widths = [width for width in range(8, most + 1, 8) if shape[-1] % width == 0]
    return (inputs, widths[-1]) if widths and shape[-2] % inputs == 0 else None


def fan_in_of(shape: Shape, size: BlockSize, sparsity: float) -> int | None:
    """Return the number of active input blocks of every output block, with constant fan-in.

    Args:
      shape: of a kernel [..., input channels, output channels].
      size: as for `block_of`.
      sparsity: of the layer.

    Returns:
      An int of at least 1; None if the layer has no blocks, or all of them are active.
    """
    block = block_of(shape, size)
    if block is None or not sparsity:
        return None
    rows = shape[-2] // block[0]
    fan_in = max(1, round((1 - sparsity) * rows))
    return fan_in if fan_in < rows else None


def pool(leaf: Array, size: BlockSize) -> Array:
    """Return the mean magnitude of every block; of every weight, if the layer has no blocks."""
    block = block_of(leaf.shape, size)
    if block is None:
        return jnp.abs(leaf)
    rows, columns = leaf.shape[-2] // block[0], leaf.shape[-1] // block[1]
    parts = jnp.abs(leaf).reshape(-1, rows, block[0], columns, block[1])
    return parts.mean((0, 2, 4), dtype=jnp.promote_types(leaf.dtype, jnp.float32))


def unit_mask(mask: Array, size: BlockSize) -> Array:
    """Return which blocks are active; the mask itself, if the layer has no blocks."""
    block = block_of(mask.shape, size)
    return (
        mask if block is None else mask.reshape(-1, *mask.shape[-2:])[0, :: block[0], :: block[1]]
    )


def spread(units: Array, leaf: Leaf, size: BlockSize) -> Array:
    """Return the full-shape mask of a layer; uses only the shape of `leaf`."""
    block = block_of(leaf.shape, size)
    if units.ndim == 0 or block is None:
        return units
    wide = jnp.repeat(jnp.repeat(units, block[0], axis=0), block[1], axis=1)
    return jnp.broadcast_to(wide, leaf.shape)
