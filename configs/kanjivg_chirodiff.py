"""Sparse ChiroDiff on KanjiVG: 11,662 Chinese and Japanese characters as pen strokes.

    python train.py --config configs/kanjivg_chirodiff.py:rigl,0.5
    python train.py --config configs/kanjivg_chirodiff.py:static,0.75 --config.seed=1
    python train.py --config configs/kanjivg_chirodiff.py:cpu,dense

The argument is any of: a method (dense, static, rigl, magran, ...), a structure (channel,
block16x64, ...), a sparsity, a drop fraction, an update interval, `cpu` (half an hour on one core),
`short` (minutes), `evidence` (see docs/evidence.md). The first run downloads the zip of release
20240807. `--config.task.source` names other data: a zip of
https://github.com/KanjiVG/kanjivg/releases, a folder of its SVGs, or a packed npz.
"""

from ml_collections import ConfigDict

from . import chirodiff


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; the docstring of this file explains the argument."""
    config = chirodiff.get_config(arg)
    config.name = chirodiff.variant_name("kanjivg_chirodiff", arg)
    config.task.dataset = "kanjivg"
    if "evidence" in arg.split(","):
        config.steps = 6000
    return config
