"""Distances between sets of features: Frechet, kernel, precision and recall, Inception Score.

The definitions are those of torch-fidelity, so that numbers are comparable with published ones.
Sums are in float64, over blocks of rows: besides the features in their own dtype, memory holds a
few blocks, a few [dim, dim] matrices and a few numbers per row.
"""

import functools
import math

import numpy as np
import scipy.linalg
import scipy.special

from sparsejax.metrics.features import blocks, checked, squared_distances
from sparsejax.metrics.moments import Statistics, check_statistics, statistics
from sparsejax.seeds import check_seed
from sparsejax.types import NumpyArray


def frechet_distance(features: NumpyArray, reference: NumpyArray) -> float:
    """Return the Frechet distance between Gaussians fitted to two sets of features.

    Args:
      features: [count, dim] numbers, at least two rows.
      reference: [other count, dim] numbers, at least two rows.

    Returns:
      float, 0 for equal sets.

    Raises:
      ValueError: fewer than two rows, different dims, or numbers that aren't finite.

    Examples:
      >>> x = np.random.default_rng(0).normal(size=(100, 3))
      >>> round(frechet_distance(x + [1.0, 2.0, 0.0], x), 6)
      5.0
    """
    sets = checked({"features": features, "reference": reference}, 2)
    return frechet_distance_of(*map(statistics, sets))


def frechet_distance_of(stats: Statistics, reference: Statistics) -> float:
    """Return the Frechet distance between two Gaussians, given by Statistics.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al. 2017). With C = R R^T, the trace of
    the root is the sum of the singular values of R1^T R2. Unlike the eigenvalues of C1 C2, these
    stay exact if there are fewer rows than dims and the covariances are singular.

    Args:
      stats: Statistics of at least two rows.
      reference: Statistics of the same dim, at least two rows.

    Returns:
      float, 0 for equal Statistics.

    Raises:
      ValueError: one is of fewer than two rows, or the dims differ.
    """
    check_statistics(stats, "statistics")
    check_statistics(reference, "reference")
    if len(stats.mean) != len(reference.mean):
        dims = f"dims {len(stats.mean)} and {len(reference.mean)}"
        raise ValueError(f"statistics and reference have {dims}; accepted: equal dims")
    product = _root(stats).T @ _root(reference)
    trace = scipy.linalg.svdvals(product).sum() if product.size else 0.0
    shift = stats.mean - reference.mean
    traces = np.trace(stats.covariance) + np.trace(reference.covariance)
    return max(0.0, float(shift @ shift + traces - 2 * trace))


def kernel_distance(
    features: NumpyArray,
    reference: NumpyArray,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    kernel: str = "polynomial",
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1,
    sigma: float = 10,
    seed: int = 2020,
) -> tuple[float, float]:
    """Return mean and standard deviation of the squared MMD between random subsets of two sets.

    The estimate is unbiased and can be below 0. With the polynomial kernel of Inception features
    is KID (Binkowski et al. 2018). With the same seed, it draws the subsets of torch-fidelity.

    Args:
      features: [count, dim] numbers.
      reference: [other count, dim] numbers.
      subsets: number of subsets to draw.
      subset_size: rows drawn, without replacement, from each set.
      kernel: "polynomial", (gamma x.y + coef0)^degree, or "rbf", exp(-|x - y|^2 / (2 sigma^2)).
      degree: a positive int.
      gamma: float (default: 1 / dim).
      coef0: float.
      sigma: float above 0.
      seed: seed of the draws.

    Raises:
      ValueError: a set has fewer rows than a subset or rows that aren't finite, the dims differ, or
        an argument is out of range.
    """
    _check_kernel(kernel, degree, sigma)
    _check_whole("subsets", subsets, 1)
    _check_whole("subset_size", subset_size, 2)
    sets = {"features": features, "reference": reference}
    features, reference = checked(sets, subset_size, f"for a subset_size of {subset_size}")
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


