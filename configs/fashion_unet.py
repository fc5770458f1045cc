"""Sparse UNet on Fashion-MNIST with classes, rectified flow and guidance: fashion_dit.py's task.

    python train.py --config configs/fashion_unet.py:rigl,0.5 --config.task.source=fashion_mnist.npz

For the argument and the source see fashion_dit.py. The network has 1.5 M parameters, the
short one 0.7 M.
"""

from ml_collections import ConfigDict

from . import fashion_dit


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; the docstring of fashion_dit.py explains the argument."""
    config = fashion_dit.get_config(arg)
    config.name = config.name.replace("dit", "unet")
    config.task.kind = "unet"
    config.optimizer.learning_rate = 3e-3
    config.model = ConfigDict({"dtype": "float32"})
    config.model.in_channels = 1
    config.model.out_channels = 1
    config.model.model_channels = 24
    config.model.num_res_blocks = 1
    config.model.attention_resolutions = (4,)
    config.model.channel_mult = (1, 2, 4)
    config.model.num_head_channels = 24
    config.model.norm_groups = 8
    config.model.classes = 10
    if "short" in arg.split(","):
        config.model.model_channels = 8
        config.model.channel_mult = (1, 2, 4, 8)
        config.model.attention_resolutions = (8, 4)
        config.model.num_head_channels = 16
        config.model.norm_groups = 4
    return config
