"""Convert weights between the layout of Hugging Face diffusers and parameter trees.

`UNet2DModel` (with DownBlock2D, AttnDownBlock2D and their like) and `VQModel` or `AutoencoderKL`
hold the layers of CompVis Latent Diffusion under other names: each pair of functions here renames
them and leaves the rest to `models.convert`. Besides names, UNet2DModel differs in that queries,
keys and values are separate, and that attention uses linear layers instead of convolutions.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sparsejax.models import convert
from sparsejax.models.diffusers_config import check_diffusers_config as check_diffusers_config
from sparsejax.models.diffusers_config import unet_diffusers_config as unet_diffusers_config
from sparsejax.types import NumpyArray, Params, Shape, StateDict

_TIME = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"}
_TIME["label_emb"] = "class_embedding"
_RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
# diffusers has no layer `to_qkv`: `_merge_qkv` creates it and `_split_qkv` undoes that.
_QKV_ATTENTION = {"norm": "group_norm", "qkv": "to_qkv", "proj_out": "to_out.0"}

_AUTOENCODER_BLOCK = {name: name for name in ("norm1", "conv1", "norm2", "conv2")}
_AUTOENCODER_BLOCK["nin_shortcut"] = "conv_shortcut"
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}

_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def unet_from_diffusers(state_dict: Mapping[str, NumpyArray], num_head_channels: int) -> Params:
    """Convert the state dict of diffusers' `UNet2DModel`.

    Args:
      state_dict: `{name: array}`; attention layers may have their current names (to_q, ...) or
        those of older published files (query, key, value, proj_attn).
      num_head_channels: channels per attention head, `attention_head_dim` in config.json.

    Returns:
      `params` of `models.unet.UNet`.

    Raises:
      ValueError: a tensor has no counterpart in `models.unet.UNet`, or channels can't be split into
        such heads; names the tensor.

    Examples:
      >>> params = unet_from_diffusers({"conv_in.weight": np.zeros((32, 3, 3, 3))}, 32)
      >>> params["input_blocks_0_0"]["kernel"].shape
      (3, 3, 3, 32)
    """
    state_dict = _merge_qkv(_renew_attention(state_dict), num_head_channels)
    levels, blocks = _count_blocks(state_dict, r"down_blocks\.", r"down_blocks\.0\.resnets\.")
    attends = [f"down_blocks.{i}.attentions.0.to_qkv.weight" in state_dict for i in range(levels)]
    modules = {ours: name for name, ours in _unet_modules(levels, blocks, attends).items()}
    renamed = _rename(state_dict, modules, "diffusers UNet2DModel")
    is_linear = re.compile(r"\.(qkv|proj_out)\.weight$").search
    return convert.unet_from_torch(
        {name: array[..., None] if is_linear(name) else array for name, array in renamed.items()}
    )


def unet_to_diffusers(params: Params, num_head_channels: int) -> StateDict:
    """Convert parameters, or masks of their shapes, to the layout of diffusers' `UNet2DModel`.

    Args:
      params: tree of `models.unet.UNet`.
      num_head_channels: attribute of the UNet.

    Returns:
      `{name: array}`, numpy, with the current names of attention layers; the inverse of
      `unet_from_diffusers`, bit for bit.

    Raises:
      ValueError: a tensor doesn't belong to a `models.unet.UNet`; names it.
    """
    state_dict = convert.unet_to_torch(params)
    levels = 1 + sum(name.endswith(".op.weight") for name in state_dict)
    (outputs,) = _count_blocks(state_dict, r"output_blocks\.")
    blocks = outputs // levels - 1
    attends = [
        f"input_blocks.{1 + i * (blocks + 1)}.1.qkv.weight" in state_dict for i in range(levels)
    ]
    renamed = _rename(state_dict, _unet_modules(levels, blocks, attends), "UNet")
    is_linear = re.compile(r"\.(to_qkv|to_out\.0)\.weight$").search
    squeezed = {name: a[..., 0] if is_linear(name) else a for name, a in renamed.items()}
    return _split_qkv(squeezed, num_head_channels)


def autoencoder_from_diffusers(state_dict: Mapping[str, NumpyArray]) -> Params:
    """Convert the state dict of diffusers' `VQModel` or `AutoencoderKL`.

    Args:
      state_dict: `{name: array}`; see `unet_from_diffusers`.

    Returns:
      `params` of a model of `models.autoencoder`.

    Raises:
      ValueError: a tensor has no counterpart in `models.autoencoder`; names it.

    Examples:
      >>> name = "encoder.mid_block.attentions.0.query.weight"
      >>> params = autoencoder_from_diffusers({name: np.zeros((64, 64))})
      >>> params["encoder"]["mid"]["attn_1"]["q"]["kernel"].shape
      (1, 1, 64, 64)
    """
    state_dict = _renew_attention(state_dict)
    counts = _count_blocks(
        state_dict, r"encoder\.down_blocks\.", r"encoder\.down_blocks\.0\.resnets\."
    )
    modules = {ours: name for name, ours in _autoencoder_modules(*counts).items()}
    renamed = _rename(state_dict, modules, "diffusers VQModel or AutoencoderKL")
    is_attention = re.compile(r"\.attn_1\.(q|k|v|proj_out)\.weight$").search
    return convert.autoencoder_from_torch(
        {
            name: a.reshape(*a.shape[:2], 1, 1) if is_attention(name) else a
            for name, a in renamed.items()
        }
    )


def autoencoder_to_diffusers(params: Params) -> StateDict:
    """Convert parameters to the layout of diffusers' `VQModel` or `AutoencoderKL`.

    Args:
      params: tree of a model of `models.autoencoder`.

    Returns:
      `{name: array}`, numpy; the inverse of `autoencoder_from_diffusers`, bit for bit.

    Raises:
      ValueError: a tensor doesn't belong to a model of `models.autoencoder`; names it.
    """
    state_dict = convert.autoencoder_to_torch(params)
    counts = _count_blocks(state_dict, r"encoder\.down\.", r"encoder\.down\.0\.block\.")
    renamed = _rename(state_dict, _autoencoder_modules(*counts), "autoencoder")
    is_linear = re.compile(r"\.to_(q|k|v|out\.0)\.weight$").search
    return {name: a[..., 0, 0] if is_linear(name) else a for name, a in renamed.items()}


def _unet_modules(levels: int, blocks: int, attends: Sequence[bool]) -> dict[str, str]:
    """Map CompVis's names of a UNet's layers to diffusers'.

    Args:
      levels: number of resolutions.
      blocks: residual blocks per resolution on the way down; one more on the way up.
      attends: whether each resolution, from the highest, has attention.
    """
    modules = _TIME | {"input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out"}
    for i, name in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        layers = _QKV_ATTENTION if i == 1 else _RES_BLOCK
        modules |= _nest(f"middle_block.{i}", f"mid_block.{name}", layers)
    for level in range(levels):
        for i in range(blocks + 1):
            here, there = 1 + level * (blocks + 1) + i, f"down_blocks.{level}"
            modules |= _nest(f"input_blocks.{here}.0", f"{there}.resnets.{i}", _RES_BLOCK)
            modules |= _nest(f"input_blocks.{here}.1", f"{there}.attentions.{i}", _QKV_ATTENTION)
            here, there = level * (blocks + 1) + i, f"up_blocks.{level}"
            modules |= _nest(f"output_blocks.{here}.0", f"{there}.resnets.{i}", _RES_BLOCK)
            modules |= _nest(f"output_blocks.{here}.1", f"{there}.attentions.{i}", _QKV_ATTENTION)
        last = (level + 1) * (blocks + 1)
        modules[f"input_blocks.{last}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        # CompVis numbers the layers of a block: the upsampler comes after the attention, if any.
        place = 2 if attends[levels - 1 - level] else 1
        modules[f"output_blocks.{last - 1}.{place}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    return modules


def _autoencoder_modules(levels: int, blocks: int) -> dict[str, str]:
    """Map CompVis's names of an autoencoder's layers to diffusers'; see `_unet_modules`."""
    modules = {name: name for name in ("quantize.embedding", "quant_conv", "post_quant_conv")}
    for side in ("encoder", "decoder"):
        for name, ours in {"conv_in": "conv_in", "norm_out": "conv_norm_out"}.items():
            modules[f"{side}.{name}"] = f"{side}.{ours}"
        modules[f"{side}.conv_out"] = f"{side}.conv_out"
        mid, mid_block = f"{side}.mid", f"{side}.mid_block"
        modules |= _nest(f"{mid}.block_1", f"{mid_block}.resnets.0", _AUTOENCODER_BLOCK)
        modules |= _nest(f"{mid}.attn_1", f"{mid_block}.attentions.0", _ATTENTION)
        modules |= _nest(f"{mid}.block_2", f"{mid_block}.resnets.1", _AUTOENCODER_BLOCK)
    for level in range(levels):
        # CompVis numbers the decoder's resolutions from the highest, diffusers in execution order.
        here, there = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        up, up_block = f"decoder.up.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        modules[f"{here}.downsample.conv"] = f"{there}.downsamplers.0.conv"
        modules[f"{up}.upsample.conv"] = f"{up_block}.upsamplers.0.conv"
        for i in range(blocks + 1):
            modules |= _nest(f"{here}.block.{i}", f"{there}.resnets.{i}", _AUTOENCODER_BLOCK)
            modules |= _nest(f"{up}.block.{i}", f"{up_block}.resnets.{i}", _AUTOENCODER_BLOCK)
    return modules


