"""Compact networks: inactive blocks or channels are removed and cost nothing.

`compact_blocks` and `compact_channels` take masks that are known when the program is traced and
return a way to run the same network on compact parameters: smaller arrays, whose positions are
constants of the program (static slices and small dense products). Layers without structure are
computed as before, zeros included.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype

from sparsejax.models.chirodiff import Affine
from sparsejax.models.layers import GroupNorm, convolve

logger = logging.getLogger(__name__)

# Overhead of a product per input block, in output channels.
_OVERHEAD = 16


class CompactNetwork(NamedTuple):
    """A network without its inactive parts.

    Attributes:
      shrink: `shrink(params) -> compact`: the active part of a tree like params; may be traced.
      expand: `expand(compact, full) -> params`: numpy arrays of full shape. Inactive weights are
        zero; biases and scales of removed channels come from the tree `full`.
      prepare: `prepare(compact) -> ready`: kernels in the layout that the network multiplies with;
        call it once per program, not in a loop.
      bind: `bind(apply) -> apply` with the same arguments, on `ready` in place of params.
      masks: masks of compact trees: 0-d True, except where a layer stays masked.
      layers: names of the layers that became smaller.
    """

    shrink: Callable[..., Any]
    expand: Callable[..., Any]
    prepare: Callable[..., Any]
    bind: Callable[..., Any]
    masks: Any
    layers: tuple[str, ...]


def compact_blocks(masks, size):
    """Make the compact network of block-sparse convolutions and dense layers.

    Every output block is a product of its active input blocks; output blocks that read the same
    input blocks, or nearly, share a product.

    Args:
      masks: concrete masks, constant within blocks of `size` by `size` channels.
      size: side of a block, in channels.

    Returns:
      CompactNetwork. A compact kernel is [active blocks, ..., size, size], in C order of blocks.
    """
    grids, names = {}, _names(masks)
    for name, mask in names.items():
        # Recurrent kernels are read whole at every time step.
        if np.ndim(mask) < 2 or "_hh/" in name or "_ih/" in name:
            continue
        grid = _block_grid(np.asarray(mask), size)
        if grid is not None:
            grids[name] = grid
    left = [name for name, mask in names.items() if np.ndim(mask) and name not in grids]
    if left:
        logger.info("these layers stay masked at full size: %s", ", ".join(left))
    groups = {name: _share_products(grid, size) for name, grid in grids.items()}

    def shrink(params):
        return _map_named(lambda name, leaf: _shrink_blocks(leaf, grids.get(name), size), params)

    def expand(compact, full):
        del full
        return _map_named(lambda name, leaf: _expand_blocks(leaf, grids.get(name)), compact)

    def prepare(compact):
        def kernels(name, leaf):
            if name not in grids:
                return leaf
            return tuple(_group_kernel(leaf, grids[name], group) for group in groups[name])

        return _map_named(kernels, compact)

    def run_layer(next_method, args, kwargs, context):
        module = context.module
        name = "/".join((*module.path, "kernel"))
        if name not in grids or context.method_name != "__call__":
            return next_method(*args, **kwargs)
        (x,) = args
        kernels, bias = module.get_variable("params", "kernel"), _bias(module)
        x, bias, *kernels = promote_dtype(x, bias, *kernels, dtype=module.dtype)
        columns = {}
        for (rows, outputs), kernel in zip(groups[name], kernels, strict=True):
            product = _product(module, _take_blocks(x, rows, size), kernel)
            columns |= dict(zip(outputs, _runs(product, outputs, size), strict=True))
        return _lay_out(columns, grids[name].shape[1]) + bias

    compact_masks = _map_named(
        lambda name, mask: jnp.asarray(True) if name in grids else mask, masks
    )
    bind = functools.partial(_bind, run_layer)
    return CompactNetwork(shrink, expand, prepare, bind, compact_masks, tuple(grids))


def compact_channels(masks, groups):
    """Make the compact network of inactive channels: layers become narrower.

    Args:
      masks: concrete masks, made of whole units of `groups`.
      groups: `{name: [(path, axis, units, incoming), ...]}`, from `models.units`.

    Returns:
      CompactNetwork. A compact array has the active channels of each of its axes.
    """
    names = _names(masks)
    kept, widths = {}, {}  # path -> axis -> indices, path -> channels
    for members in groups.values():
        active = _active_units(names, members)
        for path, axis, units, _ in members:
            # A reader of several groups keeps, along one axis, what each of them keeps.
            ours, widths[path] = np.append(active, True)[units], len(units)
            before = kept.setdefault(path, {}).get(axis, np.ones(len(units), bool))
            kept[path][axis] = before & ours
    kept = {
        path: {axis: np.flatnonzero(ours) for axis, ours in axes.items()}
        for path, axes in kept.items()
    }

    def shrink(params):
        def leaf(name, x):
            for axis, indices in kept.get(name, {}).items():
                x = jnp.take(x, indices, axis=axis)
            return x

        return _map_named(leaf, params)

    def expand(compact, full):
        full = _names(full)

        def leaf(name, x):
            if name not in kept:
                return np.asarray(x)
            whole = np.array(full[name])
            if whole.ndim >= 2:
                whole[...] = 0
            axes = [kept[name].get(axis, np.arange(n)) for axis, n in enumerate(whole.shape)]
            whole[np.ix_(*axes)] = x
            return whole

        return _map_named(leaf, compact)

    def run_layer(next_method, args, kwargs, context):
        module = context.module
        prefix = "/".join(module.path)
        touched = any(f"{prefix}/{leaf}" in kept for leaf in ("kernel", "scale"))
        if not touched or context.method_name != "__call__":
            return next_method(*args, **kwargs)
        if isinstance(module, Affine):
            return module.get_variable("params", "kernel"), _bias(module)
        if isinstance(module, GroupNorm):
            return _narrow_norm(module, args[0], widths[f"{prefix}/scale"])
        kernel = module.get_variable("params", "kernel")
        x, kernel, bias = promote_dtype(*args, kernel, _bias(module), dtype=module.dtype)
        return _product(module, x, kernel) + bias

    compact_masks = jax.tree.map(lambda mask: jnp.asarray(True), masks)
    bind = functools.partial(_bind, run_layer)
    layers = tuple(name for name in kept if np.ndim(names[name]))
    return CompactNetwork(shrink, expand, lambda compact: compact, bind, compact_masks, layers)


def _bind(run_layer, apply):
    """Return `apply` with the layers run by an interceptor."""

    def bound(ready, *inputs, **options):
        with nn.intercept_methods(run_layer):
            return apply(ready, *inputs, **options)

    return bound


def _names(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(k, simple=True, separator="/"): leaf for k, leaf in leaves}


def _map_named(function, tree):
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(jax.tree_util.keystr(path, simple=True, separator="/"), leaf),
        tree,
    )


def _bias(module):
    return module.get_variable("params", "bias")


def _product(module, x, kernel):
    """Run a convolution or dense layer with a kernel of a different width."""
    if isinstance(module, nn.Dense):
        return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    strides, padding = (module.strides,) * 2, module.padding
    padding = [(padding,) * 2] * 2 if isinstance(padding, int) else list(padding)
    dimensions = ("NHWC", "HWIO", "NHWC")
    return convolve(x, kernel, strides, padding, dimension_numbers=dimensions)


def _block_grid(mask, size):
    """Return the booleans of a kernel's blocks, or None if it has no blocks or none is inactive."""
    rows, columns = mask.shape[-2] / size, mask.shape[-1] / size
    if not (rows.is_integer() and columns.is_integer()):
        return None
    parts = mask.reshape(-1, int(rows), size, int(columns), size)
    grid = parts[0, :, 0, :, 0]
    constant = (parts == grid[None, :, None, :, None]).all()
    return grid if constant and not grid.all() else None


