"""First stage for Imagenette at 64 px: a VQ autoencoder with factor 4, 64x64x3 to 16x16x3.

    python train.py --config configs/imagenette64_vq.py          # 5 M parameters, a CPU night
    python train.py --config configs/imagenette64_vq.py:small    # 0.7 M parameters, 20 minutes

The first run downloads the images (99 MB). `--config.task.source` names others: a folder or npz of
your own, with --config.task.held_out=0.1 if they have no split `validation`. The second stage is
imagenette64_ldm.py.
"""

from ml_collections import ConfigDict

from sparsejax.configuration import default_config, set_sparsity


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; the docstring of this file explains the argument."""
    config = default_config()
    config.name = "imagenette64_vq"
    config.steps = 30_000
    config.batch_size = 32
    config.task.name = "autoencoder"
    config.task.dataset = "files"
    config.task.url = "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz"
    config.task.image_size = 64
    config.task.reference_split = "validation"
    config.task.flip = True

    config.model.in_channels = 3
    config.model.channels = 64
    config.model.channel_mult = (1, 2, 2)
    config.model.num_res_blocks = 1
    config.model.z_channels = 3
    config.model.codes = 1024
    config.model.code_limit = 1.0
    config.model.norm_groups = 32

    config.sparsity.method = "dense"  # only the UNet is sparsified
    config.optimizer.learning_rate = 5e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.optimizer.clip_norm = 1.0
    config.ema.decay = 0.999
    config.checkpoint.every = 250
    config.sample.every = 0
    config.sample.count = 36

    if set_sparsity(config, arg, ["small"]):
        config.name = "imagenette64_vq_small"
        config.steps = 1600
        config.batch_size = 16
        config.model.channels = 16
        config.model.channel_mult = (1, 2, 4)
        config.model.norm_groups = 8
        config.optimizer.learning_rate = 2e-3
    return config
