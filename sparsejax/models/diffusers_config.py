"""Translate between config.json of Hugging Face diffusers and the arguments of our networks.

Every key of `UNet2DModel`, `VQModel` and `AutoencoderKL` is in one of three groups: it corresponds
to an argument of ours, it has the only value that our networks support, or it doesn't affect what
they compute. Any other key or value raises ValueError. Missing keys have diffusers' defaults.
"""

from collections.abc import Mapping, Sequence

from sparsejax.models.autoencoder import KLModel, VQModel
from sparsejax.models.unet import UNet
from sparsejax.types import Value

KINDS = {"vq": "VQModel", "kl": "AutoencoderKL"}

_SILU = ("silu", "swish")
# Keys with the values that `models.unet.UNet` supports; the first is diffusers' default.
_UNET_FIXED = {
    "act_fn": _SILU,
    "add_attention": (True,),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "downsample_type": ("conv", None),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2D",),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
    "upsample_type": ("conv", None),
}
_UNET_ARGUMENTS = {
    "attention_head_dim": 8,
    "attn_norm_num_groups": None,
    "block_out_channels": [224, 448, 672, 896],
    "down_block_types": ["DownBlock2D", *3 * ["AttnDownBlock2D"]],
    "downsample_padding": 1,
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 3,
    "layers_per_block": 2,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "out_channels": 3,
    "time_embedding_dim": None,
    "up_block_types": [*3 * ["AttnUpBlock2D"], "UpBlock2D"],
}
# Of these, whole numbers that may be less than 1, or None.
_CHECKED_APART = ("attention_head_dim", "downsample_padding", "flip_sin_to_cos", "freq_shift")
# The first is for pipelines, the second for learned time embeddings.
_UNET_NEUTRAL = ("sample_size", "num_train_timesteps")

_AUTOENCODER_FIXED = {
    "vq": {"act_fn": _SILU, "mid_block_add_attention": (True,), "norm_type": ("group",)},
    "kl": {
        "act_fn": _SILU,
        "mid_block_add_attention": (True,),
        "use_post_quant_conv": (True,),
        "use_quant_conv": (True,),
    },
}
_AUTOENCODER_ARGUMENTS = {
    "block_out_channels": [64],
    "down_block_types": ["DownEncoderBlock2D"],
    "in_channels": 3,
    "latent_channels": 3,
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "out_channels": 3,
    "up_block_types": ["UpDecoderBlock2D"],
}
_ARGUMENTS = {
    "vq": _AUTOENCODER_ARGUMENTS | {"num_vq_embeddings": 256, "vq_embed_dim": None},
    "kl": _AUTOENCODER_ARGUMENTS | {"latent_channels": 4},
}
# Used by pipelines, for latents between the networks or for dtypes and memory, but not by the
# networks' encode and decode. `lookup_from_codebook` is for indices instead of latents.
_AUTOENCODER_NEUTRAL = {
    "vq": ("force_upcast", "lookup_from_codebook", "sample_size", "scaling_factor"),
    "kl": (
        "force_upcast",
        "latents_mean",
        "latents_std",
        "sample_size",
        "scaling_factor",
        "shift_factor",
    ),
}