def inception_score(
    logits: NumpyArray, *, splits: int = 10, shuffle: bool = True, seed: int = 2020
) -> tuple[float, float]:
    """Return mean and standard deviation over splits of exp(E[KL(p(class | x) || p(class))]).

    Args:
      logits: [count, classes] numbers, before the softmax.
      splits: number of parts that the rows are cut into, each with its own score.
      shuffle: whether to shuffle the rows first, as torch-fidelity does.
      seed: seed of the shuffling.

    Returns:
      Two floats, means from 1 to the number of classes.

    Raises:
      ValueError: fewer rows than splits, or numbers that aren't finite.
    """
    seed = check_seed(seed)
    _check_whole("splits", splits, 1)
    (logits,) = checked({"logits": logits}, splits, f"for {splits} splits")
    count = len(logits)
    order = np.random.RandomState(seed).permutation(count) if shuffle else np.arange(count)
    scores = []
    for index in range(splits):
        rows = order[index * count // splits : (index + 1) * count // splits]
        total, entropy = np.zeros(logits.shape[1]), 0.0
        for part in blocks(rows):
            block = logits[rows[part]].astype(np.float64)
            chances = scipy.special.softmax(block, axis=1)
            total += chances.sum(axis=0)
            entropy += scipy.special.entr(chances).sum()
        marginal = scipy.special.entr(total / len(rows)).sum()
        scores.append(math.exp(marginal - entropy / len(rows)))
    return float(np.mean(scores)), float(np.std(scores))


def precision_recall(
    features: NumpyArray, reference: NumpyArray, *, neighbours: int = 3
) -> tuple[float, float]:
    """Return improved precision and recall (Kynkaanniemi et al. 2019).

    A set covers a point that is no further from one of its rows than that row's own k-th nearest
    neighbour in the set. Precision is the share of features that the reference covers, recall the
    share of the reference that the features cover.

    The numbers depend on the network that computes the features: evaluation uses its extractor,
    such as Inception's 2,048; the paper, and torch-fidelity by default, use VGG16's.

    Args:
      features: [count, dim] numbers, of generated examples.
      reference: [other count, dim] numbers, of real examples.
      neighbours: k.

    Returns:
      Two floats from 0 to 1.

    Raises:
      ValueError: a set has `neighbours` rows or fewer, the dims differ, or numbers aren't finite.
    """
    _check_whole("neighbours", neighbours, 1)
    sets = {"features": features, "reference": reference}
    minimum, reason = neighbours + 1, f"for {neighbours} neighbours"
    features, reference = checked(sets, minimum, reason)
    radii, reference_radii = (_squared_radii(x, neighbours) for x in (features, reference))
    precise, recalled = (np.zeros(len(x), bool) for x in (features, reference))
    for rows in blocks(features):
        x = features[rows].astype(np.float64)
        for columns in blocks(reference):
            squared = squared_distances(x, reference[columns].astype(np.float64))
            precise[rows] |= (squared <= reference_radii[columns]).any(axis=1)
            recalled[columns] |= (squared <= radii[rows, None]).any(axis=0)
    return float(precise.mean()), float(recalled.mean())


def _root(stats: Statistics) -> NumpyArray:
    """Return R [dim, rank] with R R^T the covariance, by a pivoted Cholesky decomposition."""
    factor, pivots, rank, _ = scipy.linalg.lapack.dpstrf(stats.covariance, lower=1)
    root = np.empty((len(factor), rank))
    root[pivots - 1] = np.tril(factor[:, :rank])
    return root


def _squared_radii(features: NumpyArray, neighbours: int) -> NumpyArray:
    """Return squared distances [count] to the k-th nearest of the other rows."""
    radii = np.empty(len(features))
    for rows in blocks(features):
        x = features[rows].astype(np.float64)
        nearest = []
        for columns in blocks(features):
            squared = squared_distances(x, features[columns].astype(np.float64))
            last = min(neighbours, squared.shape[1] - 1)
            nearest.append(np.partition(squared, last, axis=1)[:, : last + 1].copy())
        # Each row is its own nearest, at index 0.
        candidates = np.concatenate(nearest, axis=1)
        radii[rows] = np.partition(candidates, neighbours, axis=1)[:, neighbours]
    return radii


def _polynomial(
    x: NumpyArray, y: NumpyArray, degree: int, gamma: float, coef0: float
) -> NumpyArray:
    return functools.reduce(np.multiply, [x @ y.T * gamma + coef0] * degree)


def _rbf(x: NumpyArray, y: NumpyArray, sigma: float) -> NumpyArray:
    return np.exp(squared_distances(x, y) / (-2 * sigma**2))


def _check_kernel(kernel: str, degree: int, sigma: float) -> None:
    if kernel not in ("polynomial", "rbf"):
        raise ValueError(f"kernel {kernel!r}; accepted: 'polynomial' or 'rbf'")
    _check_whole("degree", degree, 1)
    if not sigma > 0:
        raise ValueError(f"sigma {sigma}; accepted: above 0")


def _check_whole(name: str, value: int, minimum: int) -> None:
    if not isinstance(value, int | np.integer) or value < minimum:
        raise ValueError(f"{name} {value!r}; accepted: an int, {minimum} or more")
