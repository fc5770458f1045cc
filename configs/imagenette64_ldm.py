"""Latent Diffusion on Imagenette at 64 px: the whole pipeline in small.

Train the first stage first, on the same images: imagenette64_vq.py. The first call encodes the
images and stores the latents next to the first stage.

    python train.py --config configs/imagenette64_ldm.py:rigl,0.5    # 43 M parameters, a CPU night
    python train.py --config configs/imagenette64_ldm.py:small,rigl,0.5
    python train.py --config configs/imagenette64_ldm.py:small,dense

The argument is any of: a method (dense, static, rigl, magran, ...), a structure (channel,
block16x64, ...), a sparsity, a drop fraction, an update interval, `small`: the small first stage
and 500 steps of a UNet with 4.6 M parameters, six minutes on two CPU cores, enough to see that
everything works and no more.
"""

from ml_collections import ConfigDict

from sparsejax.configuration import default_config, set_sparsity


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; the docstring of this file explains the argument."""
    config = default_config()
    config.name = "imagenette64_ldm"
    config.steps = 60_000
    config.batch_size = 64
    config.task.name = "latents"
    config.task.dataset = "files"
    config.task.url = "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz"
    config.task.image_size = 64
    config.task.reference_split = "validation"
    config.task.flip = True
    config.first_stage.path = "runs/imagenette64_vq-dense-0"

    config.model.in_channels = 3
    config.model.out_channels = 3
    config.model.model_channels = 128
    config.model.num_res_blocks = 2
    config.model.attention_resolutions = (4, 2)
    config.model.channel_mult = (1, 2, 3)
    config.model.num_head_channels = 32
    config.model.dropout = 0.0

    config.diffusion.schedule = "scaled_linear"
    config.diffusion.start = 0.0015
    config.diffusion.end = 0.0195

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.weight_decay = 1e-2
    config.optimizer.warmup_steps = 100
    config.optimizer.clip_norm = 1.0
    config.ema.decay = 0.9999

    config.sparsity.method = "rigl"
    config.sparsity.level = 0.5
    config.sparsity.update_interval = 100

    config.sample.every = 5000
    config.sample.count = 36
    config.sample.steps = 100

    if "small" in arg.split(","):
        config.name = "imagenette64_ldm_small"
        config.steps = 500
        config.batch_size = 32
        config.first_stage.path = "runs/imagenette64_vq_small-dense-0"
        config.model.model_channels = 64
        config.model.channel_mult = (1, 2, 2)
        config.model.num_res_blocks = 1
        config.optimizer.learning_rate = 1e-3
        config.optimizer.schedule = "cosine"
        config.ema.decay = 0.99
        config.sparsity.update_interval = 25
        config.checkpoint.every = 100
        config.sample.every = 0
        config.sample.steps = 50
    set_sparsity(config, arg, ["small"])
    return config
