"""Compact networks: inactive blocks or channels are removed and cost nothing.

`compact_blocks` and `compact_channels` take masks that are known when the program is traced and
return a way to run the same network on compact parameters: smaller arrays, whose positions are
constants of the program (static slices and small dense products). Layers without structure are
computed as before, zeros included.
"""

import functools
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype

from sparsejax.models.chirodiff import Affine
from sparsejax.models.layers import GroupNorm, convolve
from sparsejax.types import Apply, Array, Groups, Input, Leaf, Masks, NumpyArray, Params, PyTree

logger = logging.getLogger(__name__)

# Overhead of a product per input block, in output channels.
_OVERHEAD = 16

Layer: TypeAlias = Any  # a bound Flax module: `nn.Conv`, `nn.Dense`, GroupNorm or Affine
Product: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]  # input blocks, output blocks
_Shared: TypeAlias = tuple[frozenset[int], tuple[int, ...]]  # the same, while groups are joined


class CompactNetwork(NamedTuple):
    """A network without its inactive parts.

    Attributes:
      shrink: `shrink(params) -> compact`: the active part of a tree like params; may be traced.
      expand: `expand(compact, full) -> params`: numpy arrays of the shapes of the tree `full`, zero
        where inactive.
      prepare: `prepare(compact) -> ready`: kernels in the layout that the network multiplies with;
        call it once per program, not in a loop.
      bind: `bind(apply) -> apply` with the same arguments, on `ready` in place of params.
      masks: masks of compact trees: 0-d True, except where a layer stays masked.
      layers: names of the layers that became smaller.
    """

    shrink: Callable[[Params], Params]
    expand: Callable[[Params, Params], Params]
    prepare: Callable[[Params], PyTree]
    bind: Callable[[Apply], Apply]
    masks: Masks
    layers: tuple[str, ...]


def compact_blocks(masks: Masks, size: int) -> CompactNetwork:
    """Make the compact network of block-sparse convolutions and dense layers.

    Every output block is a product of its active input blocks; output blocks that read the same
    input blocks, or nearly, share a product.

    Args:
      masks: concrete masks, constant within blocks of `size` by `size` channels.
      size: side of a block, in channels.

    Returns:
      CompactNetwork. A compact kernel is [active blocks, ..., size, size], in C order of blocks.
    """
    grids: dict[str, NumpyArray] = {}
    names = _names(masks)
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
    groups = {name: share_products(grid, size) for name, grid in grids.items()}

    def shrink(params: Params) -> Params:
        return _map_named(lambda name, leaf: _shrink_blocks(leaf, grids.get(name), size), params)

    def expand(compact: Params, full: Params) -> Params:
        del full
        return _map_named(lambda name, leaf: _expand_blocks(leaf, grids.get(name)), compact)

    def prepare(compact: Params) -> PyTree:
        def kernels(name: str, leaf: Leaf) -> Leaf:
            if name not in grids:
                return leaf
            return tuple(_group_kernel(leaf, grids[name], group) for group in groups[name])

        return _map_named(kernels, compact)

    def run_layer(
        next_method: Callable[..., PyTree],
        args: tuple[Input, ...],
        kwargs: dict[str, Input],
        context: nn.module.InterceptorContext,
    ) -> PyTree:
        module = context.module
        name = "/".join((*module.path, "kernel"))
        if name not in grids or context.method_name != "__call__":
            return next_method(*args, **kwargs)
        (x,) = args
        stored: tuple[Array, ...] = module.get_variable("params", "kernel")
        x, bias, *kernels = promote_dtype(x, _bias(module), *stored, dtype=module.dtype)
        columns: dict[int, Array] = {}
        for (rows, outputs), kernel in zip(groups[name], kernels, strict=True):
            product = _product(module, _take_blocks(x, rows, size), kernel)
            columns |= dict(zip(outputs, _runs(product, outputs, size), strict=True))
        return _lay_out(columns, grids[name].shape[1]) + bias

    compact_masks = _map_named(
        lambda name, mask: jnp.asarray(True) if name in grids else mask, masks
    )
    bind = functools.partial(_bind, run_layer)
    return CompactNetwork(shrink, expand, prepare, bind, compact_masks, tuple(grids))


