"""Channels that can be removed from a network without changing the rest of it.

A unit is a set of channels inside a block whose incoming and outgoing weights all belong to that
block, so a network without the unit is the same network, narrower in one place. All functions
return `{group: [(path, axis, units, incoming), ...]}`: index i of the array `path` along `axis`
belongs to unit `units[i]` (-1: none), and leads into the unit or out of it.
"""

import numpy as np

from sparsejax.types import Groups, Params


def unet_units(params: Params, norm_groups: int, num_head_channels: int) -> Groups:
    """Return the units of a Latent Diffusion UNet.

    Units are the groups of the second GroupNorm in residual blocks, since groups are normalized
    independently, and the heads in attention blocks.

    Args:
      params: params of `models.unet.UNet`, arrays or `jax.ShapeDtypeStruct`.
      norm_groups: number of groups of a GroupNorm.
      num_head_channels: channels per head.

    Returns:
      Groups, one per residual block and attention block.
    """
    groups: Groups = {}
    for block, layers in params.items():
        if "in_layers_2" in layers:
            width = layers["in_layers_2"]["kernel"].shape[-1]
            units = np.repeat(np.arange(norm_groups), width // norm_groups)
            groups[f"{block}/inner"] = [
                (f"{block}/in_layers_2/kernel", 3, units, True),
                (f"{block}/in_layers_2/bias", 0, units, True),
                (f"{block}/emb_layers_1/kernel", 1, units, True),
                (f"{block}/emb_layers_1/bias", 0, units, True),
                (f"{block}/out_layers_0/scale", 0, units, True),
                (f"{block}/out_layers_0/bias", 0, units, True),
                (f"{block}/out_layers_3/kernel", 2, units, False),
            ]
        elif "qkv" in layers:
            channels = layers["proj_out"]["kernel"].shape[0]
            heads = np.arange(channels // num_head_channels)
            groups[f"{block}/heads"] = [
                (f"{block}/qkv/kernel", 1, np.repeat(heads, 3 * num_head_channels), True),
                (f"{block}/qkv/bias", 0, np.repeat(heads, 3 * num_head_channels), True),
                (f"{block}/proj_out/kernel", 0, np.repeat(heads, num_head_channels), False),
            ]
    return groups


def dit_units(params: Params, head_channels: int) -> Groups:
    """Return the units of a DiT: the heads of each attention and the hidden units of each MLP.

    Args:
      params: params of `models.dit.DiT`, arrays or `jax.ShapeDtypeStruct`.
      head_channels: channels per head.

    Returns:
      Groups, two per block.
    """
    groups: Groups = {}
    for block in (name for name in params if name.startswith("blocks_")):
        channels = params[block]["attn"]["proj"]["kernel"].shape[0]
        heads = np.repeat(np.arange(channels // head_channels), head_channels)
        attention, mlp = f"{block}/attn", f"{block}/mlp"
        groups[f"{block}/heads"] = [
            (f"{attention}/qkv/kernel", 1, np.tile(heads, 3), True),
            (f"{attention}/qkv/bias", 0, np.tile(heads, 3), True),
            (f"{attention}/proj/kernel", 0, heads, False),
        ]
        hidden = np.arange(params[block]["mlp"]["fc1"]["kernel"].shape[1])
        groups[f"{block}/hidden"] = [
            (f"{mlp}/fc1/kernel", 1, hidden, True),
            (f"{mlp}/fc1/bias", 0, hidden, True),
            (f"{mlp}/fc2/kernel", 0, hidden, False),
        ]
    return groups


def bigru_units(params: Params) -> Groups:
    """Return the units of ChiroDiff's GRU: the hidden units of each layer and direction.

    Args:
      params: params of `models.chirodiff.BiGRUDenoiser`, arrays or `jax.ShapeDtypeStruct`.

    Returns:
      Groups, two per layer.
    """
    layers = sum(name.startswith("rnn_l") for name in params)
    directions = ("forward", "backward")
    groups: Groups = {}
    for i in range(layers):
        for place, direction in enumerate(directions):
            hidden = params[f"rnn_l{i}"][f"{direction}_hh"]["kernel"].shape[0]
            units, none = np.arange(hidden), np.full(hidden, -1)
            gates = np.tile(units, 3)
            after = np.concatenate([units, none] if place == 0 else [none, units])
            own = f"rnn_l{i}/{direction}"
            readers = [f"rnn_l{i + 1}/{d}_ih" for d in directions]
            groups[own] = [
                (f"{own}_ih/kernel", 1, gates, True),
                (f"{own}_ih/bias", 0, gates, True),
                (f"{own}_hh/kernel", 1, gates, True),
                (f"{own}_hh/bias", 0, gates, True),
                (f"{own}_hh/kernel", 0, units, False),
                *(
                    (f"{reader}/kernel", 0, after, False)
                    for reader in (readers if i + 1 < layers else ["out_proj"])
                ),
            ]
    return groups
