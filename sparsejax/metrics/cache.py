"""The cache folder of evaluation: classifiers, features of reference sets."""

import logging
import os
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from sparsejax import lease, zips
from sparsejax.atomic import set_aside, write_npz
from sparsejax.storage import cache_folder, require_writable
from sparsejax.types import NumpyArray, Shape

logger = logging.getLogger(__name__)


def load_or_compute(
    name: str, compute: Callable[[], dict[str, NumpyArray]], shapes: Mapping[str, Shape]
) -> dict[str, NumpyArray]:
    """Return the arrays of a file in the cache folder, computing them the first time.

    If the file is damaged or holds other arrays, they are computed again, with a warning. Processes
    that need the same file wait for the first one to compute it.

    Args:
      name: name of the file, without `.npz`; it identifies everything that the arrays depend on.
      compute: `compute() -> {name: array}`.
      shapes: `{name: shape}` of the arrays, which are finite floats.

    Raises:
      ConfigError: the arrays must be computed, but the folder can't be written to.
    """
    path = cache_folder() / f"{name}.npz"
    arrays, _ = _read(path, shapes)
    if arrays is not None:
        return arrays
    require_writable(cache_folder(), "SPARSEJAX_CACHE")
    with lease.hold_in_turn(cache_folder() / name):
        arrays, problem = _read(path, shapes)
        if arrays is not None:  # another process was faster
            return arrays
        if problem:
            logger.warning("%s is damaged and computed again: %s", path, problem)
        if path.is_dir():  # which a file can't replace
            set_aside(path)
        arrays = compute()
        write_npz(path, arrays)
    return arrays


def _read(
    path: pathlib.Path, shapes: Mapping[str, Shape]
) -> tuple[dict[str, NumpyArray] | None, str]:
    """Return the arrays of a file, or None and what is wrong with it; "" if it doesn't exist."""
    if not os.path.lexists(path):
        return None, ""
    try:
        arrays = zips.read_npz(path)
        problem = _problem(arrays, shapes)
    except (zips.NpzError, OSError) as error:
        return None, zips.problem(error)
    return (None, problem) if problem else (arrays, "")


def _problem(arrays: Mapping[str, NumpyArray], shapes: Mapping[str, Shape]) -> str:
    """Say what is wrong with arrays; empty if nothing is."""
    if arrays.keys() != shapes.keys():
        return f"it holds {', '.join(arrays) or 'nothing'} instead of {', '.join(shapes)}"
    for name, array in arrays.items():
        if array.dtype.kind != "f" or array.shape != shapes[name]:
            found = f"{array.dtype} {list(array.shape)}"
            return f"{name} is {found} instead of floats {list(shapes[name])}"
        if not np.isfinite(array).all():
            return f"{name} is not finite"
    return ""