def compact_channels(masks: Masks, groups: Groups) -> CompactNetwork:
    """Make the compact network of inactive channels: layers become narrower.

    Args:
      masks: concrete masks, made of whole units of `groups`.
      groups: `{name: [(path, axis, units, incoming), ...]}`, from `models.units`.

    Returns:
      CompactNetwork. A compact array has the active channels of each of its axes.
    """
    names = _names(masks)
    kept, widths = _kept_channels(names, groups)

    def shrink(params: Params) -> Params:
        def leaf(name: str, x: Array) -> Array:
            for axis, indices in kept.get(name, {}).items():
                x = jnp.take(x, indices, axis=axis)
            return x

        return _map_named(leaf, params)

    def expand(compact: Params, full: Params) -> Params:
        full = _names(full)

        def leaf(name: str, x: Leaf) -> NumpyArray:
            if name not in kept:
                return np.asarray(x)
            whole = np.zeros(np.shape(full[name]), np.asarray(x).dtype)
            axes = [kept[name].get(axis, np.arange(n)) for axis, n in enumerate(whole.shape)]
            whole[np.ix_(*axes)] = x
            return whole

        return _map_named(leaf, compact)

    def run_layer(
        next_method: Callable[..., PyTree],
        args: tuple[Input, ...],
        kwargs: dict[str, Input],
        context: nn.module.InterceptorContext,
    ) -> PyTree:
        module = context.module
        prefix = "/".join(module.path)
        touched = any(f"{prefix}/{leaf}" in kept for leaf in ("kernel", "scale"))
        if not touched or context.method_name != "__call__":
            return next_method(*args, **kwargs)
        if isinstance(module, Affine):
            return module.get_variable("params", "kernel"), _bias(module)
        if isinstance(module, GroupNorm):
            return _narrow_norm(module, args[0], widths[f"{prefix}/scale"])
        stored: Array = module.get_variable("params", "kernel")
        x, kernel, bias = promote_dtype(*args, stored, _bias(module), dtype=module.dtype)
        return _product(module, x, kernel) + bias

    compact_masks = jax.tree.map(lambda mask: jnp.asarray(True), masks)
    bind = functools.partial(_bind, run_layer)
    layers = tuple(name for name in kept if np.ndim(names[name]) > 1)
    return CompactNetwork(shrink, expand, lambda compact: compact, bind, compact_masks, layers)


def _kept_channels(
    masks: Mapping[str, Leaf], groups: Groups
) -> tuple[dict[str, dict[int, NumpyArray]], dict[str, int]]:
    """Return the active indices of each array, by axis, and its number of channels."""
    active_at: dict[str, dict[int, NumpyArray]] = {}  # path -> axis -> booleans
    widths: dict[str, int] = {}
    for members in groups.values():
        active = _active_units(masks, members)
        for path, axis, units, _ in members:
            # A reader of several groups keeps, along one axis, what each of them keeps.
            ours, widths[path] = np.append(active, True)[units], len(units)
            before = active_at.setdefault(path, {}).get(axis, np.ones(len(units), bool))
            active_at[path][axis] = before & ours
    kept = {
        path: {axis: np.flatnonzero(ours) for axis, ours in axes.items()}
        for path, axes in active_at.items()
    }
    return kept, widths


def _bind(run_layer: Callable[..., PyTree], apply: Apply) -> Apply:
    """Return `apply` with the layers run by an interceptor."""

    def bound(ready: PyTree, *inputs: Input, **options: Input) -> PyTree:
        with nn.intercept_methods(run_layer):
            return apply(ready, *inputs, **options)

    return bound


def _names(tree: PyTree) -> dict[str, Leaf]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(k, simple=True, separator="/"): leaf for k, leaf in leaves}


def _map_named(function: Callable[[str, Leaf], Leaf], tree: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(jax.tree_util.keystr(path, simple=True, separator="/"), leaf),
        tree,
    )


def _bias(module: Layer) -> Array:
    return module.get_variable("params", "bias")


def _product(module: Layer, x: Array, kernel: Array) -> Array:
    """Run a convolution or dense layer with a kernel of a different width."""
    if isinstance(module, nn.Dense):
        return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    strides, padding = (module.strides,) * 2, module.padding
    padding = [(padding,) * 2] * 2 if isinstance(padding, int) else list(padding)
    dimensions = ("NHWC", "HWIO", "NHWC")
    return convolve(x, kernel, strides, padding, dimension_numbers=dimensions)


