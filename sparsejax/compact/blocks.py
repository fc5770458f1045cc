"""Compact networks of blocks, where every output block has as many active input blocks.

The indices of the active blocks are an array, traced or concrete: one program runs them all.
"""

import functools
import logging

import numpy as np

from sparsejax.compact.network import (
    CompactNetwork,
    Layer,
    TakesBlocks,
    add_bias,
    map_named,
    named,
    operands,
    replace_layers,
    smaller_layers,
    window,
)
from sparsejax.compact.products import multiply_blocks
from sparsejax.sparsity.blocks import BlockSize
from sparsejax.sparsity.compact_trees import block_trees
from sparsejax.types import Apply, Array, Indices, Params, Sparsities

logger = logging.getLogger(__name__)


def compact_blocks(
    params: Params,
    sparsities: Sparsities,
    size: BlockSize,
    takes_blocks: TakesBlocks = lambda name: True,
) -> CompactNetwork:
    """Return the compact network of convolutions and dense layers with blocks of constant fan-in.

    Args:
      params: pytree of arrays or `jax.ShapeDtypeStruct`.
      sparsities: of the layers, Python floats in the structure of params.
      size: of a block, see `sparsity.blocks.block_of`.
      takes_blocks: whether a kernel belongs to a layer that can be run on blocks, by its name; the
        others stay masked (see `network.is_plain`).

    Returns:
      CompactNetwork.
    """
    ours = map_named(lambda name, s: s if takes_blocks(name) else 0.0, sparsities)
    trees = block_trees(params, ours, size)
    layers = smaller_layers(trees, params)
    left = [name for name, s in named(sparsities).items() if s and name not in layers]
    if left:
        logger.info("these layers stay masked at full size: %s", ", ".join(left))
    return CompactNetwork(trees, bind_blocks, layers)


def bind_blocks(apply: Apply, indices: Indices) -> Apply:
    """Return `apply` on params whose kernels hold only their active blocks.

    Args:
      apply: runs a Flax network.
      indices: in the structure of params: active input blocks [output blocks, active] int32 of
        kernels [output blocks, ..., active * inputs, outputs]; 0-d for arrays of full shape.

    Returns:
      Function with the arguments of `apply`.
    """
    layers = {
        name.rpartition("/")[0]: functools.partial(_run_layer, index)
        for name, index in named(indices).items()
        if np.ndim(index)
    }
    return replace_layers(apply, layers)


def _run_layer(index: Array, module: Layer, x: Array) -> Array:
    x, kernel, bias = operands(module, x)
    return add_bias(multiply_blocks(x, kernel, index, *window(module, x)), bias)