def _nest(here: str, there: str, layers: dict[str, str]) -> dict[str, str]:
    return {f"{here}.{name}": f"{there}.{other}" for name, other in layers.items()}


def _count_blocks(names: Iterable[str], *prefixes: str) -> list[int]:
    """Return, for each prefix, one plus the largest number that follows it in a name."""

    def count(prefix: str) -> int:
        matches = (re.match(rf"{prefix}(\d+)\.", name) for name in names)
        return max((int(match[1]) + 1 for match in matches if match), default=0)

    return [count(prefix) for prefix in prefixes]


def _rename(state_dict: Mapping[str, NumpyArray], modules: dict[str, str], kind: str) -> StateDict:
    renamed = {}
    for name, array in state_dict.items():
        module, _, leaf = name.rpartition(".")
        if module not in modules:
            raise ValueError(f"tensor {name!r} has no place in a {kind} of the layers known here")
        renamed[f"{modules[module]}.{leaf}"] = array
    return renamed


def _renew_attention(state_dict: Mapping[str, NumpyArray]) -> StateDict:
    """Give attention layers of older files their current names."""

    def renew(match: re.Match[str]) -> str:
        return f"{match[1]}.{_OLD_ATTENTION[match[2]]}."

    old = re.compile(rf"(\.attentions\.\d+)\.({'|'.join(_OLD_ATTENTION)})\.")
    return {old.sub(renew, name): np.asarray(array) for name, array in state_dict.items()}


