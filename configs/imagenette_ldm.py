"""Latent Diffusion on Imagenette at 256 px: the published UNet, 274 M parameters, made sparse.

Not trained here. The sizes of the paper's subsets are unknown to us: these are all of the set's
9,469 training and 3,925 validation images.

    python train.py --config configs/imagenette_ldm.py              # RigL-DM, S = 0.5
    python train.py --config configs/imagenette_ldm.py:rigl,0.9,0.05

For arguments and first stage see celebahq_ldm.py. imagenette64_ldm.py is the small version.
"""

from ml_collections import ConfigDict

from . import latent_diffusion


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; the docstring of celebahq_ldm.py explains the argument."""
    config = latent_diffusion.get_config(arg)
    config.name = "imagenette_ldm"
    config.task.dataset = "imagenette"
    config.task.split = "train"
    config.task.reference_split = "validation"
    config.sample.eta = 0.0
    return config