def _share_products(grid, size):
    """Group output blocks that are computed together.

    Two groups are merged if the product over the union of their inputs is expected to cost less
    than both, the best pair first.

    Args:
      grid: booleans [input blocks, output blocks].
      size: channels of a block.

    Returns:
      List of `(input blocks, output blocks)`, tuples of ints; output blocks without input are in
      none of them.
    """
    groups = [(frozenset(np.flatnonzero(c)), (j,)) for j, c in enumerate(grid.T) if c.any()]

    def cost(rows, outputs):
        return len(rows) * (len(outputs) + _OVERHEAD / size)

    def gain(a, b):
        return cost(*a) + cost(*b) - cost(a[0] | b[0], a[1] + b[1])

    while len(groups) > 1:
        pairs = [(gain(a, b), i, j) for i, a in enumerate(groups) for j, b in enumerate(groups[:i])]
        best, i, j = max(pairs)
        if best <= 0:
            break
        merged = groups[i][0] | groups[j][0], groups[i][1] + groups[j][1]
        groups = [group for k, group in enumerate(groups) if k not in (i, j)] + [merged]
    return [(tuple(sorted(map(int, rows))), tuple(sorted(outputs))) for rows, outputs in groups]


def _shrink_blocks(leaf, grid, size):
    if grid is None:
        return leaf
    rows, columns = np.nonzero(grid)
    taps = leaf.shape[:-2]
    parts = leaf.reshape(-1, grid.shape[0], size, grid.shape[1], size)
    blocks = jnp.moveaxis(parts, (1, 3), (0, 1))[rows, columns]
    return blocks.reshape(len(rows), *taps, size, size)


