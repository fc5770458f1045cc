"""Images of your own at 32 or 64 pixels: a folder of photos, an npz, or a Hugging Face dataset.

At 32 pixels a UNet with 2.7 M parameters (0.76 GFLOPs per image) takes 10,000 steps of 32 images,
at 64 pixels one with 4.3 M (3.0 GFLOPs).

    S=--config.task.source=photos
    python train.py --config configs/folder.py:short $S        # MagRan-DM at S = 0.5, 1,000 steps
    python train.py --config configs/folder.py:64,magran,0.75 $S
    python train.py --config configs/folder.py:grey,dense $S

The argument is any of: a method (dense, static, rigl, magran, ...), a structure (channel,
block16x64, ...), a sparsity, then a drop fraction and an update interval (not 32 or 64); `32` or
`64`, the size in pixels; `grey`, to train on one channel instead of three; `short`, for a first
look or a few hundred images. Images are cropped to their centre, resized and mirrored at random;
about one in ten is held out if the source has no split `validation`. docs/own_images.md is the
guide.
"""

from ml_collections import ConfigDict

from sparsejax.configuration import default_config, set_sparsity
from sparsejax.errors import ConfigError

VARIANTS = ("32", "64", "grey", "short")


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; the docstring of this file explains the argument."""
    config = default_config()
    config.name = "folder"
    config.steps = 10_000
    config.batch_size = 32
    config.task.dataset = "files"
    config.task.held_out = 0.1
    config.task.image_size = 32
    config.task.channels = 3
    config.task.reference_split = "validation"
    config.task.flip = True

    config.model.in_channels = 3
    config.model.out_channels = 3
    config.model.model_channels = 32
    config.model.num_res_blocks = 1
    config.model.attention_resolutions = (4,)
    config.model.channel_mult = (1, 2, 4)
    config.model.num_head_channels = 32
    config.model.dropout = 0.1
    config.model.norm_groups = 8

    config.diffusion.schedule = "cosine"

    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 200
    config.optimizer.clip_norm = 1.0
    config.ema.decay = 0.999
    config.sample.every = 2000
    config.sample.count = 36
    config.sample.clip = 1.0

    config.sparsity.method = "magran"
    config.sparsity.level = 0.5
    config.sparsity.update_interval = 100

    _set_variants(config, arg)
    set_sparsity(config, arg, VARIANTS)
    return config


def _set_variants(config: ConfigDict, arg: str) -> None:
    words = arg.split(",")
    if {"32", "64"} <= set(words):
        both = "'32' and '64' both set the size"
        raise ConfigError(f"config argument {arg!r}: {both}; accepted: one of them")
    if "64" in words:
        config.name = "folder64"
        config.task.image_size = 64
        config.model.channel_mult = (1, 2, 4, 4)
        config.model.attention_resolutions = (8,)
    if "grey" in words:
        config.name += "-grey"
        config.task.channels = 1
        config.model.in_channels = 1
        config.model.out_channels = 1
    if "short" in words:
        config.name += "-short"
        config.steps = 1000
        config.optimizer.warmup_steps = 50
        config.sparsity.update_interval = 20
        config.sample.every = 250
        config.checkpoint.every = 250
