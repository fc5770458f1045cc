"""Kinds of networks by task, and the values that their arguments can have."""

from collections.abc import Collection
from typing import TypeVar

from sparsejax.types import Value

Kind = TypeVar("Kind")  # str; None stands for any kind

# Kinds of networks (`task.kind`) by task, the default first.
KINDS = {
    "images": ("unet", "dit"),
    "latents": ("unet", "dit"),
    "autoencoder": ("vq", "kl"),
    "strokes": ("birnn", "transformer"),
}
_WIDTH = "1 to 65536"
_DEPTH = "1 to 100"
# Accepted values of networks' arguments, as in `schema.Key.accepted`.
NETWORK_VALUES: dict[str, tuple[Value, ...] | str] = {
    "model_channels": _WIDTH,
    "channels": _WIDTH,
    "z_channels": _WIDTH,
    "in_channels": _WIDTH,
    "out_channels": _WIDTH,
    "num_head_channels": _WIDTH,
    "norm_groups": _WIDTH,
    "codes": "1 to 1000000",
    "code_limit": "[1e-30, 1e30]",
    "hidden": _WIDTH,
    "heads": _WIDTH,
    "pe_dim": _WIDTH,
    "layers": _DEPTH,
    "patch_size": "1 to 1024",
    "hidden_size": _WIDTH,
    "depth": _DEPTH,
    "num_heads": _WIDTH,
    "mlp_ratio": "(0, 65536]",
    "classes": "0 to 1000000",
    "mlp_norm_eps": "(0, 1]",
    "num_res_blocks": _DEPTH,
    "channel_mult": _DEPTH,
    "dropout": "[0, 1)",
    "label_dropout": "[0, 1]",
    "norm_eps": "(0, 1]",
    "freq_shift": (0, 1),
    "downsample_padding": (0, 1),
}


def kind_of(kinds: Collection[Kind], kind: str) -> Kind | str:
    """Return the kind of network of a config.

    Args:
      kinds: those of its task, the default first.
      kind: `task.kind`; "vq", as runs on images and latents were saved when they had one kind,
        stands for their default.

    Examples:
      >>> images, strokes = KINDS["images"], KINDS["strokes"]
      >>> kind_of(images, ""), kind_of(images, "vq"), kind_of(strokes, "")
      ('unet', 'unet', 'birnn')
    """
    is_former = kind == "vq" and "unet" in kinds
    return next(iter(kinds)) if kinds and (not kind or is_former) else kind