def _expand_blocks(blocks, grid):
    blocks = np.asarray(blocks)
    if grid is None:
        return blocks
    taps, size = blocks.shape[1:-2], blocks.shape[-1]
    parts = np.zeros((*grid.shape, *blocks.shape[1:]), blocks.dtype)
    parts[np.nonzero(grid)] = blocks
    parts = np.moveaxis(parts, (0, 1), (-4, -2))
    return np.ascontiguousarray(parts).reshape(*taps, grid.shape[0] * size, -1)


def _group_kernel(blocks, grid, group):
    """Lay the blocks of one product side by side, zeros where the grid is False."""
    rows, outputs = group
    index = np.full(grid.shape, len(blocks))
    index[np.nonzero(grid)] = np.arange(len(blocks))
    index = index[np.ix_(rows, outputs)]
    if (index == len(blocks)).any():
        blocks = jnp.concatenate([blocks, jnp.zeros_like(blocks[:1])])
    kernel = jnp.moveaxis(blocks[index], (0, 1), (-4, -2))
    size = blocks.shape[-1]
    return kernel.reshape(*blocks.shape[1:-2], len(rows) * size, len(outputs) * size)


def _take_blocks(x, rows, size):
    """Take blocks of the last axis; adjacent ones are one slice."""
    if len(rows) * size == x.shape[-1]:
        return x
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    slices = [
        x[..., run[0] * size : (run[-1] + 1) * size] for run in np.split(np.array(rows), breaks)
    ]
    return slices[0] if len(slices) == 1 else jnp.concatenate(slices, axis=-1)


def _runs(product, outputs, size):
    return [product[..., i * size : (i + 1) * size] for i in range(len(outputs))]


def _lay_out(columns, count):
    """Concatenate output blocks; those without input are zero."""
    zeros = jnp.zeros_like(next(iter(columns.values())))
    return jnp.concatenate([columns.get(j, zeros) for j in range(count)], axis=-1)


def _active_units(masks, members):
    """Return which units of a group are active, read from the first of its kernels."""
    path, axis, units, _ = next(member for member in members if np.ndim(masks[member[0]]))
    mask = np.asarray(masks[path])
    by_index = mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis))
    active = np.zeros(units.max() + 1, bool)
    np.logical_or.at(active, units[units >= 0], by_index[units >= 0])
    return active


def _narrow_norm(module, x, width):
    """Run a GroupNorm some of whose groups were removed; `width`: its channels with all groups."""
    params = {"scale": module.get_variable("params", "scale"), "bias": _bias(module)}
    group_size = width // module.num_groups
    norm = GroupNorm(None, group_size, module.epsilon, module.dtype, parent=None)
    return norm.apply({"params": params}, x)
