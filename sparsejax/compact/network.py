"""Compact networks: what is inactive is removed and costs nothing.

The network stays as it is; layers that became smaller are run by other functions, which read the
compact arrays. `blocks`, `channels` and `free_blocks` make the compact networks of each structure.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from sparsejax.models.layers import convolve
from sparsejax.sparsity.compact_trees import CompactTrees
from sparsejax.sparsity.masks import path_name
from sparsejax.types import Apply, Array, Indices, Input, Leaf, Params, PyTree

Layer: TypeAlias = Any  # a bound Flax module: `nn.Conv`, `nn.Dense`, GroupNorm or Affine
RunLayer: TypeAlias = Callable[..., PyTree]  # run(module, *inputs), in place of module(*inputs)


class CompactNetwork(NamedTuple):
    """A network without its inactive parts.

    Attributes:
      trees: how trees of params hold only what is active.
      bind: `bind(apply, indices) -> apply` with the same arguments, on compact params in place of
        params. The indices, from `trees`, are concrete or traced.
      layers: names of the layers that became smaller.
    """

    trees: CompactTrees
    bind: Callable[[Apply, Indices], Apply]
    layers: tuple[str, ...]


def replace_layers(apply: Apply, layers: Mapping[str, RunLayer]) -> Apply:
    """Return `apply` with other functions in place of some layers.

    Args:
      apply: runs a Flax network.
      layers: `{path of a module: run(module, *inputs)}`.

    Returns:
      Function with the arguments of `apply`.
    """

    def interceptor(
        next_method: Callable[..., PyTree],
        args: tuple[Input, ...],
        kwargs: dict[str, Input],
        context: nn.module.InterceptorContext,
    ) -> PyTree:
        run = layers.get("/".join(context.module.path))
        if run is None or context.method_name != "__call__":
            return next_method(*args, **kwargs)
        return run(context.module, *args, **kwargs)

    def bound(params: Params, *inputs: Input, **options: Input) -> PyTree:
        with nn.intercept_methods(interceptor):
            return apply(params, *inputs, **options)

    return bound


def operands(module: Layer, x: Array) -> tuple[Array, Array, Array]:
    """Return the input, kernel and bias of a layer in its computation dtype, whatever their shapes.

    Args:
      module: bound `nn.Conv` or `nn.Dense`.
      x: [..., channels].

    Returns:
      Tuple of x, kernel and bias.
    """
    kernel, bias = (module.get_variable("params", name) for name in ("kernel", "bias"))
    x, kernel, bias = promote_dtype(x, kernel, bias, dtype=module.dtype)
    return x, kernel, bias


def window(module: Layer) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Return the strides and the padding of a layer; those of a 1x1 convolution for `nn.Dense`."""
    if isinstance(module, nn.Dense):
        return (1, 1), [(0, 0)] * 2
    padding = module.padding
    padding = [(padding,) * 2] * 2 if isinstance(padding, int) else list(padding)
    return (module.strides,) * 2, padding


def multiply(module: Layer, x: Array, kernel: Array) -> Array:
    """Run a convolution or dense layer with a kernel of another width.

    Args:
      module: bound `nn.Conv` or `nn.Dense`.
      x: [..., channels].
      kernel: [..., channels, features].

    Returns:
      [..., features], without bias.
    """
    if isinstance(module, nn.Dense):
        return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    return convolve(x, kernel, *window(module), dimension_numbers=("NHWC", "HWIO", "NHWC"))


def smaller_layers(trees: CompactTrees, params: Params) -> tuple[str, ...]:
    """Return the names of the kernels that compact trees hold in smaller arrays.

    Args:
      trees: CompactTrees.
      params: pytree of arrays or `jax.ShapeDtypeStruct`.
    """
    masks = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bool_), params)
    compact = jax.eval_shape(trees.shrink, params, jax.eval_shape(trees.indices, masks))
    small = named(compact)
    return tuple(
        name
        for name, leaf in named(params).items()
        if len(leaf.shape) >= 2 and small[name].size < leaf.size
    )


def is_recurrent(name: str) -> bool:
    """Return whether an array belongs to a GRU, which reads kernels whole at every time step."""
    return "_hh/" in name or "_ih/" in name


def named(tree: PyTree) -> dict[str, Leaf]:
    """Return the leaves of a tree by name, `a/b/kernel`."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_named(function: Callable[[str, Leaf], Leaf], tree: PyTree) -> PyTree:
    """Map a function of name and leaf over a tree."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(path_name(path), leaf), tree
    )
