"""Sparse ChiroDiff on handwritten digits as strokes.

    python train.py --config configs/vmnist_chirodiff.py:rigl,0.5 --config.task.source=vmnist.npz
    python train.py --config configs/vmnist_chirodiff.py:like,rigl,0.5 \
        --config.task.source=vmnist_like.npz

The argument is any of: a method (dense, static, rigl, magran, ...), a structure (channel,
block16x64, ...), a sparsity, a drop fraction, an update interval, `cpu` (half an hour on one core),
`short` (minutes), `evidence` (see docs/evidence.md), `like`. The source is an npz in the packed
layout (see `sparsejax.data.packed`), made from the drawings that
https://github.com/dasayan05/chirodiff links under Data preparation, a shared folder that can't be
downloaded as a file. `like` uses `vmnist_like`, MNIST's digits traced to strokes: a different data
set, with results of its own.
"""

from ml_collections import ConfigDict

from . import chirodiff


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; the docstring of this file explains the argument."""
    words = arg.split(",")
    like = "like" in words
    config = chirodiff.get_config(",".join(word for word in words if word != "like"))
    config.name = chirodiff.variant_name(
        "vmnist_like_chirodiff" if like else "vmnist_chirodiff", arg
    )
    config.task.dataset = "vmnist_like" if like else "vmnist"
    if "evidence" in words:
        config.steps = 1400
    return config
