"""Distances between sets of features."""

import numpy as np


def statistics(features):
    """Return mean [dim] and covariance [dim, dim] of features, float64.

    Args:
      features: [count, dim], two rows or more.
    """
    features = np.asarray(features, np.float64)
    return features.mean(axis=0), np.cov(features, rowvar=False)


def frechet_distance(features, reference):
    """Return the Frechet distance between Gaussians fitted to two sets of features.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al. 2017), float64; the trace of
    the root is the sum of the roots of the eigenvalues of C1 C2, as in torch-fidelity.

    Args:
      features: [count, dim].
      reference: [other count, dim].

    Returns:
      float, 0 for equal sets.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(100, 3))
      >>> round(frechet_distance(x + [1.0, 2.0, 0.0], x), 6)
      5.0
    """
    (mean_1, cov_1), (mean_2, cov_2) = statistics(features), statistics(reference)
    roots = np.sqrt(np.linalg.eigvals(cov_1 @ cov_2).astype(complex)).real
    difference = mean_1 - mean_2
    return float(difference @ difference + np.trace(cov_1) + np.trace(cov_2) - 2 * roots.sum())
