"""Sparse DiT on Fashion-MNIST: a transformer, classes, rectified flow and guidance.

    python train.py --config configs/fashion_dit.py:rigl,0.5 --config.task.source=fashion_mnist.npz
    python -m sparsejax sample --run runs/fashion_dit-rigl-0.5-0 --label 9 --guidance 3

The argument is any of: a method (dense, static, rigl, magran, gradual, one_shot), a structure
(channel, block32, block16x64), a sparsity, a drop fraction, an update interval, `short`: five
minutes of one core, for comparisons. The source is that of fashion.py. Images of 28x28 are padded
to 32x32, 64 patches of 4x4. The network has 1.9 M parameters, the short one 0.7 M. fashion_unet.py
has a UNet for the same task.
"""

from ml_collections import ConfigDict

from sparsejax.configuration import default_config, set_sparsity


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; the docstring of this file explains the argument."""
    config = default_config()
    config.name = "fashion_dit"
    config.steps = 2500
    config.batch_size = 64
    config.task.kind = "dit"
    config.task.dataset = "files"
    config.task.image_size = 32
    config.task.padding = 2
    config.task.reference_split = "validation[:5000]"

    config.model.in_channels = 1
    config.model.patch_size = 4
    config.model.hidden_size = 128
    config.model.depth = 6
    config.model.num_heads = 4
    config.model.classes = 10
    config.model.freq_shift = 1  # as diffusers has it

    config.diffusion.process = "flow"

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.optimizer.clip_norm = 1.0
    config.ema.decay = 0.995
    config.sample.sampler = "heun"
    config.sample.steps = 20
    config.sample.guidance = 2.0
    config.sample.clip = 1.0
    config.sample.every = 500
    config.sample.count = 60

    config.sparsity.method = "rigl"
    config.sparsity.level = 0.5
    config.sparsity.update_interval = 100
    if "short" in arg.split(","):
        config.name = "fashion_dit_short"
        config.steps = 700
        config.batch_size = 32
        config.model.hidden_size = 96
        config.model.depth = 4
        config.optimizer.learning_rate = 6e-3
        config.sample.steps = 10
        config.sample.every = 0
        config.sparsity.update_interval = 50
    set_sparsity(config, arg, ["short"])
    return config
