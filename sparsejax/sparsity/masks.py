"""The mask pytree: which weights can be sparse; drawing, applying and counting masks."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.sparsity.selection import select_top
from sparsejax.types import (
    Array,
    IsSparsifiable,
    KeyPath,
    Leaf,
    Masks,
    Params,
    PRNGKey,
    PyTree,
    Shape,
    Sparsities,
)

_DENSE_NAMES = ("bias", "scale", "offset", "embedding", "embeddings")


def path_name(path: KeyPath | str) -> str:
    """Join a pytree key path with slashes: `down/conv/kernel`. Strings pass unchanged.

    The last step of a flax nnx state, `.value`, is dropped: it doesn't name a parameter.
    """
    if isinstance(path, str):
        return path
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_sparsifiable(path: KeyPath | str, leaf: Leaf) -> bool:
    """Return whether a parameter can be sparse: a float array of two or more dimensions.

    Leaves stay dense if their path ends in `bias`, `scale`, `offset`, `embedding` or `embeddings`,
    or if they are really vectors: three or more dimensions, all but one of them 1, as in haiku's
    BatchNorm. Functions that use this predicate accept another one as `is_sparsifiable=`: equinox
    gives the weights of its `Embedding` the same name as those of its `Linear`.

    Args:
      path: key path of the leaf, as from `jax.tree_util.tree_flatten_with_path`, or its
        names joined by slashes.
      leaf: array or `jax.ShapeDtypeStruct`.

    Returns:
      bool.

    Examples:
      >>> is_sparsifiable("linear/weight", jnp.ones((4, 4)))
      True
      >>> is_sparsifiable("batch_norm/offset", jnp.ones((1, 1, 1, 4)))
      False
    """
    last_name = path_name(path).rsplit("/", 1)[-1]
    is_float = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    if not is_float or len(leaf.shape) < 2 or last_name in _DENSE_NAMES:
        return False
    return len(leaf.shape) == 2 or sum(length != 1 for length in leaf.shape) > 1


def target_active(size: int, sparsity: float) -> int:
    """Return the number of active weights in a layer of `size` weights with this sparsity.

    This is `size - floor(sparsity * size)`, in float64; at least one, since a sparsity below one
    never rounds the product up to `size`.
    """
    return size - int(sparsity * size)


def dense_masks(params: Params) -> Masks:
    """Return the masks of a dense model: a 0-d boolean True for every leaf of `params`.

    Args:
      params: pytree of arrays or `jax.ShapeDtypeStruct`.

    Returns:
      Masks of `params`.

    Examples:
      >>> dense_masks({"kernel": jnp.ones((4, 4))})
      {'kernel': Array(True, dtype=bool)}
    """
    return jax.tree.map(lambda _: jnp.asarray(True), params)


def random_masks(key: PRNGKey, params: Params, sparsities: Sparsities) -> Masks:
    """Draw a random topology with an exact number of active weights in every layer.

    Args:
      key: PRNG key. Equal keys and shapes give equal masks on every device.
      params: pytree of arrays or `jax.ShapeDtypeStruct`.
      sparsities: pytree of the same structure with Python floats in [0, 1), as the functions
        of `distributions` return; 0.0 leaves the layer dense.

    Returns:
      Masks: boolean arrays of the parameters' shapes; 0-d True where the sparsity is 0.0. Masks of
      arrays committed to devices, such as those of a mesh, have the sharding of these arrays.

    Raises:
      ValueError: a sparsity lies outside [0, 1).

    Examples:
      >>> params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
      >>> masks = random_masks(jax.random.key(0), params, {"kernel": 0.75, "bias": 0.0})
      >>> int(masks["kernel"].sum()), masks["bias"].ndim
      (4, 0)
    """
    paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    shapes, counts, shardings = [], [], []
    for (path, leaf), sparsity in zip(
        paths_and_leaves, _leaves_as(params, sparsities), strict=True
    ):
        if not 0.0 <= sparsity < 1.0:
            raise ValueError(f"sparsity of {path_name(path)} is {sparsity}; accepted: [0, 1)")
        shape = np.shape(leaf)
        shapes.append(shape if sparsity else None)
        counts.append(target_active(math.prod(shape), sparsity))
        shardings.append(_sharding_of(leaf) if sparsity else None)

    drawn = [None] * len(shapes)
    for indices in _by_devices(shardings):
        out = [shardings[i] for i in indices]
        draw = jax.jit(_draw_masks, static_argnums=(1, 2), out_shardings=out if any(out) else None)
        these = draw(key, indices, tuple(shapes[i] for i in indices), [counts[i] for i in indices])
        for index, mask in zip(indices, these, strict=True):
            drawn[index] = mask
    return jax.tree.unflatten(treedef, drawn)


def place_like(masks: Masks, params: Params) -> Masks:
    """Give full-shape masks the sharding of `params`, where these are committed to devices."""

    def place(mask: Array, param: Leaf) -> Array:
        sharding = _sharding_of(param)
        return jax.device_put(mask, sharding) if mask.ndim and sharding is not None else mask

    return jax.tree.map(place, masks, params)


def _leaves_as(params: Params, tree: PyTree) -> list[Leaf]:
    """Return the leaves of a tree with the structure of `params`."""
    structure: PyTree = jax.tree.structure(params)
    return structure.flatten_up_to(tree)


def _sharding_of(leaf: Leaf) -> jax.sharding.Sharding | None:
    """Return the sharding of an array committed to devices; None for any other leaf."""
    is_array = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    return leaf.sharding if is_array and leaf.committed else None


def _by_devices(shardings: Sequence[jax.sharding.Sharding | None]) -> list[tuple[int, ...]]:
    """Group indices by the devices of their arrays, since a program runs on one set of devices."""
    devices = [s and frozenset(s.device_set) for s in shardings]
    anywhere = next((these for these in devices if these), None)
    groups: dict[frozenset[jax.Device] | None, list[int]] = {}
    for index, these in enumerate(devices):
        groups.setdefault(these or anywhere, []).append(index)
    return [tuple(indices) for indices in groups.values()]


def _draw_masks(
    key: PRNGKey, indices: Sequence[int], shapes: Sequence[Shape | None], counts: Sequence[int]
) -> list[Array]:
    """Draw masks in one compiled function; a shape of None gives a 0-d mask."""
    return [
        jnp.asarray(True)
        if shape is None
        else select_top(jax.random.uniform(jax.random.fold_in(key, index), shape), count)
        for index, shape, count in zip(indices, shapes, counts, strict=True)
    ]


def apply_masks(params: Params, masks: Masks) -> Params:
    """Return `params` with exact zeros wherever the mask is False.

    A selection, not a product: a NaN in an inactive weight becomes zero.

    Args:
      params: pytree of arrays.
      masks: masks of `params`; a 0-d True keeps its leaf.

    Returns:
      Pytree of the same structure, shapes and dtypes.

    Examples:
      >>> masks = {"kernel": jnp.array([[True, False]]), "bias": jnp.asarray(True)}
      >>> params = {"kernel": jnp.array([[3.0, jnp.nan]]), "bias": jnp.ones(2)}
      >>> apply_masks(params, masks)["kernel"].tolist()
      [[3.0, 0.0]]
    """
    return jax.tree.map(lambda param, mask: jnp.where(mask, param, 0), params, masks)


def count_active(params: Params, masks: Masks) -> PyTree:
    """Count the active weights of each leaf; may be traced.

    Args:
      params: pytree of arrays, for their shapes.
      masks: masks of `params`.

    Returns:
      Pytree of int32 scalars.
    """
    return jax.tree.map(
        lambda param, mask: jnp.sum(jnp.broadcast_to(mask, param.shape), dtype=jnp.int32),
        params,
        masks,
    )


def pack_bits(masks: Masks) -> PyTree:
    """Pack masks into bits, eight weights per byte.

    Args:
      masks: masks.

    Returns:
      Pytree of uint8 arrays [ceil(weights / 8)], unused bits zero; 0-d masks as they are.

    Examples:
      >>> pack_bits({"kernel": jnp.array([[True, False], [False, False], [True, True]])})
      {'kernel': Array([140], dtype=uint8)}
    """
    return jax.tree.map(lambda mask: jnp.packbits(mask) if mask.ndim else mask, masks)


def unpack_bits(packed: PyTree, params: Params) -> Masks:
    """Unpack the masks that `pack_bits` packed.

    Args:
      packed: what `pack_bits` returned.
      params: pytree of arrays or `jax.ShapeDtypeStruct`, for their shapes.

    Returns:
      Masks of `params`.
    """

    def unpack(bits: Array, param: Leaf) -> Array:
        if bits.ndim == 0:
            return bits
        size = math.prod(param.shape)
        return jnp.unpackbits(bits, count=size).astype(bool).reshape(param.shape)

    return jax.tree.map(unpack, packed, params)


class LayerSummary(NamedTuple):
    """The number of weights, the number of active ones, and their share."""

    weights: int
    active: int
    density: float


class Summary(NamedTuple):
    """The result of `summarize`.

    Attributes:
      layers: `{path: LayerSummary}` of every leaf, dense ones included.
      sparsifiable: LayerSummary over the leaves that could be sparse, including layers that stay
        dense.
      total: LayerSummary over the whole tree.
    """

    layers: dict[str, LayerSummary]
    sparsifiable: LayerSummary
    total: LayerSummary


def summarize(
    params: Params, masks: Masks, *, is_sparsifiable: IsSparsifiable = is_sparsifiable
) -> Summary:
    """Count weights and active weights, per layer and in total.

    Args:
      params: pytree of arrays or `jax.ShapeDtypeStruct`.
      masks: masks of `params`.
      is_sparsifiable: predicate of path and leaf that selects the leaves counted in `sparsifiable`.

    Returns:
      Summary with Python numbers (one transfer from the device).

    Examples:
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> masks = {"kernel": jnp.eye(2, dtype=bool), "bias": jnp.asarray(True)}
      >>> summarize(params, masks).total
      LayerSummary(weights=6, active=4, density=0.6666666666666666)
    """
    paths_and_leaves = jax.tree_util.tree_leaves_with_path(params)
    mask_leaves = _leaves_as(params, masks)
    sums = jax.device_get([jnp.sum(mask) for mask in mask_leaves])
    layers, sparsifiable = {}, []
    for (path, leaf), mask, active in zip(paths_and_leaves, mask_leaves, sums, strict=True):
        name, weights = path_name(path), math.prod(np.shape(leaf))
        layers[name] = _layer_summary(weights, int(active) if mask.ndim else weights)
        if is_sparsifiable(path, leaf):
            sparsifiable.append(layers[name])
    return Summary(
        layers=layers,
        sparsifiable=_add_up(sparsifiable),
        total=_add_up(layers.values()),
    )


def _layer_summary(weights: int, active: int) -> LayerSummary:
    return LayerSummary(weights, active, active / weights if weights else 1.0)


def _add_up(layers: Iterable[LayerSummary]) -> LayerSummary:
    return _layer_summary(
        sum(layer.weights for layer in layers), sum(layer.active for layer in layers)
    )
