"""The cache folder of evaluation: classifiers, features of reference sets."""

import logging
import os
import pathlib
from collections.abc import Callable

from sparsejax import zips
from sparsejax.atomic import write_npz
from sparsejax.storage import require_writable
from sparsejax.types import NumpyArray

logger = logging.getLogger(__name__)


def cache_folder() -> pathlib.Path:
    """Return the folder `SPARSEJAX_CACHE` (default: ~/.cache/sparsejax), which need not exist."""
    return pathlib.Path(os.environ.get("SPARSEJAX_CACHE", "~/.cache/sparsejax")).expanduser()


def load_or_compute(
    name: str, compute: Callable[[], dict[str, NumpyArray]]
) -> dict[str, NumpyArray]:
    """Return the arrays of a file in the cache folder, computing them the first time.

    If the file is damaged, the arrays are computed again, with a warning.

    Args:
      name: name of the file, without `.npz`; it identifies everything that the arrays depend on.
      compute: `compute() -> {name: array}`.

    Raises:
      ConfigError: the arrays must be computed, but the folder can't be written to.
    """
    path = cache_folder() / f"{name}.npz"
    if path.exists():
        try:
            return zips.read_npz(path)
        except (zips.NpzError, OSError) as error:
            problem = zips.problem(error)
            logger.warning("%s is damaged and computed again: %s", path, problem)
    require_writable(cache_folder(), "SPARSEJAX_CACHE")
    arrays = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_npz(path, arrays)
    return arrays
