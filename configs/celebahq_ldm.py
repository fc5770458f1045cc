"""Latent Diffusion on CelebA-HQ at 256 px: the published UNet, 274 M parameters, made sparse.

Not trained here, and no published figure is known to us. 12,500 training and 500 validation images
are the paper's numbers; it doesn't say which ones, so these are the first of the set.

    python train.py --config configs/celebahq_ldm.py                # RigL-DM, S = 0.5
    python train.py --config configs/celebahq_ldm.py:magran,0.25,0.05,1000
    python train.py --config configs/celebahq_ldm.py:dense

The argument is any of: a method (dense, static, rigl, magran, ...), a structure (channel,
block16x64, ...), a sparsity, a drop fraction, an update interval. Before the first run, the data
and the first stage have to be there, as docs/latent_diffusion.md ("Published size") describes: the
published VQ-f4 as first_stage/vq-f4.ckpt, or another first stage as `--config.first_stage.path`.
"""

from ml_collections import ConfigDict

from . import latent_diffusion


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; the docstring of this file explains the argument."""
    config = latent_diffusion.get_config(arg)
    config.name = "celebahq_ldm"
    config.task.dataset = "celeb_a_hq"
    config.task.split = "train[:12500]"
    config.task.reference_split = "train[12500:13000]"
    config.sample.eta = 0.0
    return config
