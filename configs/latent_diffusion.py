"""Shared by the Latent Diffusion configs of published size; not an experiment by itself.

The UNet is that of Rombach et al. (2022) for CelebA-HQ and LSUN-Bedrooms: 274,056,163 parameters,
on 64x64x3 latents of the published VQ-f4 first stage. Optimizer, learning rate and batch size are
those of the paper's LSUN-Bedrooms runs, as far as they are known: AdamW, weight decay 1e-2, batch
size 12, 2e-6 per example. What the paper doesn't state is set to RigL's defaults (ERK
distribution, cosine decay of the drop fraction until three quarters of the run); the number of
steps and the update interval are our choice.
"""

from ml_collections import ConfigDict

from sparsejax.configuration import default_config, set_sparsity


def get_config(arg: str = "") -> ConfigDict:
    """Return the config without a dataset; see celebahq_ldm.py and the other configs."""
    config = default_config()
    config.steps = 200_000
    config.batch_size = 12
    config.task.name = "latents"
    config.task.image_size = 256
    config.task.flip = True
    config.task.latent_scale = 1.0  # as published
    config.first_stage.path = "first_stage/vq-f4.ckpt"

    config.model.in_channels = 3
    config.model.out_channels = 3
    config.model.model_channels = 224
    config.model.num_res_blocks = 2
    config.model.attention_resolutions = (8, 4, 2)
    config.model.channel_mult = (1, 2, 3, 4)
    config.model.num_head_channels = 32
    config.model.dropout = 0.0
    config.model.dtype = "float32"  # bfloat16: faster, and half the memory of activations
    config.model.remat = False  # True: less memory, a third more time

    config.diffusion.schedule = "scaled_linear"
    config.diffusion.start = 0.0015
    config.diffusion.end = 0.0195

    config.optimizer.name = "adamw"
    config.optimizer.base_learning_rate = 2e-6
    config.optimizer.weight_decay = 1e-2
    config.ema.decay = 0.9999

    config.sparsity.method = "rigl"
    config.sparsity.level = 0.5
    config.sparsity.drop_fraction = 0.5
    config.sparsity.update_interval = 1000

    config.checkpoint.every = 5000
    config.log.every = 100
    config.sample.every = 10_000
    config.sample.count = 16
    config.sample.steps = 200
    set_sparsity(config, arg)
    return config
