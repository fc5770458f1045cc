"""Convert the weights of a DiT between the published layouts and parameter trees.

The reference of Peebles and Xie (2023) has our names; its queries, keys and values are one layer,
and its fixed position embedding is in the file. diffusers' `DiTTransformer2DModel` separates
queries, keys and values, and repeats the embedding of time and label in every block.
"""

import re
from collections.abc import Mapping

import numpy as np

from sparsejax.models import convert
from sparsejax.models.diffusers_config import check_keys, is_count, require_value
from sparsejax.models.dit import DiT, position_embedding
from sparsejax.types import NumpyArray, Params, StateDict, Value

_POSITIONS = "pos_embed"
_TABLE = "y_embedder.embedding_table.weight"
# Names of the reference and of diffusers.
_OUTER = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
_BLOCK = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
# In diffusers, beside `norm1.linear` of every block.
_EMBEDDERS = {
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}
_CONFIG_FIXED = {
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "norm_elementwise_affine": (False,),
    "norm_type": ("ada_norm_zero",),
    # Of Transformer2DModel, as which diffusers published DiTs before they had a class of their own.
    "attention_type": ("default",),
    "caption_channels": (None,),
    "cross_attention_dim": (None,),
    "double_self_attention": (False,),
    "interpolation_scale": (None, 1),
    "num_vector_embeds": (None,),
    "only_cross_attention": (False,),
    "use_additional_conditions": (None, False),
    "use_linear_projection": (False,),
}
_CONFIG_ARGUMENTS = {
    "attention_head_dim": 72,
    "in_channels": 4,
    "norm_eps": 1e-5,
    "num_attention_heads": 16,
    "num_embeds_ada_norm": 1000,
    "num_layers": 28,
    "out_channels": None,
    "patch_size": 2,
}
_CONFIG_NEUTRAL = ("dropout", "norm_num_groups", "sample_size", "upcast_attention")


def dit_from_torch(state_dict: Mapping[str, NumpyArray]) -> Params:
    """Convert the state dict of the reference's `DiT`.

    Args:
      state_dict: `{name: array}` in PyTorch's layout.

    Returns:
      `params` of `models.dit.DiT`.

    Raises:
      ValueError: an entry is neither a weight nor a bias, or the position embedding is another.

    Examples:
      >>> params = dit_from_torch({"blocks.0.attn.qkv.weight": np.zeros((12, 4))})
      >>> params["blocks_0"]["attn"]["qkv"]["kernel"].shape
      (4, 12)
    """
    named = dict(state_dict)
    positions = named.pop(_POSITIONS, None)
    if positions is not None and not _is_of_grid(np.asarray(positions)):
        raise ValueError(f"tensor {_POSITIONS!r} is not the fixed embedding of a square grid")
    table = named.pop(_TABLE, None)
    params = convert.unet_from_torch(named)
    if table is not None:
        params["y_embedder"] = {"embedding_table": {"embedding": np.asarray(table)}}
    return params


def _is_of_grid(positions: NumpyArray) -> bool:
    """Return whether an array [1, positions, channels] is the embedding of a square grid."""
    if positions.ndim != 3 or positions.shape[0] != 1 or positions.shape[2] % 4:
        return False
    grid = round(positions.shape[1] ** 0.5)
    if grid**2 != positions.shape[1]:
        return False
    ours = np.asarray(position_embedding(grid, positions.shape[2]))
    return bool(np.abs(ours - positions[0]).max(initial=0) <= 1e-4)


def dit_to_torch(params: Params, *, grid: int | None = None) -> StateDict:
    """Convert parameters, or masks of their shapes, to the layout of the reference's `DiT`.

    Args:
      params: tree of `models.dit.DiT`.
      grid: number of rows of patches; if given, the position embedding is among the result.

    Returns:
      `{name: array}`, numpy; the inverse of `dit_from_torch`, bit for bit.
    """
    rest = {name: tree for name, tree in params.items() if name != "y_embedder"}
    named = convert.unet_to_torch(rest)
    # Attention of the UNets that share these rules has 1x1 convolutions.
    named = {name: a[..., 0] if name.endswith("qkv.weight") else a for name, a in named.items()}
    if "y_embedder" in params:
        named[_TABLE] = np.asarray(params["y_embedder"]["embedding_table"]["embedding"])
    if grid is not None:
        dim = len(named["x_embedder.proj.bias"])
        named[_POSITIONS] = np.asarray(position_embedding(grid, dim))[None]
    return named


def dit_from_diffusers(state_dict: Mapping[str, NumpyArray]) -> Params:
    """Convert the state dict of diffusers' `DiTTransformer2DModel`.

    Args:
      state_dict: `{name: array}`.

    Returns:
      `params` of `models.dit.DiT`, without a table of labels if it is zero (`dit_to_diffusers`).

    Raises:
      ValueError: a tensor is missing or has no counterpart, or blocks embed time and label
        differently; names it.
    """
    outer = {theirs: ours for ours, theirs in _OUTER.items()}
    block = {theirs: ours for ours, theirs in _BLOCK.items()}
    embedders = {f"norm1.emb.{theirs}": ours for ours, theirs in _EMBEDDERS.items()}
    named: StateDict = {}
    for name, array in state_dict.items():
        if name == "pos_embed.pos_embed":
            named[_POSITIONS] = array
            continue
        module, _, leaf = name.rpartition(".")
        match = re.fullmatch(r"transformer_blocks\.(\d+)\.(.*)", module)
        inner = match[2] if match else ""
        if inner in embedders:
            ours = f"{embedders[inner]}.{leaf}"
            if ours in named and not np.array_equal(named[ours], array):
                raise ValueError(f"tensor {name!r} differs from that of another block")
        elif match and inner in block:
            ours = f"blocks.{match[1]}.{block[inner]}.{leaf}"
        elif match and re.fullmatch(r"attn1\.to_[qkv]", inner):
            if not inner.endswith("q"):
                continue
            parts = [name.replace("to_q", f"to_{part}") for part in "qkv"]
            missing = next((part for part in parts if part not in state_dict), None)
            if missing:
                raise ValueError(f"tensor {missing!r} is missing")
            ours, array = (
                f"blocks.{match[1]}.attn.qkv.{leaf}",
                np.concatenate([state_dict[part] for part in parts]),
            )
        elif module in outer:
            ours = f"{outer[module]}.{leaf}"
        else:
            raise ValueError(f"tensor {name!r} has no place in a DiTTransformer2DModel")
        named[ours] = array
    if _TABLE in named and not named[_TABLE].any():
        del named[_TABLE]
    return dit_from_torch(named)


