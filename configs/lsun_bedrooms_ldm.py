"""Latent Diffusion on LSUN-Bedrooms at 256 px: the published UNet, 274 M parameters, made sparse.

Not trained here. 10,598 training and 2,500 validation images are the paper's numbers; it doesn't
say which ones, so these are the first of the set. On this set the paper reports an FID of 31.09
for the dense model and 28.79 +- 12.65 for Static-DM.

    python train.py --config configs/lsun_bedrooms_ldm.py           # RigL-DM, S = 0.5
    python train.py --config configs/lsun_bedrooms_ldm.py:static,0.25

For arguments and first stage see celebahq_ldm.py.
"""

from ml_collections import ConfigDict

from . import latent_diffusion


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; the docstring of celebahq_ldm.py explains the argument."""
    config = latent_diffusion.get_config(arg)
    config.name = "lsun_bedrooms_ldm"
    config.task.dataset = "lsun_bedroom"
    config.task.split = "train[:10598]"
    config.task.reference_split = "train[10598:13098]"
    config.sample.eta = 1.0
    return config
