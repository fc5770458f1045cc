"""Compact networks: what is inactive is removed and costs nothing.

The network stays as it is; layers that became smaller are run by other functions, which read the
compact arrays. `blocks`, `channels` and `free_blocks` make the compact networks of each structure.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype

from sparsejax.models.convolutions import convolve
from sparsejax.sparsity.compact_trees import CompactTrees
from sparsejax.sparsity.masks import path_name
from sparsejax.types import Apply, Array, Indices, Input, Leaf, Params, PRNGKey, PyTree, Shape

Layer: TypeAlias = Any  # a bound Flax module: `nn.Conv`, `nn.Dense`, GroupNorm or Affine
RunLayer: TypeAlias = Callable[..., PyTree]  # run(module, *inputs), in place of module(*inputs)
TakesBlocks: TypeAlias = Callable[[str], bool]  # whether a layer can hold blocks, by kernel's name

# Attributes of `nn.Conv` and `nn.Dense` that a layer run by this package may set.
_HANDLED = frozenset(
    ("features", "kernel_size", "strides", "padding", "use_bias", "dtype", "param_dtype")
    + ("kernel_init", "bias_init", "conv_general_dilated", "parent", "name")
)


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


def find_layers(init: Callable[[PRNGKey], Params]) -> tuple[Params, dict[str, Layer]]:
    """Return the shapes of the params of a network, and its layers by path.

    Args:
      init: initializes the params of a Flax network, by running it.

    Returns:
      Tuple of params, `jax.ShapeDtypeStruct`, and `{path: module}`; of the modules, only attributes
      can be used. Convolutions of other inputs than images [batch, height, width, channels] are
      left out.
    """
    layers: dict[str, Layer] = {}

    def note(
        next_method: Callable[..., PyTree],
        args: tuple[Input, ...],
        kwargs: dict[str, Input],
        context: nn.module.InterceptorContext,
    ) -> PyTree:
        module = context.module
        of_images = not isinstance(module, nn.Conv) or jnp.ndim(args[0]) == 4
        if context.method_name == "__call__" and of_images:
            layers["/".join(module.path)] = module
        return next_method(*args, **kwargs)

    with nn.intercept_methods(note):
        # A function of its own: a trace that JAX has kept would call no layer.
        params = jax.eval_shape(lambda key: init(key), jax.random.key(0))
    return params, layers


def is_plain(layer: Layer, shape: Shape) -> bool:
    """Return whether a layer is a convolution or dense layer that this package can run by itself.

    Args:
      layer: `nn.Conv` or `nn.Dense`, or any other module; of it, only attributes are used.
      shape: of its kernel in the params, which has more dimensions if layers are stacked.
    """
    if len(shape) != {nn.Conv: 4, nn.Dense: 2}.get(type(layer)):
        return False
    named = getattr(layer, "padding", "SAME") in ("SAME", "VALID")
    padded = named or not isinstance(layer.padding, str)
    convolved = getattr(layer, "conv_general_dilated", None) in (None, convolve)
    others = (field for field in dataclasses.fields(layer) if field.name not in _HANDLED)
    return padded and convolved and all(getattr(layer, f.name) == f.default for f in others)


def operands(module: Layer, x: Array) -> tuple[Array, Array, Array | None]:
    """Return the input, kernel and bias of a layer in its computation dtype, whatever their shapes.

    Args:
      module: bound `nn.Conv` or `nn.Dense`.
      x: [..., channels].

    Returns:
      Tuple of x, kernel and bias; None for a layer without bias.
    """
    kernel, bias = (module.get_variable("params", name) for name in ("kernel", "bias"))
    x, kernel, bias = promote_dtype(x, kernel, bias, dtype=module.dtype)
    return x, kernel, bias


def add_bias(y: Array, bias: Array | None) -> Array:
    """Return `y + bias`; `y` without a bias."""
    return y if bias is None else y + bias


def window(module: Layer, x: Array) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Return the strides and the padding of a layer; those of a 1x1 convolution for `nn.Dense`.

    Args:
      module: plain layer.
      x: its input, [batch, height, width, channels] for a convolution.
    """
    if isinstance(module, nn.Dense):
        return (1, 1), [(0, 0)] * 2
    rows, columns = np.broadcast_to(module.strides or 1, 2).tolist()
    padding = module.padding
    if isinstance(padding, str):
        size = tuple(module.kernel_size)
        pads = jax.lax.padtype_to_pads(x.shape[1:3], size, (rows, columns), padding)
    else:
        sides = [padding] * 2 if isinstance(padding, int) else padding
        pads = [(side, side) if isinstance(side, int) else tuple(side) for side in sides]
    return (rows, columns), list(pads)


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
    return convolve(x, kernel, *window(module, x), dimension_numbers=("NHWC", "HWIO", "NHWC"))


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


def named(tree: PyTree) -> dict[str, Leaf]:
    """Return the leaves of a tree by name, `a/b/kernel`."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_named(function: Callable[[str, Leaf], Leaf], tree: PyTree) -> PyTree:
    """Map a function of name and leaf over a tree."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(path_name(path), leaf), tree
    )
