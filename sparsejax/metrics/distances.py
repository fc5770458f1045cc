"""Distances between sets of features: Frechet, kernel, precision and recall, Inception Score.

The definitions are torch-fidelity's, so that numbers compare with published ones. Everything is
summed in float64, in blocks of rows: beside the features as they came, memory holds a few blocks,
a few [dim, dim] matrices and a few numbers a row.
"""

import functools
import json
import math
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.special

from sparsejax.atomic import replacing
from sparsejax.seeds import check_seed
from sparsejax.storage import DAMAGED

_BLOCK = 2048  # rows


class Statistics(NamedTuple):
    """Mean and covariance of a set of features.

    Attributes:
      count: of rows seen, or None where a file doesn't say.
      mean: [dim] float64.
      covariance: [dim, dim] float64, the sum of squares over count - 1; 0 for a count of 1.
    """

    count: int | None
    mean: np.ndarray
    covariance: np.ndarray


def statistics(features):
    """Return Statistics of features.

    Args:
      features: [count, dim] numbers, one row or more.

    Raises:
      ValueError: another shape, no row, or numbers that aren't finite.
    """
    (features,) = _checked({"features": features}, 1)
    return _statistics(features)


def update(stats, features):
    """Return Statistics of a batch and of all that came before it.

    Args:
      stats: Statistics of what came before, or None.
      features: [count, dim] numbers, one row or more.
    """
    latest = statistics(features)
    return latest if stats is None else merge(stats, latest)


def merge(a, b):
    """Return Statistics of two sets together, from the Statistics of each (Chan et al. 1979).

    Args:
      a: Statistics, with a count.
      b: Statistics of the same dim, with a count.

    Raises:
      ValueError: one has no count, or the dims differ.
    """
    if a.count is None or b.count is None:
        raise ValueError("statistics without a count can't be merged; accepted: both with counts")
    if len(a.mean) != len(b.mean):
        raise ValueError(f"dims {len(a.mean)} and {len(b.mean)}; accepted: two equal ones")
    count = a.count + b.count
    shift = b.mean - a.mean
    scatter = np.outer(shift, shift)
    scatter *= a.count * b.count / count
    for part in (a, b):
        scatter += (part.count - 1) * part.covariance
    scatter /= count - 1
    return Statistics(count, a.mean + shift * (b.count / count), scatter)


def save_statistics(path, stats, /, **about):
    """Write Statistics as an npz that pytorch-fid reads too.

    Keys: mu [dim], sigma [dim, dim], count (0 if unknown), about (a string of JSON).

    Args:
      path: of the file, in a folder that exists.
      stats: Statistics of two rows or more.
      **about: what the features are of and from, as JSON can hold it.
    """
    _check_statistics(stats, "the statistics to save")
    about = np.array(json.dumps(about))
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, mu=stats.mean, sigma=stats.covariance, count=stats.count or 0, about=about)


