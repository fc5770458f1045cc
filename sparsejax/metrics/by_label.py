"""Measures of samples that were made for labels: how many show theirs, and how well."""

import logging
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from sparsejax.metrics import distances, moments
from sparsejax.types import NumpyArray

OF_LABEL = " of label "  # in the names of measures of the samples of one label

logger = logging.getLogger(__name__)

ByLabel: TypeAlias = Mapping[int, moments.Statistics]


def statistics_by_label(features: NumpyArray, labels: NumpyArray) -> ByLabel:
    """Return the Statistics of the features of each label that two examples or more have.

    Args:
      features: [count, dim] numbers.
      labels: [count] int.
    """
    found, counts = np.unique(labels, return_counts=True)
    return {
        label: moments.statistics(features[labels == label]) for label in found[counts > 1].tolist()
    }


def accuracies(logits: NumpyArray, labels: NumpyArray) -> dict[str, float]:
    """Return the shares of samples whose largest logit is that of their label.

    Args:
      logits: [count, classes] numbers.
      labels: [count] int.

    Returns:
      `accuracy` of all, `worst accuracy`, and that of each label, such as `accuracy of label 3`.
    """
    right = logits.argmax(axis=1) == labels
    shares = {label: float(np.mean(right[labels == label])) for label in np.unique(labels)}
    overall = {"accuracy": float(np.mean(right)), "worst accuracy": min(shares.values())}
    return overall | {f"accuracy{OF_LABEL}{label}": share for label, share in shares.items()}


def frechet_distances(features: NumpyArray, labels: NumpyArray, real: ByLabel) -> dict[str, float]:
    """Return the Frechet distances between samples and real examples of the same label.

    Args:
      features: of the samples, [count, dim] numbers.
      labels: labels that they were made for, [count] int.
      real: Statistics of the real examples of each label.

    Returns:
      Distances such as `FD of label 3`, and their mean, `intra FD` (Miyato and Koyama 2018), if
      all labels of the samples have one: it takes two samples and two real examples.
    """
    ours = statistics_by_label(features, labels)
    values = {
        f"FD{OF_LABEL}{label}": distances.frechet_distance_of(ours[label], real[label])
        for label in sorted(ours.keys() & real.keys())
    }
    found, counts = np.unique(labels, return_counts=True)
    if len(values) < len(found):
        missing = len(found) - len(values)
        text = "intra FD isn't measured: %d of %d labels have fewer than 2 samples or real examples"
        logger.info(text, missing, len(found))
        return values
    fewest, dim = counts.min(), features.shape[1]
    if fewest <= dim:
        problem = "the intra FD of so few samples is biased upwards"
        logger.warning("%d samples of a label for %d features: %s", fewest, dim, problem)
    return values | {"intra FD": float(np.mean([*values.values()]))}
