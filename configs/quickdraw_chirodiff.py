"""Sparse ChiroDiff on drawings from Quick, Draw!.

    python train.py --config configs/quickdraw_chirodiff.py:rigl,0.5            # cats
    python train.py --config configs/quickdraw_chirodiff.py --config.task.words=cat,crab
    python train.py --config configs/quickdraw_chirodiff.py --config.task.source=cat.ndjson

The argument is any of: a method (dense, static, rigl, magran, ...), a structure (channel,
block16x64, ...), a sparsity, a drop fraction, an update interval, `cpu` (half an hour on one core),
`short` (minutes), `evidence` (see docs/evidence.md). The first run downloads the simplified
drawings of the categories in `task.words`. `--config.task.source` names other data: one of Google's
ndjson files, raw or simplified, a folder of them, or a packed npz.
https://github.com/googlecreativelab/quickdraw-dataset lists the categories.
"""

from ml_collections import ConfigDict

from . import chirodiff


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; the docstring of this file explains the argument."""
    config = chirodiff.get_config(arg)
    config.name = chirodiff.variant_name("quickdraw_chirodiff", arg)
    config.task.dataset = "quickdraw_strokes"
    if "evidence" in arg.split(","):
        config.steps = 1600
    return config