def load_statistics(path):
    """Read what `save_statistics` wrote, or any npz with keys mu and sigma. Nothing is unpickled.

    Args:
      path: of an npz.

    Returns:
      Statistics, with count None where the file doesn't say, and the dictionary `about`.

    Raises:
      ValueError: the file is something else, or its arrays can't be a mean and a covariance.
    """
    accepted = "accepted: an npz with mu [dim] and sigma [dim, dim], as pytorch-fid writes"
    try:
        arrays = np.load(path, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with arrays:
            missing = [key for key in ("mu", "sigma") if key not in arrays]
            if missing:
                keys = ", ".join(arrays) or "(none)"
                raise ValueError(f"no {' and no '.join(missing)}; its keys are {keys}")
            mean, covariance = _as_float(arrays["mu"], "mu"), _as_float(arrays["sigma"], "sigma")
            count = _as_count(arrays["count"]) if "count" in arrays else None
            about = _as_about(arrays["about"]) if "about" in arrays else {}
    except DAMAGED as error:
        raise ValueError(f"{path}: {error}; {accepted}") from error
    stats = Statistics(count, mean, covariance)
    _check_statistics(stats, path)
    return stats, about


def frechet_distance(features, reference):
    """Return the Frechet distance between Gaussians fitted to two sets of features.

    Args:
      features: [count, dim] numbers, two rows or more.
      reference: [other count, dim] numbers, two rows or more.

    Returns:
      float, 0 for equal sets.

    Raises:
      ValueError: fewer than two rows, dims that differ, or numbers that aren't finite.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(100, 3))
      >>> round(frechet_distance(x + [1.0, 2.0, 0.0], x), 6)
      5.0
    """
    sets = _checked({"features": features, "reference": reference}, 2)
    return frechet_distance_of(*map(_statistics, sets))


def frechet_distance_of(stats, reference):
    """Return the Frechet distance between two Gaussians, given by Statistics.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al. 2017). With C = R R^T, the trace of
    the root is the sum of the singular values of R1^T R2. Unlike the eigenvalues of C1 C2, these
    stay exact where there are fewer rows than dims and the covariances are singular.

    Args:
      stats: Statistics of two rows or more.
      reference: Statistics of the same dim, two rows or more.

    Returns:
      float, 0 for equal Statistics.

    Raises:
      ValueError: one is of fewer than two rows, or the dims differ.
    """
    _check_statistics(stats, "statistics")
    _check_statistics(reference, "reference")
    if len(stats.mean) != len(reference.mean):
        dims = f"dims {len(stats.mean)} and {len(reference.mean)}"
        raise ValueError(f"statistics and reference have {dims}; accepted: two equal ones")
    product = _root(stats).T @ _root(reference)
    trace = scipy.linalg.svdvals(product).sum() if product.size else 0.0
    shift = stats.mean - reference.mean
    traces = np.trace(stats.covariance) + np.trace(reference.covariance)
    return max(0.0, float(shift @ shift + traces - 2 * trace))


def kernel_distance(
    features,
    reference,
    *,
    subsets=100,
    subset_size=1000,
    kernel="polynomial",
    degree=3,
    gamma=None,
    coef0=1,
    sigma=10,
    seed=2020,
):
    """Return mean and standard deviation of the squared MMD between random subsets of two sets.

    The unbiased estimate, which can be below 0. With the polynomial kernel of Inception features
    it is KID (Binkowski et al. 2018). Equal seeds draw torch-fidelity's subsets.

    Args:
      features: [count, dim] numbers.
      reference: [other count, dim] numbers.
      subsets: how many to draw.
      subset_size: rows drawn, without replacement, from each set.
      kernel: "polynomial", (gamma x.y + coef0)^degree, or "rbf", exp(-|x - y|^2 / (2 sigma^2)).
      degree: a positive int.
      gamma: 1 / dim if None.
      coef0: float.
      sigma: float above 0.
      seed: of the draws.

    Returns:
      Two floats.

    Raises:
      ValueError: a set has fewer rows than a subset or rows that aren't finite, dims differ, or
        an argument is out of range.
    """
    if kernel not in ("polynomial", "rbf"):
        raise ValueError(f"kernel {kernel!r}; accepted: 'polynomial' or 'rbf'")
    _check_whole("subsets", subsets, 1)
    _check_whole("subset_size", subset_size, 2)
    _check_whole("degree", degree, 1)
    if not sigma > 0:
        raise ValueError(f"sigma {sigma}; accepted: above 0")
    sets = {"features": features, "reference": reference}
    features, reference = _checked(sets, subset_size, f"for a subset_size of {subset_size}")
    if kernel == "rbf":
        evaluate = functools.partial(_rbf, sigma=sigma)
    else:
        gamma = 1 / features.shape[1] if gamma is None else gamma
        evaluate = functools.partial(_polynomial, degree=degree, gamma=gamma, coef0=coef0)
    rng = np.random.RandomState(check_seed(seed))
    distances = []
    for _ in range(subsets):
        x, y = (
            rows[rng.choice(len(rows), subset_size, replace=False)].astype(np.float64)
            for rows in (features, reference)
        )
        within = sum(k.sum() - k.trace() for k in (evaluate(x, x), evaluate(y, y)))
        across = evaluate(x, y).mean()
        distances.append(within / (subset_size * (subset_size - 1)) - 2 * across)
    return float(np.mean(distances)), float(np.std(distances))


def inception_score(logits, *, splits=10, shuffle=True, seed=2020):
    """Return mean and standard deviation over splits of exp(E[KL(p(class | x) || p(class))]).

    Args:
      logits: [count, classes] numbers, before the softmax.
      splits: parts of the rows that are scored by themselves.
      shuffle: whether to shuffle the rows before, as torch-fidelity does.
      seed: of the shuffling.

    Returns:
      Two floats, means from 1 to the number of classes.

    Raises:
      ValueError: fewer rows than splits, or numbers that aren't finite.
    """
    seed = check_seed(seed)
    _check_whole("splits", splits, 1)
    (logits,) = _checked({"logits": logits}, splits, f"for {splits} splits")
    count = len(logits)
    order = np.random.RandomState(seed).permutation(count) if shuffle else np.arange(count)
    scores = []
    for index in range(splits):
        rows = order[index * count // splits : (index + 1) * count // splits]
        total, entropy = np.zeros(logits.shape[1]), 0.0
        for start in range(0, len(rows), _BLOCK):
            block = logits[rows[start : start + _BLOCK]].astype(np.float64)
            chances = scipy.special.softmax(block, axis=1)
            total += chances.sum(axis=0)
            entropy += scipy.special.entr(chances).sum()
        marginal = scipy.special.entr(total / len(rows)).sum()
        scores.append(math.exp(marginal - entropy / len(rows)))
    return float(np.mean(scores)), float(np.std(scores))


def precision_recall(features, reference, *, neighbours=3):
    """Return improved precision and recall (Kynkaanniemi et al. 2019).

    A set covers a point that is no further from one of its rows than that row's own k-th nearest
    neighbour in the set. Precision is the share of features that the reference covers, recall the
    share of the reference that the features cover.

    The numbers depend on whose features these are: evaluation gives it those of its extractor, such
    as Inception's 2,048; the paper, and torch-fidelity by default, take VGG16's.

    Args:
      features: [count, dim] numbers, of what was generated.
      reference: [other count, dim] numbers, of what is real.
      neighbours: k.

    Returns:
      Two floats from 0 to 1.

    Raises:
      ValueError: a set of `neighbours` rows or fewer, dims that differ, or numbers that aren't
        finite.
    """
    _check_whole("neighbours", neighbours, 1)
    sets = {"features": features, "reference": reference}
    minimum, reason = neighbours + 1, f"for {neighbours} neighbours"
    features, reference = _checked(sets, minimum, reason)
    radii, reference_radii = (_squared_radii(x, neighbours) for x in (features, reference))
    precise, recalled = (np.zeros(len(x), bool) for x in (features, reference))
    for rows in _blocks(features):
        x = features[rows].astype(np.float64)
        for columns in _blocks(reference):
            squared = _squared_distances(x, reference[columns].astype(np.float64))
            precise[rows] |= (squared <= reference_radii[columns]).any(axis=1)
            recalled[columns] |= (squared <= radii[rows, None]).any(axis=0)
    return float(precise.mean()), float(recalled.mean())


def _blocks(rows):
    return [slice(start, start + _BLOCK) for start in range(0, len(rows), _BLOCK)]


def _statistics(features):
    parts = (_block_statistics(features[rows].astype(np.float64)) for rows in _blocks(features))
    return functools.reduce(merge, parts)


def _block_statistics(block):
    mean = block.mean(axis=0)
    block -= mean
    scatter = block.T @ block
    scatter /= max(1, len(block) - 1)
    return Statistics(len(block), mean, scatter)


def _root(stats):
    """Return R [dim, rank] with R R^T the covariance, by a Cholesky decomposition with pivots."""
    factor, pivots, rank, _ = scipy.linalg.lapack.dpstrf(stats.covariance, lower=1)
    root = np.empty((len(factor), rank))
    root[pivots - 1] = np.tril(factor[:, :rank])
    return root


def _squared_radii(features, neighbours):
    """Return squared distances [count] to the k-th nearest of the other rows."""
    radii = np.empty(len(features))
    for rows in _blocks(features):
        x = features[rows].astype(np.float64)
        nearest = []
        for columns in _blocks(features):
            squared = _squared_distances(x, features[columns].astype(np.float64))
            last = min(neighbours, squared.shape[1] - 1)
            nearest.append(np.partition(squared, last, axis=1)[:, : last + 1].copy())
        # Each row is its own nearest, at index 0.
        nearest = np.concatenate(nearest, axis=1)
        radii[rows] = np.partition(nearest, neighbours, axis=1)[:, neighbours]
    return radii


def _squared_distances(x, y):
    """Return [rows of x, rows of y]; what rounding leaves between equal rows becomes 0."""
    norms = np.einsum("id,id->i", x, x)[:, None] + np.einsum("id,id->i", y, y)
    squared = x @ y.T
    squared *= -2
    squared += norms
    norms *= x.shape[1] * np.finfo(np.float64).eps
    squared[squared <= norms] = 0
    return squared


def _polynomial(x, y, degree, gamma, coef0):
    return math.prod([x @ y.T * gamma + coef0] * degree)


def _rbf(x, y, sigma):
    return np.exp(_squared_distances(x, y) / (-2 * sigma**2))


def _check_whole(name, value, minimum):
    if not isinstance(value, int | np.integer) or value < minimum:
        raise ValueError(f"{name} {value!r}; accepted: an int, {minimum} or more")


def _checked(sets, minimum, reason="for a covariance"):
    """Return a dictionary's sets of features as arrays, of one dim and long enough, or refuse."""
    arrays = {name: np.asarray(rows) for name, rows in sets.items()}
    for name, rows in arrays.items():
        if rows.ndim != 2 or 0 in rows.shape[1:]:
            raise ValueError(f"{name} of shape {rows.shape}; accepted: [count, dim]")
        if not np.can_cast(rows.dtype, np.float64, "same_kind"):
            raise ValueError(f"{name} of dtype {rows.dtype}; accepted: real numbers")
    shapes = " and ".join(f"{name} {list(rows.shape)}" for name, rows in arrays.items())
    if len({rows.shape[1] for rows in arrays.values()}) > 1:
        raise ValueError(f"{shapes} differ in dim; accepted: two of one dim")
    if min(map(len, arrays.values())) < minimum:
        least = f"{minimum} or more rows" + (" in each" if len(arrays) > 1 else "")
        raise ValueError(f"too few rows, {shapes}; accepted: {least}, {reason}")
    for name, rows in arrays.items():
        bad = sum(
            np.count_nonzero(~np.isfinite(rows[block]).all(axis=1)) for block in _blocks(rows)
        )
        if bad:
            raise ValueError(f"{name} has {bad} rows that aren't finite; accepted: finite numbers")
    return list(arrays.values())


def _check_statistics(stats, name):
    count, mean, covariance = stats
    if count is not None and count < 2:
        raise ValueError(f"{name}: too few rows, {count}; accepted: 2 or more, for a covariance")
    if mean.ndim != 1 or not mean.size or covariance.shape != 2 * mean.shape:
        shapes = f"a mean of shape {mean.shape} and a covariance of shape {covariance.shape}"
        raise ValueError(f"{name}: {shapes}; accepted: [dim] and [dim, dim]")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{name}: a mean or covariance not finite; accepted: finite numbers")
    asymmetry = abs(covariance - covariance.T).max()
    if asymmetry > 1e-6 * abs(covariance).max():
        problem = f"the covariance differs from its transpose by {asymmetry:.3g}"
        raise ValueError(f"{name}: {problem}; accepted: a symmetric one")
    if covariance.diagonal().min() < 0:
        problem = f"a variance of {covariance.diagonal().min():.3g}"
        raise ValueError(f"{name}: {problem} in the covariance; accepted: 0 or more")


def _as_float(array, key):
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{key} of dtype {array.dtype}")
    return array.astype(np.float64)


def _as_count(array):
    if array.shape or array.dtype.kind not in "iu" or array < 0:
        raise ValueError(f"a count of {array}, which is no int from 0 on")
    return int(array) or None


def _as_about(array):
    try:
        about = json.loads(str(array))
    except json.JSONDecodeError:
        about = None
    if not isinstance(about, dict):
        raise ValueError("its about is no JSON object")
    return about
