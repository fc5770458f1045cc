"""The folder that keeps what evaluation computes once: classifiers, features of reference sets."""

import os
import pathlib

import numpy as np


def cache_folder():
    """Return the folder `SPARSEJAX_CACHE`, ~/.cache/sparsejax by default; it need not exist."""
    return pathlib.Path(os.environ.get("SPARSEJAX_CACHE", "~/.cache/sparsejax")).expanduser()


def load_or_compute(name, compute):
    """Return the arrays of a file in the cache folder, computing them the first time.

    Args:
      name: of the file, without `.npz`; it tells everything that the arrays depend on.
      compute: `compute() -> {name: array}`.

    Returns:
      Dictionary of numpy arrays.
    """
    path = cache_folder() / f"{name}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    arrays = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.npz")  # several processes may compute the same
    np.savez(partial, **arrays)
    partial.replace(path)
    return arrays