def _merge_qkv(state_dict: Mapping[str, NumpyArray], head_channels: int) -> StateDict:
    """Join to_q, to_k, to_v [channels, ...] into to_qkv, [heads][q, k, v][head_channels] long."""
    merged = {}
    for name, array in state_dict.items():
        match = re.fullmatch(r"(.*)\.to_[qkv]\.(weight|bias)", name)
        if not match:
            merged[name] = array
            continue
        module, kind = match.groups()
        names = [f"{module}.to_{part}.{kind}" for part in "qkv"]
        heads = _count_heads(name, array, head_channels)
        parts = [_find(state_dict, part, array.shape) for part in names]
        parts = [part.reshape(heads, 1, head_channels, *array.shape[1:]) for part in parts]
        merged[f"{module}.to_qkv.{kind}"] = np.concatenate(parts, 1).reshape(-1, *array.shape[1:])
    return merged


def _split_qkv(state_dict: Mapping[str, NumpyArray], head_channels: int) -> StateDict:
    """Undo `_merge_qkv`."""
    split = {}
    for name, array in state_dict.items():
        if ".to_qkv." not in name:
            split[name] = array
            continue
        heads = _count_heads(name, array, 3 * head_channels)
        parts = array.reshape(heads, 3, head_channels, *array.shape[1:])
        for i, part in enumerate("qkv"):
            piece = parts[:, i].reshape(-1, *array.shape[1:])
            split[name.replace(".to_qkv.", f".to_{part}.")] = piece
    return split


def _count_heads(name: str, array: NumpyArray, channels: int) -> int:
    heads, rest = divmod(len(array), channels)
    if rest:
        raise ValueError(
            f"tensor {name!r} has {len(array)} output channels; accepted: multiples of {channels} "
            "with this num_head_channels"
        )
    return heads


def _find(state_dict: Mapping[str, NumpyArray], name: str, shape: Shape) -> NumpyArray:
    if name not in state_dict:
        raise ValueError(f"tensor {name!r} is missing")
    if state_dict[name].shape != shape:
        raise ValueError(f"tensor {name!r} has shape {state_dict[name].shape}; accepted: {shape}")
    return state_dict[name]