def unet_arguments(config: dict[str, Value]) -> dict[str, Value]:
    """Return the arguments of `models.unet.UNet` for a config of `UNet2DModel`.

    Args:
      config: content of config.json.

    Returns:
      `{name: value}` of every argument except `dtype` and `remat`.

    Raises:
      ValueError: our UNet doesn't support the network; names a key, its value and what is
        accepted.

    Examples:
      >>> config = {"block_out_channels": [32, 64], "norm_num_groups": 8}
      >>> config |= {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}
      >>> config |= {"up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}
      >>> arguments = unet_arguments(config)
      >>> arguments["channel_mult"], arguments["attention_resolutions"]
      ((1, 2), (2,))
    """
    config = check_keys(config, "UNet2DModel", _UNET_FIXED, _UNET_ARGUMENTS, _UNET_NEUTRAL)
    widths, groups = _widths(config), config["norm_num_groups"]
    attends = _attends(config, len(widths))
    given = config["attn_norm_num_groups"]
    accepted = f"None, or {groups}, as norm_num_groups"
    require_value(given in (None, groups), "attn_norm_num_groups", given, accepted)
    given = config["time_embedding_dim"]
    accepted = f"None, or 4 times {widths[0]}, the first of block_out_channels"
    require_value(given in (None, 4 * widths[0]), "time_embedding_dim", given, accepted)
    given = config["num_class_embeds"]
    require_value(given is None or is_count(given), "num_class_embeds", given, "None, 1 or more")
    given = config["dropout"]
    is_rate = isinstance(given, int | float) and 0 <= given < 1
    require_value(is_rate, "dropout", given, "numbers in [0, 1)")
    _check_published_variants(config, widths[0])
    # The middle block, which has the last width, always attends.
    attended = [width for width, a in zip(widths, attends, strict=True) if a] + [widths[-1]]
    return {
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "num_res_blocks": config["layers_per_block"],
        "attention_resolutions": tuple(2**i for i, a in enumerate(attends) if a),
        "channel_mult": tuple(width // widths[0] for width in widths),
        "num_head_channels": _head_channels(config, attended),
        "dropout": config["dropout"],
        "norm_groups": groups,
        "norm_eps": float(config["norm_eps"]),
        "freq_shift": int(config["freq_shift"]),
        "flip_sin_to_cos": config["flip_sin_to_cos"],
        "downsample_padding": int(config["downsample_padding"]),
        "classes": config["num_class_embeds"] or 0,
    }


def check_diffusers_config(config: dict[str, Value]) -> None:
    """Raise ValueError for the config.json of a network that `models.unet.UNet` doesn't support.

    Args:
      config: content of config.json.

    Raises:
      ValueError: see `unet_arguments`.
    """
    unet_arguments(config)


def autoencoder_arguments(
    config: dict[str, Value], kind: str | None = None
) -> tuple[str, dict[str, Value]]:
    """Return the arguments of a model of `models.autoencoder` for a config of diffusers.

    Args:
      config: content of config.json of a `VQModel` or `AutoencoderKL`.
      kind: `vq` or `kl`, for a config that doesn't name its class.

    Returns:
      Tuple of the kind and `{name: value}`.

    Raises:
      ValueError: see `unet_arguments`.

    Examples:
      >>> autoencoder_arguments({"_class_name": "AutoencoderKL"})[1]["z_channels"]
      4
    """
    _check_object(config)
    kinds = {name: kind for kind, name in KINDS.items()}
    if kind is None:
        name = config.get("_class_name")
        require_value(name in list(kinds), "_class_name", name, ", ".join(kinds))
        kind = kinds[str(name)]
    config = check_keys(
        config, KINDS[kind], _AUTOENCODER_FIXED[kind], _ARGUMENTS[kind], _AUTOENCODER_NEUTRAL[kind]
    )
    widths = _widths(config)
    for key, block in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D")):
        given = config[f"{key}_block_types"]
        fits = _list(given) == len(widths) * [block]
        accepted = f"{len(widths)} (as block_out_channels) of {block}"
        require_value(fits, f"{key}_block_types", given, accepted)
    given, same = config["out_channels"], config["in_channels"]
    require_value(given == same, "out_channels", given, f"{same}, as in_channels")
    arguments = {
        "channels": widths[0],
        "channel_mult": tuple(width // widths[0] for width in widths),
        "num_res_blocks": config["layers_per_block"],
        "z_channels": config["latent_channels"],
        "in_channels": config["in_channels"],
        "norm_groups": config["norm_num_groups"],
    }
    if kind == "vq":
        given, same = config["vq_embed_dim"], config["latent_channels"]
        accepted = f"None, or {same}, as latent_channels"
        require_value(given in (None, same), "vq_embed_dim", given, accepted)
        arguments["codes"] = config["num_vq_embeddings"]
    return kind, arguments


def unet_diffusers_config(model: UNet, sample_size: int | None = None) -> dict[str, Value]:
    """Return the config.json from which `UNet2DModel.from_pretrained` builds the same network.

    Args:
      model: `models.unet.UNet`.
      sample_size: height and width of the images or latents, if known; diffusers' pipelines
        read it, the network accepts any size.

    Returns:
      JSON-serializable dictionary.

    Raises:
      ValueError: `UNet2DModel` can't represent the network: `channel_mult` doesn't start with 1.

    Examples:
      >>> from sparsejax.models.unet import UNet
      >>> unet_diffusers_config(UNet())["down_block_types"][:2]
      ['DownBlock2D', 'AttnDownBlock2D']
    """
    _check_first(model.channel_mult)
    attends = [2**i in model.attention_resolutions for i in range(len(model.channel_mult))]
    return {key: values[0] for key, values in _UNET_FIXED.items()} | {
        "_class_name": "UNet2DModel",
        "attention_head_dim": model.num_head_channels,
        "block_out_channels": [mult * model.model_channels for mult in model.channel_mult],
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "downsample_padding": model.downsample_padding,
        "num_class_embeds": model.classes or None,
        "dropout": model.dropout,
        "flip_sin_to_cos": model.flip_sin_to_cos,
        "freq_shift": model.freq_shift,
        "in_channels": model.in_channels,
        "layers_per_block": model.num_res_blocks,
        "norm_eps": model.norm_eps,
        "norm_num_groups": model.norm_groups,
        "out_channels": model.out_channels,
        "sample_size": sample_size,
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
    }


def autoencoder_diffusers_config(
    model: VQModel | KLModel, kind: str, scale: float, sample_size: int | None = None
) -> dict[str, Value]:
    """Return the config.json from which diffusers builds the same first stage.

    Args:
      model: model of `models.autoencoder`.
      kind: `vq` or `kl`.
      scale: factor between its latents and those that a UNet was trained on.
      sample_size: height and width of its images, if known.

    Returns:
      JSON-serializable dictionary.

    Raises:
      ValueError: diffusers can't represent the network; see `unet_diffusers_config`.

    Examples:
      >>> from sparsejax.models.autoencoder import VQModel
      >>> autoencoder_diffusers_config(VQModel(), "vq", 1.0)["block_out_channels"]
      [128, 256, 512]
    """
    _check_first(model.channel_mult)
    levels = len(model.channel_mult)
    config = {key: values[0] for key, values in _AUTOENCODER_FIXED[kind].items()} | {
        "_class_name": KINDS[kind],
        "block_out_channels": [mult * model.channels for mult in model.channel_mult],
        "down_block_types": levels * ["DownEncoderBlock2D"],
        "in_channels": model.in_channels,
        "latent_channels": model.z_channels,
        "layers_per_block": model.num_res_blocks,
        "norm_num_groups": model.norm_groups,
        "out_channels": model.in_channels,
        "sample_size": sample_size or 32,
        "scaling_factor": scale,
        "up_block_types": levels * ["UpDecoderBlock2D"],
    }
    if kind == "vq":
        config |= {"num_vq_embeddings": model.codes, "vq_embed_dim": model.z_channels}
    return config


def _check_first(channel_mult: Sequence[int]) -> None:
    if channel_mult[0] != 1:
        raise ValueError(
            f"channel_mult is {tuple(channel_mult)}; accepted by diffusers: one that begins with 1"
        )


def _check_object(config: Value) -> None:
    if not isinstance(config, dict):
        raise ValueError(f"it holds a {type(config).__name__}; accepted: a JSON object")


def check_keys(
    config: dict[str, Value],
    name: str,
    fixed: Mapping[str, tuple[Value, ...]],
    arguments: dict[str, Value],
    neutral: Sequence[str],
    former_name: str | None = None,
) -> dict[str, Value]:
    """Return a config with defaults for missing keys, after checking names, types and fixed keys.

    Args:
      config: content of config.json.
      name: class of diffusers that it describes.
      fixed: `{key: supported values}`.
      arguments: `{key: default}`; a default that is a whole number stands for a count.
      neutral: keys that don't affect what the network computes.
      former_name: class that older files name, if it was another.

    Raises:
      ValueError: names a key, its value and what is accepted.
    """
    _check_object(config)
    defaulted = _list(config.get("_use_default_values"))
    config = {key: value for key, value in config.items() if key not in defaulted}
    found = config.get("_class_name", name)
    names = (name, former_name) if former_name else (name,)
    require_value(found in names, "_class_name", found, " or ".join(map(repr, names)))
    # diffusers' own notes, such as _diffusers_version, start with an underscore.
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    known = sorted((*fixed, *arguments, *neutral))
    for key, value in config.items():
        require_value(key in known, key, value, f"keys of {name}: {', '.join(known)}")
        if key in fixed:
            # diffusers ignores the case of activation names.
            given = value.lower() if key == "act_fn" and isinstance(value, str) else value
            require_value(given in fixed[key], key, value, " or ".join(map(repr, fixed[key])))
    config = arguments | config
    for key, default in arguments.items():
        if key in _CHECKED_APART:
            continue
        if isinstance(default, int):
            require_value(is_count(config[key]), key, config[key], "a whole number, 1 or more")
    return config


def _check_published_variants(config: dict[str, Value], width: int) -> None:
    """Check the keys in which google/ddpm-* (Ho et al.) differ from Latent Diffusion's UNets."""
    given = config["norm_eps"]
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    require_value(is_number and 0 < given <= 1, "norm_eps", given, "numbers in (0, 1]")
    given = config["flip_sin_to_cos"]
    require_value(isinstance(given, bool), "flip_sin_to_cos", given, "True or False")
    for key in ("freq_shift", "downsample_padding"):
        given = config[key]
        require_value(not isinstance(given, bool) and given in (0, 1), key, given, "0 or 1")
    given = config["freq_shift"]
    accepted = f"0, where the first of block_out_channels is {width}, or 1 where it is 4 or more"
    require_value(given == 0 or width >= 4, "freq_shift", given, accepted)


def _widths(config: dict[str, Value]) -> list[int]:
    """Check and return `block_out_channels`."""
    widths, groups = config["block_out_channels"], config["norm_num_groups"]
    are_counts = len(_list(widths)) > 0 and all(map(is_count, widths))
    require_value(are_counts, "block_out_channels", widths, "a list of whole numbers, 1 or more")
    fits = all(width % widths[0] == 0 for width in widths)
    require_value(
        fits, "block_out_channels", widths, f"multiples of {widths[0]}, the first of them"
    )
    fits = all(width % groups == 0 for width in widths)
    require_value(fits, "norm_num_groups", groups, f"divisors of block_out_channels, {widths}")
    return widths


def _attends(config: dict[str, Value], levels: int) -> list[bool]:
    """Return whether each resolution has attention, from the highest."""
    found = {}
    for way in ("Down", "Up"):
        key, known = f"{way.lower()}_block_types", [f"{way}Block2D", f"Attn{way}Block2D"]
        # Older names start with UNetRes.
        names = [str(name).removeprefix("UNetRes") for name in _list(config[key])]
        fits = len(names) == levels and set(names) <= set(known)
        accepted = f"{levels} (as block_out_channels) of {' and '.join(known)}"
        require_value(fits, key, config[key], accepted)
        found[way] = [name == known[1] for name in names]
    accepted = "attention where down_block_types have it, in reverse"
    mirrored = found["Up"] == found["Down"][::-1]
    require_value(mirrored, "up_block_types", config["up_block_types"], accepted)
    return found["Down"]


def _head_channels(config: dict[str, Value], attended: Sequence[int]) -> int:
    """Return the channels per head; None means a single head, as in google/ddpm-*."""
    given, widths = config["attention_head_dim"], sorted(set(attended))
    if given is None:
        accepted = f"numbers, since heads of all channels would have {widths} of them"
        require_value(len(widths) == 1, "attention_head_dim", given, accepted)
        return widths[0]
    fits = is_count(given) and all(width % given == 0 for width in widths)
    accepted = f"None, or divisors of {widths}, the widths of blocks with attention"
    require_value(fits, "attention_head_dim", given, accepted)
    return given


def require_value(condition: object, key: str, value: Value, accepted: str) -> None:
    """Check the value of a key of config.json.

    Args:
      condition: whether the value is supported.
      key: key of config.json.
      value: its value.
      accepted: what is accepted, in words.

    Raises:
      ValueError: the condition doesn't hold; names the key, its value and what is accepted.
    """
    if not condition:
        raise ValueError(f"{key} is {value!r}; accepted: {accepted}")


def is_count(value: Value) -> bool:
    """Return whether a value of config.json is a whole number of 1 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _list(value: Value) -> list[Value]:
    """Return a list or tuple as a list, anything else as an empty list."""
    return list(value) if isinstance(value, list | tuple) else []