def _block_grid(mask: NumpyArray, size: int) -> NumpyArray | None:
    """Return the booleans of a kernel's blocks, or None if it has no blocks or none is inactive."""
    rows, columns = mask.shape[-2] / size, mask.shape[-1] / size
    if not (rows.is_integer() and columns.is_integer()):
        return None
    parts = mask.reshape(-1, int(rows), size, int(columns), size)
    grid = parts[0, :, 0, :, 0]
    constant = (parts == grid[None, :, None, :, None]).all()
    return grid if constant and not grid.all() else None


def share_products(grid: NumpyArray, size: int) -> list[Product]:
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
    groups: list[_Shared] = [
        (frozenset(np.flatnonzero(c).tolist()), (j,)) for j, c in enumerate(grid.T) if c.any()
    ]

    def cost(rows: Collection[int], outputs: Sequence[int]) -> float:
        return len(rows) * (len(outputs) + _OVERHEAD / size)

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


def _shrink_blocks(leaf: Array, grid: NumpyArray | None, size: int) -> Array:
    if grid is None:
        return leaf
    rows, columns = np.nonzero(grid)
    taps = leaf.shape[:-2]
    parts = leaf.reshape(-1, grid.shape[0], size, grid.shape[1], size)
    blocks = jnp.moveaxis(parts, (1, 3), (0, 1))[rows, columns]
    return blocks.reshape(len(rows), *taps, size, size)


def _expand_blocks(blocks: Leaf, grid: NumpyArray | None) -> NumpyArray:
    blocks = np.asarray(blocks)
    if grid is None:
        return blocks
    taps, size = blocks.shape[1:-2], blocks.shape[-1]
    parts = np.zeros((*grid.shape, *blocks.shape[1:]), blocks.dtype)
    parts[np.nonzero(grid)] = blocks
    parts = np.moveaxis(parts, (0, 1), (-4, -2))
    return np.ascontiguousarray(parts).reshape(*taps, grid.shape[0] * size, -1)


def _group_kernel(blocks: Array, grid: NumpyArray, group: Product) -> Array:
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


def _take_blocks(x: Array, rows: Sequence[int], size: int) -> Array:
    """Take blocks of the last axis; adjacent ones are one slice."""
    if len(rows) * size == x.shape[-1]:
        return x
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    slices = [
        x[..., run[0] * size : (run[-1] + 1) * size] for run in np.split(np.array(rows), breaks)
    ]
    return slices[0] if len(slices) == 1 else jnp.concatenate(slices, axis=-1)


def _runs(product: Array, outputs: Sequence[int], size: int) -> list[Array]:
    return [product[..., i * size : (i + 1) * size] for i in range(len(outputs))]


def _lay_out(columns: Mapping[int, Array], count: int) -> Array:
    """Concatenate output blocks; those without input are zero."""
    zeros = jnp.zeros_like(next(iter(columns.values())))
    return jnp.concatenate([columns.get(j, zeros) for j in range(count)], axis=-1)


def _active_units(
    masks: Mapping[str, Leaf], members: Sequence[tuple[str, int, NumpyArray, bool]]
) -> NumpyArray:
    """Return which units of a group are active, read from the first of its kernels."""
    path, axis, units, _ = next(member for member in members if np.ndim(masks[member[0]]))
    mask = np.asarray(masks[path])
    by_index: NumpyArray = np.any(mask, axis=tuple(i for i in range(mask.ndim) if i != axis))
    active = np.zeros(units.max() + 1, bool)
    np.logical_or.at(active, units[units >= 0], by_index[units >= 0])
    return active


def _narrow_norm(module: Layer, x: Array, width: int) -> Array:
    """Run a GroupNorm some of whose groups were removed; `width`: its channels with all groups."""
    params = {"scale": module.get_variable("params", "scale"), "bias": _bias(module)}
    group_size = width // module.num_groups
    norm = GroupNorm(None, group_size, module.epsilon, module.dtype, parent=None)
    return cast(Array, norm.apply({"params": params}, x))
