"""Blocks as units: groups of input channels by groups of output channels, with all taps.

A kernel [..., input channels, output channels] has a grid of units [input blocks, output blocks].
In a layer that doesn't divide into blocks, units are single weights, [weights]. With constant
fan-in, every output block (column of the grid) has the same number of active input blocks.
"""

import functools
import math
from typing import TypeAlias

import jax
import jax.numpy as jnp

from sparsejax.sparsity.masks import random_masks, target_active
from sparsejax.sparsity.selection import select_top_columns
from sparsejax.types import Array, Leaf, Params, PRNGKey, PyTree, Shape, Sparsities, Units

_TOLERANCE = 0.005  # of the active weights: no layer is moved away from what it asks for less

BlockSize: TypeAlias = int | tuple[int, int]  # (inputs, outputs) in channels; one number: square


def block_of(shape: Shape, size: BlockSize) -> tuple[int, int] | None:
    """Return the block of a layer, (inputs, outputs) in channels.

    Args:
      shape: of a kernel [..., input channels, output channels].
      size: a number is used as it is; of a pair, the outputs are the most that are asked for: the
        layer has the largest divisor up to it that is a multiple of 8.

    Returns:
      Pair of ints, or None if the layer doesn't divide into such blocks.

    Examples:
      >>> block_of((3, 3, 224, 672), (16, 64))
      (16, 56)
    """
    if len(shape) < 2:
        return None
    if isinstance(size, int):
        return (size, size) if shape[-2] % size == 0 and shape[-1] % size == 0 else None
    inputs, most = size
    widths = [width for width in range(8, min(most, shape[-1]) + 1, 8) if shape[-1] % width == 0]
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
    active = fan_in(rows, sparsity)
    return active if active < rows else None


def pool(leaf: Array, size: BlockSize) -> Array:
    """Return the mean magnitude of every block; of every weight, if the layer has no blocks.

    Args:
      leaf: kernel [..., input channels, output channels], or any other array.
      size: as for `block_of`.

    Returns:
      [input blocks, output blocks], at least float32; [weights] if the layer has no blocks.
    """
    block = block_of(leaf.shape, size)
    if block is None:
        return jnp.abs(leaf).reshape(-1)
    rows, columns = leaf.shape[-2] // block[0], leaf.shape[-1] // block[1]
    parts = jnp.abs(leaf).reshape(-1, rows, block[0], columns, block[1])
    return parts.mean((0, 2, 4), dtype=jnp.promote_types(leaf.dtype, jnp.float32))


def unit_mask(mask: Array, size: BlockSize) -> Array:
    """Return which blocks are active; which weights, if the layer has no blocks.

    Args:
      mask: full-shape mask, constant within blocks; or 0-d, which is returned unchanged.
      size: as for `block_of`.

    Returns:
      Booleans [input blocks, output blocks]; [weights] if the layer has no blocks.
    """
    block = block_of(mask.shape, size)
    if block is None:
        return mask.reshape(-1) if mask.ndim else mask
    return mask.reshape(-1, *mask.shape[-2:])[0, :: block[0], :: block[1]]


def spread(units: Array, leaf: Leaf, size: BlockSize) -> Array:
    """Return the full-shape mask of a layer, the inverse of `unit_mask`.

    Args:
      units: booleans, as `unit_mask` returns them.
      leaf: array or `jax.ShapeDtypeStruct` of the layer's shape.
      size: as for `block_of`.

    Returns:
      Booleans of the layer's shape; 0-d `units` unchanged.
    """
    if units.ndim == 0:
        return units
    block = block_of(leaf.shape, size)
    if block is None:
        return units.reshape(leaf.shape)
    wide = jnp.repeat(jnp.repeat(units, block[0], axis=0), block[1], axis=1)
    return jnp.broadcast_to(wide, leaf.shape)


def fan_in(input_blocks: int, sparsity: float) -> int:
    """Return the number of active input blocks of every output block: at least one.

    Args:
      input_blocks: number of input blocks of the layer.
      sparsity: of the layer, in [0, 1).
    """
    return max(1, round((1 - sparsity) * input_blocks))


