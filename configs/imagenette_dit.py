"""Diffusion transformers of published size on Imagenette at 256 px, with its ten classes.

    python train.py --config configs/imagenette_dit.py               # RigL-DM, S = 0.5, DiT-B
    python train.py --config configs/imagenette_dit.py:XL,rigl,0.75
    python train.py --config configs/imagenette_dit.py:kl,S,dense \
        --config.first_stage.path=sd-vae-ft-ema

Not trained here. The argument is any of: a size of Peebles and Xie (2023), `S`, `B`, `L` or `XL`;
`kl`; a method (dense, static, rigl, magran, ...), a structure (channel, block32, block16x64), a
sparsity, a drop fraction, an update interval. The latents are those of the published VQ-f4,
64x64x3 in patches of 4x4; with `kl`, of an 8 times smaller KL first stage such as Stable
Diffusion's, 32x32x4 in patches of 2x2. Both are 256 tokens. What has to be there first is in
docs/latent_diffusion.md ("Published size"). Optimizer, learning rate, batch size, noise schedule
and label dropout are those of the paper; the number of steps, the sampler and all of the sparsity
are our choice.
"""

from ml_collections import ConfigDict

from sparsejax.configuration import default_config, set_sparsity
from sparsejax.errors import ConfigError
from sparsejax.models.dit import SIZES


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; the docstring of this file explains the argument."""
    config = default_config()
    config.sparsity.method = "rigl"
    config.sparsity.level = 0.5
    config.sparsity.update_interval = 1000
    words = set_sparsity(config, arg, [*SIZES, "kl"])
    sizes, is_kl = [word for word in words if word in SIZES] or ["B"], "kl" in words
    if len(sizes) > 1:
        both = f"{sizes[0]!r} and {sizes[1]!r} both set the size"
        raise ConfigError(f"config argument {arg!r}: {both}; accepted: one of them")
    config.name = f"imagenette_dit{'_kl' if is_kl else ''}_{sizes[0]}"
    config.steps = 100_000
    config.batch_size = 256
    config.task.name = "latents"
    config.task.kind = "dit"
    config.task.dataset = "imagenette"
    config.task.reference_split = "validation"
    config.task.image_size = 256
    config.task.flip = True
    config.task.latent_scale = 0.18215 if is_kl else 1.0  # as published
    config.first_stage.path = "first_stage/kl-f8" if is_kl else "first_stage/vq-f4.ckpt"

    config.model.in_channels = 4 if is_kl else 3
    config.model.patch_size = 2 if is_kl else 4
    config.model.hidden_size, config.model.depth, config.model.num_heads = SIZES[sizes[0]]
    config.model.classes = 10

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-4
    config.ema.decay = 0.9999

    config.checkpoint.every = 5000
    config.log.every = 100
    config.sample.every = 10_000
    config.sample.count = 20
    config.sample.steps = 50
    config.sample.guidance = 1.5
    return config
