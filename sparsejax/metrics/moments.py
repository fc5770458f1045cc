"""Mean and covariance of features: accumulate batch by batch, merge, save, load.

Sums are in float64. Besides the features in their own dtype, memory holds a block of rows and a
few [dim, dim] matrices.
"""

import functools
import json
from typing import NamedTuple

import numpy as np

from sparsejax import zips
from sparsejax.atomic import write_npz
from sparsejax.errors import ConfigError
from sparsejax.metrics.features import blocks, checked
from sparsejax.types import NumpyArray, PathLike, Value


class Statistics(NamedTuple):
    """Mean and covariance of a set of features.

    Attributes:
      count: number of rows seen, or None if a file doesn't record it.
      mean: [dim] float64.
      covariance: [dim, dim] float64, the sum of squares over count - 1; 0 for a count of 1.
    """

    count: int | None  # type: ignore[assignment]  # it hides the method of tuples
    mean: NumpyArray
    covariance: NumpyArray


def statistics(features: NumpyArray) -> Statistics:
    """Return Statistics of features.

    Args:
      features: [count, dim] numbers, at least one row.

    Raises:
      ValueError: wrong shape, no rows, or numbers that aren't finite.
    """
    (features,) = checked({"features": features}, 1)
    parts = (_block_statistics(features[rows].astype(np.float64)) for rows in blocks(features))
    return functools.reduce(merge, parts)


def update(stats: Statistics | None, features: NumpyArray) -> Statistics:
    """Return the Statistics of a batch and everything before it.

    Args:
      stats: Statistics of everything before, or None.
      features: [count, dim] numbers, at least one row.
    """
    latest = statistics(features)
    return latest if stats is None else merge(stats, latest)


def merge(a: Statistics, b: Statistics) -> Statistics:
    """Return the Statistics of the union of two sets, from those of each (Chan et al. 1979).

    Args:
      a: Statistics, with a count.
      b: Statistics of the same dim, with a count.

    Raises:
      ValueError: one has no count, or the dims differ.
    """
    if a.count is None or b.count is None:
        raise ValueError("statistics without a count can't be merged; accepted: both with counts")
    if len(a.mean) != len(b.mean):
        raise ValueError(f"dims {len(a.mean)} and {len(b.mean)}; accepted: equal dims")
    count = a.count + b.count
    shift = b.mean - a.mean
    scatter = np.outer(shift, shift)
    scatter *= a.count * b.count / count
    for rows, covariance in ((a.count, a.covariance), (b.count, b.covariance)):
        scatter += (rows - 1) * covariance
    scatter /= count - 1
    return Statistics(count, a.mean + shift * (b.count / count), scatter)


def save_statistics(path: PathLike, stats: Statistics, /, **about: Value) -> None:
    """Write Statistics as an npz that pytorch-fid can read, too.

    Keys: mu [dim], sigma [dim, dim], count (0 if unknown), about (JSON text).

    Args:
      path: path of the file, in a folder that exists.
      stats: Statistics of at least two rows.
      **about: what the features were computed from and with, JSON-serializable.

    Raises:
      ValueError: the Statistics are of fewer than two rows, or not a mean and covariance.
    """
    check_statistics(stats, "the statistics to save")
    text, count = np.array(json.dumps(about)), np.array(stats.count or 0)
    write_npz(path, {"mu": stats.mean, "sigma": stats.covariance, "count": count, "about": text})


def load_statistics(path: PathLike) -> tuple[Statistics, dict[str, Value]]:
    """Read a file of `save_statistics`, or any npz with keys mu and sigma; never unpickle.

    Args:
      path: path of an npz.

    Returns:
      Statistics, with count None if the file doesn't record it, and the dictionary `about`.

    Raises:
      ValueError: the file is damaged or not an npz, or its arrays aren't a mean and covariance.
      OSError: the file can't be opened.
    """
    accepted = "accepted: an npz with mu [dim] and sigma [dim, dim], as pytorch-fid writes"
    try:
        arrays = zips.read_npz(path, ("mu", "sigma", "count", "about"))
        missing = [key for key in ("mu", "sigma") if key not in arrays]
        if missing:
            keys = ", ".join(zips.names(path)[:50]) or "(none)"
            raise ValueError(f"no {' and no '.join(missing)}; its keys are {keys}")
        mean, covariance = _as_float(arrays["mu"], "mu"), _as_float(arrays["sigma"], "sigma")
        count = _as_count(arrays["count"]) if "count" in arrays else None
        about = _as_about(arrays["about"]) if "about" in arrays else {}
    except zips.NpzError as error:
        raise ConfigError(f"{error}; {accepted}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; {accepted}") from error
    stats = Statistics(count, mean, covariance)
    check_statistics(stats, path)
    return stats, about


def check_statistics(stats: Statistics, name: PathLike) -> None:
    """Check that Statistics are a mean and a covariance.

    Args:
      stats: Statistics.
      name: what to call them in messages.

    Raises:
      ValueError: fewer than two rows, shapes that don't fit, numbers that aren't finite, or a
        covariance that isn't symmetric or has a negative variance.
    """
    count, mean, covariance = stats
    if count is not None and count < 2:
        raise ValueError(f"{name}: too few rows, {count}; accepted: 2 or more, for a covariance")
    if mean.ndim != 1 or not mean.size or covariance.shape != 2 * mean.shape:
        shapes = f"a mean of shape {mean.shape} and a covariance of shape {covariance.shape}"
        raise ValueError(f"{name}: {shapes}; accepted: [dim] and [dim, dim]")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{name}: a mean or covariance not finite; accepted: finite numbers")
    asymmetry = np.max(abs(covariance - covariance.T))
    if asymmetry > 1e-6 * np.max(abs(covariance)):
        problem = f"the covariance differs from its transpose by {asymmetry:.3g}"
        raise ValueError(f"{name}: {problem}; accepted: a symmetric one")
    if covariance.diagonal().min() < 0:
        problem = f"a variance of {covariance.diagonal().min():.3g}"
        raise ValueError(f"{name}: {problem} in the covariance; accepted: 0 or more")


def _block_statistics(block: NumpyArray) -> Statistics:
    mean = block.mean(axis=0)
    block -= mean
    scatter = block.T @ block
    scatter /= max(1, len(block) - 1)
    return Statistics(len(block), mean, scatter)


def _as_float(array: NumpyArray, key: str) -> NumpyArray:
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{key} of dtype {array.dtype}")
    return array.astype(np.float64)


def _as_count(array: NumpyArray) -> int | None:
    if array.shape or array.dtype.kind not in "iu" or array < 0:
        raise ValueError(f"a count of {array}, which is not an int of 0 or more")
    return int(array) or None


def _as_about(array: NumpyArray) -> dict[str, Value]:
    try:
        about = json.loads(str(array))
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise ValueError("its about is not a JSON object")
    return about