def random_fan_in(key: PRNGKey, units: PyTree, sparsities: Sparsities) -> Units:
    """Draw a random topology in which all columns of a grid have the same number of active blocks.

    Args:
      key: PRNG key; that of each layer is folded in as in `masks.random_masks`.
      units: arrays, or `jax.ShapeDtypeStruct`: [input blocks, output blocks], or [weights] in
        layers without blocks, which are drawn by `random_masks`.
      sparsities: as for `random_masks`.

    Returns:
      Booleans of the shapes of `units`, with `fan_in(...)` active blocks in each column; 0-d True
      where the sparsity is 0.0.

    Raises:
      ValueError: a sparsity lies outside [0, 1).

    Examples:
      >>> grid = jax.ShapeDtypeStruct((8, 3), jnp.float32)
      >>> random_fan_in(jax.random.key(0), [grid], [0.75])[0].sum(0).tolist()
      [2, 2, 2]
    """

    def is_grid(leaf: Leaf, sparsity: float) -> bool:
        return len(leaf.shape) == 2 and 0.0 < sparsity < 1.0

    def draw(index: int, leaf: Leaf, sparsity: float, mask: Array) -> Array:
        if not is_grid(leaf, sparsity):
            return mask
        return _draw_columns(key, index, leaf.shape, fan_in(leaf.shape[0], sparsity))

    others = jax.tree.map(lambda leaf, s: 0.0 if is_grid(leaf, s) else s, units, sparsities)
    indices = jax.tree.unflatten(jax.tree.structure(units), range(len(jax.tree.leaves(units))))
    return jax.tree.map(draw, indices, units, sparsities, random_masks(key, units, others))


@functools.partial(jax.jit, static_argnums=2)
def _draw_columns(key: PRNGKey, index: int, shape: Shape, count: int) -> Array:
    scores = jax.random.uniform(jax.random.fold_in(key, index), shape)
    return select_top_columns(scores, count)


def fan_in_sparsities(params: Params, sparsities: Sparsities, size: BlockSize) -> Sparsities:
    """Round sparsities to what whole input blocks allow, all layers jointly.

    The fan-in k of a layer is its density times its input blocks, rounded down or up (largest
    remainder, in weights) so that the number of active weights of all layers is as near as possible
    to what is asked. It is at least 1; what that adds to some layers is taken from others.

    Args:
      params: pytree of arrays or `jax.ShapeDtypeStruct`.
      sparsities: sparsity asked of each layer, Python floats in the structure of `params`.
      size: of a block.

    Returns:
      Sparsities `1 - k / input blocks`; as asked in layers without blocks, and 0.0 where 0.0 is
      asked.

    Examples:
      >>> layers = {"a": jnp.ones((80, 8)), "b": jnp.ones((80, 8))}
      >>> fan_in_sparsities(layers, {"a": 0.75, "b": 0.75}, (8, 8))
      {'a': 0.7, 'b': 0.8}
    """
    leaves, structure = jax.tree.leaves(params), jax.tree.structure(params)
    asked = jax.tree.leaves(jax.tree.map(lambda _, s: s, params, sparsities))
    result, layers, missing = list(asked), [], 0.0
    for index, (leaf, sparsity) in enumerate(zip(leaves, asked, strict=True)):
        block, weights = block_of(leaf.shape, size), math.prod(leaf.shape)
        if not sparsity:
            continue
        if block is None:  # exact but for a weight
            missing += (1 - sparsity) * weights - target_active(weights, sparsity)
            continue
        rows = leaf.shape[-2] // block[0]
        layers.append((index, rows, weights / rows, (1 - sparsity) * rows))
    fan_ins = _round_jointly([layer[1:] for layer in layers], missing)
    for (index, rows, _, _), k in zip(layers, fan_ins, strict=True):
        result[index] = 1 - k / rows
    return jax.tree.unflatten(structure, result)


def _round_jointly(layers: list[tuple[int, float, float]], missing: float) -> list[int]:
    """Round numbers of input blocks so that active weights add up.

    Args:
      layers: of each the number of input blocks, the weights of one, and the number asked.
      missing: weights to make up for besides.
    """
    counts = [min(max(math.floor(asked + 1e-9), 1), rows) for rows, _, asked in layers]
    missing += sum(
        weights * (asked - k) for k, (_, weights, asked) in zip(counts, layers, strict=True)
    )
    tolerance = _TOLERANCE * sum(weights * asked for _, weights, asked in layers)
    while True:
        step = 1 if missing > 0 else -1
        near, far = [], []
        for i, (k, (rows, weights, asked)) in enumerate(zip(counts, layers, strict=True)):
            if not (1 <= k + step <= rows and abs(missing - step * weights) < abs(missing)):
                continue
            if abs(k + step - asked) < 1:
                near.append((step * weights * (asked - k), -i))
            elif missing < -tolerance:
                far.append((k / asked, -i))
        if not near and not far:
            return counts
        i = -max(near or far)[1]
        counts[i] += step
        missing -= step * layers[i][1]
