"""Compact networks of blocks that lie anywhere: how many there are differs between output blocks.

Shapes depend on where the active blocks are, so masks have to be concrete and stay as they are:
their positions are constants of the program (static slices and small dense products).
"""

import functools
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.compact.network import (
    CompactNetwork,
    Layer,
    TakesBlocks,
    add_bias,
    map_named,
    multiply,
    named,
    operands,
    replace_layers,
)
from sparsejax.sparsity.blocks import BlockSize, block_of
from sparsejax.sparsity.compact_trees import CompactTrees
from sparsejax.types import Apply, Array, Indices, Leaf, Masks, NumpyArray, PyTree

logger = logging.getLogger(__name__)

# Overhead of a product per input block, in output channels.
_OVERHEAD = 16

Product: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]  # input blocks, output blocks
_Shared: TypeAlias = tuple[frozenset[int], tuple[int, ...]]  # the same, while groups are joined


def compact_free_blocks(
    masks: Masks, size: BlockSize, takes_blocks: TakesBlocks = lambda name: True
) -> CompactNetwork:
    """Return the compact network of block-sparse convolutions and dense layers.

    Every output block is a product of its active input blocks; output blocks that read the same
    input blocks, or nearly, share a product.

    Args:
      masks: concrete masks, constant within blocks.
      size: of a block, see `sparsity.blocks.block_of`.
      takes_blocks: as for `blocks.compact_blocks`.

    Returns:
      CompactNetwork with indices (). A compact kernel is [active blocks, ..., inputs, outputs], in
      C order of blocks.
    """
    names = named(masks)
    grids = _block_grids({k: v for k, v in names.items() if takes_blocks(k)}, size)
    left = [name for name, mask in names.items() if np.ndim(mask) and name not in grids]
    if left:
        logger.info("these layers stay masked at full size: %s", ", ".join(left))
    layers = {
        name.rpartition("/")[0]: functools.partial(
            _run_layer, grid, share_products(grid, names[name].shape[-1] // grid.shape[1])
        )
        for name, grid in grids.items()
    }

    def bind(apply: Apply, indices: Indices) -> Apply:
        del indices
        return replace_layers(apply, layers)

    return CompactNetwork(_compact_trees(masks, grids), bind, tuple(grids))


def has_fan_in(masks: Masks, size: BlockSize) -> bool:
    """Return whether masks consist of blocks, as many in every output block of a layer.

    Args:
      masks: concrete masks.
      size: of a block, see `sparsity.blocks.block_of`.
    """
    leaves = [np.asarray(mask) for mask in jax.tree.leaves(masks)]
    grids = [_block_grid(mask, size) for mask in leaves if block_of(mask.shape, size)]
    return all(grid is not None and len(set(grid.sum(0))) == 1 for grid in grids)


def _block_grids(masks: Mapping[str, Leaf], size: BlockSize) -> dict[str, NumpyArray]:
    """Return the grids of the layers that can be smaller, by name."""
    found = {name: _block_grid(np.asarray(mask), size) for name, mask in masks.items()}
    return {name: grid for name, grid in found.items() if grid is not None and not grid.all()}


def _compact_trees(masks: Masks, grids: Mapping[str, NumpyArray]) -> CompactTrees:
    def shrink(tree: PyTree, indices: Indices) -> PyTree:
        del indices
        return map_named(lambda name, leaf: _shrink(leaf, grids.get(name)), tree)

    def expand(compact: PyTree, indices: Indices) -> PyTree:
        del indices
        return map_named(lambda name, leaf: _expand(leaf, grids.get(name)), compact)

    def compact_masks(masks: Masks) -> Masks:
        return map_named(lambda name, mask: jnp.asarray(True) if name in grids else mask, masks)

    full = masks
    return CompactTrees(
        indices=lambda masks: (),
        spread=lambda indices, masks: full,
        shrink=shrink,
        expand=expand,
        move=lambda compact, fresh, old, new: compact,
        masks=compact_masks,
    )


def _block_grid(mask: NumpyArray, size: BlockSize) -> NumpyArray | None:
    """Return the booleans of a kernel's blocks, or None if it doesn't consist of blocks."""
    block = block_of(mask.shape, size)
    if block is None:
        return None
    rows, columns = mask.shape[-2] // block[0], mask.shape[-1] // block[1]
    parts = mask.reshape(-1, rows, block[0], columns, block[1])
    grid = parts[0, :, 0, :, 0]
    return grid if (parts == grid[None, :, None, :, None]).all() else None


def _shrink(leaf: Array, grid: NumpyArray | None) -> Array:
    if grid is None:
        return leaf
    (rows, columns), taps = grid.shape, leaf.shape[:-2]
    inputs, outputs = leaf.shape[-2] // rows, leaf.shape[-1] // columns
    parts = jnp.moveaxis(leaf.reshape(-1, rows, inputs, columns, outputs), (1, 3), (0, 1))
    return parts[np.nonzero(grid)].reshape(-1, *taps, inputs, outputs)


def _expand(blocks: Array, grid: NumpyArray | None) -> Array:
    if grid is None:
        return blocks
    parts = jnp.zeros((*grid.shape, *blocks.shape[1:]), blocks.dtype)
    parts = jnp.moveaxis(parts.at[np.nonzero(grid)].set(blocks), (0, 1), (-4, -2))
    inputs, outputs = blocks.shape[-2:]
    return parts.reshape(*blocks.shape[1:-2], grid.shape[0] * inputs, grid.shape[1] * outputs)


def _run_layer(grid: NumpyArray, products: Sequence[Product], module: Layer, x: Array) -> Array:
    x, blocks, bias = operands(module, x)
    columns: dict[int, Array] = {}
    for rows, outputs in products:
        taken = _take_blocks(x, rows, blocks.shape[-2])
        product = multiply(module, taken, _kernel(blocks, grid, (rows, outputs)))
        columns |= dict(zip(outputs, jnp.split(product, len(outputs), axis=-1), strict=True))
    # Output blocks without input are zero.
    zeros = jnp.zeros_like(next(iter(columns.values())))
    parts = [columns.get(j, zeros) for j in range(grid.shape[1])]
    return add_bias(jnp.concatenate(parts, axis=-1), bias)


def share_products(grid: NumpyArray, width: int) -> list[Product]:
    """Group output blocks that are computed together.

    Two groups are merged if the product over the union of their inputs is expected to cost less
    than both, the best pair first.

    Args:
      grid: booleans [input blocks, output blocks].
      width: output channels of a block.

    Returns:
      List of `(input blocks, output blocks)`, tuples of ints; output blocks without input are in
      none of them.
    """
    groups: list[_Shared] = [
        (frozenset(np.flatnonzero(c).tolist()), (j,)) for j, c in enumerate(grid.T) if c.any()
    ]

    def cost(rows: Collection[int], outputs: Sequence[int]) -> float:
        return len(rows) * (len(outputs) + _OVERHEAD / width)

    def gain(a: _Shared, b: _Shared) -> float:
        return cost(*a) + cost(*b) - cost(a[0] | b[0], a[1] + b[1])

    while len(groups) > 1:
        pairs = [(gain(a, b), i, j) for i, a in enumerate(groups) for j, b in enumerate(groups[:i])]
        best, i, j = max(pairs)
        if best <= 0:
            break
        merged = groups[i][0] | groups[j][0], groups[i][1] + groups[j][1]
        groups = [group for k, group in enumerate(groups) if k not in (i, j)] + [merged]
    return [(tuple(sorted(map(int, rows))), tuple(sorted(outputs))) for rows, outputs in groups]


def _kernel(blocks: Array, grid: NumpyArray, product: Product) -> Array:
    """Lay the blocks of one product side by side, zeros where the grid is False."""
    rows, outputs = product
    index = np.full(grid.shape, len(blocks))
    index[np.nonzero(grid)] = np.arange(len(blocks))
    index = index[np.ix_(rows, outputs)]
    if (index == len(blocks)).any():
        blocks = jnp.concatenate([blocks, jnp.zeros_like(blocks[:1])])
    kernel = jnp.moveaxis(blocks[index], (0, 1), (-4, -2))
    taps, (inputs, width) = blocks.shape[1:-2], blocks.shape[-2:]
    return kernel.reshape(*taps, len(rows) * inputs, len(outputs) * width)


def _take_blocks(x: Array, rows: Sequence[int], size: int) -> Array:
    """Take blocks of the last axis; adjacent ones are one slice."""
    if len(rows) * size == x.shape[-1]:
        return x
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    slices = [
        x[..., run[0] * size : (run[-1] + 1) * size] for run in np.split(np.array(rows), breaks)
    ]
    return slices[0] if len(slices) == 1 else jnp.concatenate(slices, axis=-1)