def dit_to_diffusers(params: Params) -> StateDict:
    """Convert parameters, or masks, to the layout of diffusers' `DiTTransformer2DModel`.

    Args:
      params: tree of `models.dit.DiT`. A network without labels gets a table of zeros for one
        label: diffusers has no DiT without, and that label changes nothing.

    Returns:
      `{name: array}`, numpy; the inverse of `dit_from_diffusers`, bit for bit.
    """
    ours = dit_to_torch(params)
    if _TABLE not in ours:
        ours[_TABLE] = np.zeros((2, len(ours["x_embedder.proj.bias"])), np.float32)
    depth = sum(name.endswith("attn.qkv.bias") for name in ours)
    named: StateDict = {}
    for name, array in ours.items():
        module, _, leaf = name.rpartition(".")
        match = re.fullmatch(r"blocks\.(\d+)\.(.*)", module)
        if module in _EMBEDDERS:
            for i in range(depth):
                named[f"transformer_blocks.{i}.norm1.emb.{_EMBEDDERS[module]}.{leaf}"] = array
        elif match is None:
            named[f"{_OUTER[module]}.{leaf}"] = array
        elif match[2] == "attn.qkv":
            for part, piece in zip("qkv", np.split(array, 3), strict=True):
                named[f"transformer_blocks.{match[1]}.attn1.to_{part}.{leaf}"] = piece
        else:
            named[f"transformer_blocks.{match[1]}.{_BLOCK[match[2]]}.{leaf}"] = array
    return named


def dit_arguments(config: dict[str, Value]) -> dict[str, Value]:
    """Return the arguments of `models.dit.DiT` for a config of `DiTTransformer2DModel`.

    Args:
      config: content of config.json.

    Returns:
      `{name: value}` of every argument except `dtype` and `remat`.

    Raises:
      ValueError: our DiT doesn't support the network; names a key, its value and what is accepted.

    Examples:
      >>> dit_arguments({"num_layers": 2})["hidden_size"]
      1152
    """
    config = check_keys(
        config,
        "DiTTransformer2DModel",
        _CONFIG_FIXED,
        _CONFIG_ARGUMENTS,
        _CONFIG_NEUTRAL,
        former_name="Transformer2DModel",
    )
    given = config["norm_eps"]
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    require_value(is_number and 0 < given <= 1, "norm_eps", given, "numbers in (0, 1]")
    channels, given = config["in_channels"], config["out_channels"]
    accepted = f"None, {channels} (as in_channels), or {2 * channels}, with variances"
    require_value(given in (None, channels, 2 * channels), "out_channels", given, accepted)
    heads, head = config["num_attention_heads"], config["attention_head_dim"]
    accepted = f"whole numbers that make num_attention_heads ({heads}) times it a multiple of 4"
    require_value(is_count(head) and heads * head % 4 == 0, "attention_head_dim", head, accepted)
    return {
        "in_channels": channels,
        "patch_size": config["patch_size"],
        "hidden_size": heads * head,
        "depth": config["num_layers"],
        "num_heads": heads,
        "mlp_ratio": 4.0,
        "classes": config["num_embeds_ada_norm"],
        "learn_sigma": given == 2 * channels,
        "freq_shift": 1,
        "mlp_norm_eps": float(config["norm_eps"]),
    }


def dit_diffusers_config(model: DiT, sample_size: int) -> dict[str, Value]:
    """Return the config.json of the `DiTTransformer2DModel` that computes a DiT.

    Args:
      model: `models.dit.DiT`.
      sample_size: height and width of its input.

    Raises:
      ValueError: diffusers has no such DiT; names the argument.

    Examples:
      >>> config = dit_diffusers_config(DiT(freq_shift=1), 32)
      >>> config["num_attention_heads"], config["attention_head_dim"]
      (6, 64)
    """
    for argument, only in (("mlp_ratio", 4), ("freq_shift", 1)):
        value = getattr(model, argument)
        if value != only:
            raise ValueError(f"model.{argument} is {value}; accepted in diffusers: {only}")
    return {
        "_class_name": "DiTTransformer2DModel",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": model.hidden_size // model.num_heads,
        "dropout": 0.0,
        "in_channels": model.in_channels,
        "norm_elementwise_affine": False,
        "norm_eps": model.mlp_norm_eps,
        "norm_type": "ada_norm_zero",
        "num_attention_heads": model.num_heads,
        "num_embeds_ada_norm": model.classes or 1,
        "num_layers": model.depth,
        "out_channels": model.in_channels * (2 if model.learn_sigma else 1),
        "patch_size": model.patch_size,
        "sample_size": sample_size,
    }
