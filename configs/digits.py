"""Sparse UNet on scikit-learn's handwritten digits, 8x8: the example that runs anywhere.

On two CPU cores the default takes three to five minutes and reaches a training loss of 0.14; the
short variant takes 100 seconds. `evidence`, for docs/evidence.md, takes 2,000 steps with half the
batch size on two thirds of the images.

    python train.py                                  # RigL-DM at S = 0.75, the default
    python train.py --config configs/digits.py:sweep # the short variant, for comparisons
    python train.py --config configs/digits.py:static,0.9

The argument is any of: a method (dense, static, rigl, magran, ...), a structure (channel,
block16x64, ...), a sparsity, a drop fraction, an update interval, `sweep`, `evidence`.
"""

from ml_collections import ConfigDict

from sparsejax.configuration import default_config, set_sparsity


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; the docstring of this file explains the argument."""
    config = default_config()
    config.name = "digits"
    config.steps = 1500
    config.batch_size = 64
    config.task.dataset = "digits"
    config.task.image_size = 8

    config.model.in_channels = 1
    config.model.out_channels = 1
    config.model.model_channels = 32
    config.model.num_res_blocks = 1
    config.model.attention_resolutions = (2,)
    config.model.channel_mult = (1, 2)
    config.model.num_head_channels = 32
    config.model.dropout = 0.0
    config.model.norm_groups = 8

    config.diffusion.schedule = "cosine"

    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.optimizer.clip_norm = 1.0
    config.ema.decay = 0.995
    config.sample.clip = 1.0

    config.sparsity.method = "rigl"
    config.sparsity.level = 0.75
    config.sparsity.update_interval = 50

    variants = set_sparsity(config, arg, ["sweep", "evidence"])
    if variants:
        config.name = "digits-sweep"
        config.steps = 600
        config.sample.every = 0
    if "evidence" in variants:
        config.name = "digits-evidence"
        config.steps = 2000
        config.batch_size = 32
        config.task.split = "train[:1200]"
        config.task.reference_split = "train[1200:]"
        config.task.labelled_split = "train"
        config.sample.steps = 25
        config.sample.count = 36
    return config
