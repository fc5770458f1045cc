"""Sparse UNet on Fashion-MNIST at 16 pixels: photos of clothes, from an npz.

    python train.py --config configs/fashion.py:rigl,0.5 --config.task.source=fashion_mnist.npz
    python train.py --config configs/fashion.py:dense --config.task.source=fashion_mnist.npz

The argument is any of: a method (dense, static, rigl, magran, ...), a structure (channel,
block16x64, ...), a sparsity, a drop fraction, an update interval. The source is an npz with `image`
[70000, 28, 28] uint8, `label` and `split` (0 for the 60,000 training images, 1 for the 10,000 test
images, which count as `validation` here), or whatever else `task.dataset=files` takes. Images are
averaged to 16x16. The network has 0.7 M parameters and takes 3,000 steps of 32, made to fit into
ten minutes of one CPU core: see docs/evidence.md.
"""

from ml_collections import ConfigDict

from sparsejax.configuration import default_config, set_sparsity


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; the docstring of this file explains the argument."""
    config = default_config()
    config.name = "fashion"
    config.steps = 3000
    config.batch_size = 32
    config.task.dataset = "files"
    config.task.image_size = 16
    config.task.reference_split = "validation[:5000]"

    config.model.in_channels = 1
    config.model.out_channels = 1
    config.model.model_channels = 16
    config.model.num_res_blocks = 1
    config.model.attention_resolutions = (4,)
    config.model.channel_mult = (1, 2, 4)
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
    config.sample.steps = 25
    config.sample.every = 0
    config.sample.count = 36

    config.sparsity.method = "rigl"
    config.sparsity.level = 0.5
    config.sparsity.update_interval = 50
    set_sparsity(config, arg)
    return config
