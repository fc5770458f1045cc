"""Copying: whether samples lie nearer to training examples than to others of the same kind."""

import numpy as np

from sparsejax.metrics.features import blocks, checked, squared_distances
from sparsejax.types import NumpyArray


def nearer_to_training(features: NumpyArray, training: NumpyArray, held_out: NumpyArray) -> float:
    """Return the share of samples whose nearest neighbour is a training example.

    The neighbour is sought among as many training examples as examples that the model hasn't seen.
    Samples of a model that doesn't copy are nearest to one set as often as to the other, on average
    over which examples were trained on. So 0.5 means no copying, and 1 that every sample is nearest
    to a training example. Bad samples may share a few nearest neighbours; their share is then far
    from 0.5 by chance. Comparing distances to the two sets is the idea of the data-copying test of
    Meehan et al. 2020 (arXiv 2004.05675); their statistic compares the distances of samples and of
    held-out examples to the training set.

    Args:
      features: [count, dim] numbers, of samples.
      training: [number, dim] numbers, of training examples.
      held_out: [number, dim] numbers, of examples that weren't trained on.

    Returns:
      float from 0 to 1; a sample at equal distances counts half.

    Raises:
      ValueError: a set is empty, training and held-out examples differ in number, the dims differ,
        or numbers aren't finite.

    Examples:
      >>> samples = np.array([[0.1], [0.2], [0.9], [0.5]])
      >>> nearer_to_training(samples, training=np.array([[0.0]]), held_out=np.array([[1.0]]))
      0.625
    """
    sets = {"features": features, "training": training, "held_out": held_out}
    features, training, held_out = checked(sets, 1, "for a nearest neighbour")
    if len(training) != len(held_out):
        counts = f"{len(training)} training and {len(held_out)} held-out examples"
        raise ValueError(f"{counts}; accepted: as many of each")
    ours, others = (_squared_to_nearest(features, rows) for rows in (training, held_out))
    return float(np.mean((ours < others) + 0.5 * (ours == others)))


def _squared_to_nearest(features: NumpyArray, others: NumpyArray) -> NumpyArray:
    """Return the squared distance [count] of each row to the nearest of other rows."""
    nearest = np.full(len(features), np.inf)
    for rows in blocks(features):
        x = features[rows].astype(np.float64)
        for columns in blocks(others):
            squared = squared_distances(x, others[columns].astype(np.float64))
            nearest[rows] = np.minimum(nearest[rows], squared.min(axis=1))
    return nearest
