"""Compact trees: what is active, and nothing else, in arrays whose shapes never change.

Every output block of a layer reads the same number of input blocks (constant fan-in), so where they
lie is data and not part of a program: a topology update moves entries and compiles nothing.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from sparsejax.sparsity import blocks
from sparsejax.sparsity.blocks import BlockSize, block_of, fan_in_of
from sparsejax.types import Array, Indices, Leaf, Masks, Params, PyTree, Shape, Sparsities


class CompactMasks(NamedTuple):
    """The masks of compact trees.

    Attributes:
      indices: where the active units are (see `CompactTrees`).
      masks: in the structure of params: 0-d True, except for layers that have no units.
      lost: number of weights, int32 scalar, of which the full-shape masks said something else, in
        all topology updates so far: 0 unless a method changed the number of active units of an
        output block or of a group of channels.
    """

    indices: Indices
    masks: Masks
    lost: Array


class CompactTrees(NamedTuple):
    """How trees of params hold only what is active.

    All functions are pure and may be traced. Trees are params, gradients, moments, EMA. Indices
    tell where the active units are, in ascending order, int32.

    Attributes:
      indices: `indices(masks) -> indices` of full-shape masks.
      spread: `spread(indices, masks) -> masks`, full-shape, from those of compact trees.
      masks: `masks(masks) -> masks` of compact trees, from full-shape ones: 0-d True, except for
        layers that have no units, whose masks are unchanged.
      shrink: `shrink(tree, indices) -> compact tree`, in the structure of params.
      expand: `expand(compact, indices) -> tree` of full shapes, zero where inactive.
      move: `move(compact, fresh, old, new) -> compact` at the new indices; entries that weren't
        active before come from `fresh`, which is at the new indices.
    """

    indices: Callable[[Masks], Indices]
    spread: Callable[[Indices, Masks], Masks]
    masks: Callable[[Masks], Masks]
    shrink: Callable[[PyTree, Indices], PyTree]
    expand: Callable[[PyTree, Indices], PyTree]
    move: Callable[[PyTree, PyTree, Indices, Indices], PyTree]


class _Layer(NamedTuple):
    """A kernel [*taps, rows * inputs, columns * outputs] with `fan_in` blocks in each column."""

    shape: Shape
    inputs: int
    outputs: int
    fan_in: int

    @property
    def rows(self) -> int:
        return self.shape[-2] // self.inputs

    @property
    def columns(self) -> int:
        return self.shape[-1] // self.outputs

    @property
    def taps(self) -> int:
        return math.prod(self.shape[:-2])


_Entry: TypeAlias = _Layer | None  # None: the layer is held as it is


def block_trees(params: Params, sparsities: Sparsities, size: BlockSize) -> CompactTrees:
    """Return the compact trees of blocks with constant fan-in.

    Indices are a tree like params: int32 [output blocks, fan-in], and a 0-d True for layers that
    are held as they are. A compact kernel is [output blocks, *taps, fan-in * inputs, outputs].

    Args:
      params: pytree of arrays or `jax.ShapeDtypeStruct`.
      sparsities: sparsity of each layer, in the structure of params.
      size: of a block, as for `structure.block`.

    Returns:
      CompactTrees.

    Examples:
      >>> params = {"kernel": jnp.arange(16.0).reshape(4, 4)}
      >>> trees = block_trees(params, {"kernel": 0.5}, 2)
      >>> indices = {"kernel": jnp.array([[0], [1]])}  # the blocks on the diagonal
      >>> trees.shrink(params, indices)["kernel"].tolist()
      [[[0.0, 1.0], [4.0, 5.0]], [[10.0, 11.0], [14.0, 15.0]]]
    """

    def layer(leaf: Leaf, sparsity: float) -> _Entry:
        block, fan_in = block_of(leaf.shape, size), fan_in_of(leaf.shape, size, sparsity)
        if block is None or fan_in is None:
            return None
        return _Layer(tuple(leaf.shape), *block, fan_in)

    treedef: PyTree = jax.tree.structure(params)
    flat_sparsities = treedef.flatten_up_to(sparsities)
    layers = [layer(*pair) for pair in zip(jax.tree.leaves(params), flat_sparsities, strict=True)]

    def map_layers(function: Callable[..., Array], *trees: PyTree) -> PyTree:
        """Map over compact layers; of the others, the leaf of the first tree is kept."""
        leaves = [treedef.flatten_up_to(tree) for tree in trees]
        mapped = [
            these[0] if layer is None else function(layer, *these)
            for layer, *these in zip(layers, *leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, mapped)

    def indices(masks: Masks) -> Indices:
        found = treedef.flatten_up_to(masks)
        return jax.tree.unflatten(
            treedef,
            [
                jnp.array(True) if layer is None else _indices(layer, blocks.unit_mask(mask, size))
                for layer, mask in zip(layers, found, strict=True)
            ],
        )

    def spread(indices: Indices, masks: Masks) -> Masks:
        def leaf(layer: _Layer, mask: Array, index: Array) -> Array:
            del mask
            units = jnp.any(index[:, :, None] == jnp.arange(layer.rows), axis=1).T
            return blocks.spread(units, jax.ShapeDtypeStruct(layer.shape, bool), size)

        return map_layers(leaf, masks, indices)

    def compact_masks(masks: Masks) -> Masks:
        return map_layers(lambda layer, mask: jnp.array(True), masks)

    return CompactTrees(
        indices,
        spread,
        compact_masks,
        lambda tree, indices: map_layers(_shrink, tree, indices),
        lambda compact, indices: map_layers(_expand, compact, indices),
        lambda compact, fresh, old, new: map_layers(_move, compact, fresh, old, new),
    )


def _indices(layer: _Layer, units: Array) -> Array:
    order = jnp.argsort(~units, axis=0, stable=True)  # active rows first
    return order[: layer.fan_in].T.astype(jnp.int32)


def _parts(layer: _Layer, kernel: Array) -> Array:
    """Return a compact kernel as [output blocks, taps, fan-in, inputs, outputs]."""
    return kernel.reshape(layer.columns, layer.taps, layer.fan_in, layer.inputs, layer.outputs)


def _whole(layer: _Layer, parts: Array) -> Array:
    """Return the compact kernel of `_parts`."""
    lengths = (layer.fan_in * layer.inputs, layer.outputs)
    return parts.reshape(layer.columns, *layer.shape[:-2], *lengths)


def _shrink(layer: _Layer, leaf: Array, index: Array) -> Array:
    grid = (layer.taps, layer.rows, layer.inputs, layer.columns, layer.outputs)
    columns = jnp.arange(layer.columns)[:, None]
    parts = leaf.reshape(grid)[:, index, :, columns, :]  # [columns, fan-in, taps, ...]
    return _whole(layer, jnp.swapaxes(parts, 1, 2))


def _expand(layer: _Layer, kernel: Array, index: Array) -> Array:
    grid = (layer.taps, layer.rows, layer.inputs, layer.columns, layer.outputs)
    columns = jnp.arange(layer.columns)[:, None]
    parts = jnp.swapaxes(_parts(layer, kernel), 1, 2)
    zeros = jnp.zeros(grid, kernel.dtype)
    return zeros.at[:, index, :, columns, :].set(parts, unique_indices=True).reshape(layer.shape)


def _move(layer: _Layer, kernel: Array, fresh: Array, old: Array, new: Array) -> Array:
    same = new[:, :, None] == old[:, None, :]  # [columns, new, old]
    place, was_active = jnp.argmax(same, axis=2), jnp.any(same, axis=2)
    moved = jnp.take_along_axis(_parts(layer, kernel), place[:, None, :, None, None], axis=2)
    parts = jnp.where(was_active[:, None, :, None, None], moved, _parts(layer, fresh))
    return _whole(layer, parts)


def compact_masks(trees: CompactTrees, masks: Masks) -> CompactMasks:
    """Return the masks of compact trees, from full-shape ones."""
    indices, ours = trees.indices(masks), trees.masks(masks)
    pairs = zip(*map(jax.tree.leaves, (trees.spread(indices, ours), masks)), strict=True)
    lost = sum((jnp.sum(held != mask, dtype=jnp.int32) for held, mask in pairs), jnp.int32(0))
    return CompactMasks(indices, ours, lost)


def spread_masks(trees: CompactTrees, masks: CompactMasks) -> Masks:
    """Return the full-shape masks of compact trees."""
    return trees.spread(masks.indices, masks.masks)


def tree_masks(masks: Masks | CompactMasks) -> Masks:
    """Return the masks of the arrays of a tree, whether it is compact or of full shape."""
    return masks.masks if isinstance(masks, CompactMasks) else masks
