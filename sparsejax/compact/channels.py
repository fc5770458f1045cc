"""Compact networks of channels: narrower layers, which don't depend on what their channels were."""

from typing import cast

import flax.linen as nn

from sparsejax.compact.network import (
    CompactNetwork,
    Layer,
    RunLayer,
    replace_layers,
    smaller_layers,
)
from sparsejax.models.chirodiff import Affine
from sparsejax.models.layers import GroupNorm
from sparsejax.sparsity.channel_trees import channel_trees
from sparsejax.sparsity.channels import ChannelGroups
from sparsejax.types import Apply, Array, Indices, Input, Params, PyTree, Sparsities


def compact_channels(
    params: Params, sparsities: Sparsities, groups: ChannelGroups
) -> CompactNetwork | None:
    """Return the compact network of inactive channels.

    Args:
      params: pytree of arrays or `jax.ShapeDtypeStruct`.
      sparsities: `{group: share of units that are inactive}`.
      groups: `{group: [Member, ...]}`.

    Returns:
      CompactNetwork, whose `bind` ignores the indices; None if shapes would depend on which
      channels are active (see `sparsity.channel_trees`).
    """
    trees = channel_trees(groups, params, sparsities)
    if trees is None:
        return None

    def bind(apply: Apply, indices: Indices) -> Apply:
        del indices
        return bind_channels(apply, groups)

    return CompactNetwork(trees, bind, smaller_layers(trees, params))


def bind_channels(apply: Apply, groups: ChannelGroups) -> Apply:
    """Return `apply` on params that hold only the active channels.

    Args:
      apply: runs a Flax network.
      groups: `{group: [Member, ...]}`.

    Returns:
      Function with the arguments of `apply`.
    """
    members = [member for group in groups.values() for member in group]
    widths = {member.path: len(member.units) for member in members}
    layers: dict[str, RunLayer] = {}
    for path, width in widths.items():
        layer, _, leaf = path.rpartition("/")
        if leaf == "kernel":
            layers[layer] = _run_layer
        elif leaf == "scale":
            layers[layer] = _narrow_norm(width)
    return replace_layers(apply, layers)


def takes_channels(layer: Layer) -> bool:
    """Return whether a layer can be run with fewer channels.

    Args:
      layer: Flax module, bound or not.
    """
    if type(layer) is nn.Conv:
        return layer.feature_group_count == 1 and layer.mask is None
    return type(layer) in (nn.Dense, Affine, GroupNorm)


def _run_layer(module: Layer, *inputs: Input) -> PyTree:
    params = {name: module.get_variable("params", name) for name in ("kernel", "bias")}
    if isinstance(module, Affine):
        return params["kernel"], params["bias"]
    params = {name: leaf for name, leaf in params.items() if leaf is not None}
    narrow = module.clone(features=params["kernel"].shape[-1], parent=None, name=None)
    return narrow.apply({"params": params}, *inputs)


def _narrow_norm(width: int) -> RunLayer:
    """Run a GroupNorm some of whose groups were removed; `width`: its channels with all groups."""

    def run(module: Layer, x: Array) -> Array:
        params = {name: module.get_variable("params", name) for name in ("scale", "bias")}
        size = width // module.num_groups
        norm = GroupNorm(None, size, module.epsilon, module.dtype, parent=None)
        return cast(Array, norm.apply({"params": params}, x))

    return run
