"""What is measured of samples: distances to a reference set, in the features of an extractor."""

import logging
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sparsejax.errors import ConfigError
from sparsejax.metrics import distances
from sparsejax.metrics.extractors import build_extractor, reference_features
from sparsejax.rendering.pixels import PICTURES
from sparsejax.storage import require_writable

METRICS = ("fd", "kid", "is", "precision_recall")
SUBSETS, SUBSET_SIZE, SPLITS, NEIGHBOURS = 100, 1000, 10, 3  # torch-fidelity's

logger = logging.getLogger(__name__)


class Meter(NamedTuple):
    """Measures samples against one reference set.

    Attributes:
      count: how many samples it measures.
      reference: what they are compared with, in words.
      measure: `measure(batches) -> {name: value}` of batches of pictures [n, height, width,
        channels] uint8, `count` in all. Names say metric, extractor and sample count:
        `FD[classifier:digits]@1797`. Pictures are dropped batch by batch; features are kept only
        where a metric needs them, so the Frechet distance alone takes no more memory than a
        covariance.
    """

    count: int
    reference: str
    measure: Callable


def build_meter(
    task,
    label,
    *,
    split="",
    count=None,
    metrics=METRICS,
    extractor=None,
    weights=None,
    statistics=None,
    save_statistics=None,
    subset_size=SUBSET_SIZE,
):
    """Return a Meter of the samples of a task.

    Args:
      task: Task.
      label: short name of the data.
      split: of the reference set, for its name.
      count: how many samples; as many as there are real examples if None.
      metrics: some of `METRICS`; `is` (Inception Score) is left out where the extractor is no
        classifier.
      extractor: see `build_extractor`.
      weights: path of Inception's weight file.
      statistics: path of an npz with `mu` and `sigma` in place of the task's real examples; for
        the metric `fd` alone.
      save_statistics: path of an npz to write, to be read as `statistics` another time.
      subset_size: of the subsets that `kid` draws.

    Returns:
      Meter.

    Raises:
      ConfigError: a metric is unknown, or has too few samples; a file of statistics can't be
        read or written, or doesn't fit the extractor.
    """
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        raise ConfigError(f"metrics {', '.join(unknown)!r}; accepted: {', '.join(METRICS)}")
    if statistics and tuple(metrics) != ("fd",):
        raise ConfigError(
            f"metrics {', '.join(metrics)!r} with statistics {str(statistics)!r}; accepted: fd, "
            "since such a file holds a mean and a covariance only"
        )
    images = np.asarray(task.to_images(task.reference()))
    count = len(images) if count is None else count
    _check_counts(metrics, count, len(images), subset_size)
    if save_statistics:
        _check_new_file(save_statistics)
    extractor = build_extractor(extractor, label, task.labelled, images.shape[1:], weights)
    if statistics:
        known, real = _load_statistics(statistics, extractor), None
        reference = f"{statistics}, {known.count or 'unknown number of'} examples"
    else:
        real = reference_features(extractor, images)
        known = distances.statistics(real)
        reference = " ".join(filter(None, [label, split])) + f", {len(images):,} examples"
    if tuple(metrics) == ("is",) and extractor.name.startswith("pixels"):
        raise ConfigError(f"metric 'is' of {extractor.name}; accepted: a classifier or inception")
    if save_statistics:
        about = {"extractor": extractor.name, "pictures": PICTURES, "reference": reference}
        try:
            distances.save_statistics(save_statistics, known, **about)
        except OSError as error:
            raise ConfigError(f"--save-statistics is {str(save_statistics)!r}: {error}") from error
    if "fd" in metrics and count <= len(known.mean):
        logger.warning(
            "%d samples for %d features: the Frechet distance of so few is biased upwards",
            count,
            len(known.mean),
        )
    keep = set(metrics) & {"kid", "precision_recall"}

    def measure(batches):
        found, features, logits = None, [], []
        for batch in batches:
            ours, scores = extractor.extract(batch)
            found = distances.update(found, ours) if "fd" in metrics else None
            features += [ours] if keep else []
            logits += [scores] if "is" in metrics and scores is not None else []
        features = np.concatenate(features) if keep else None
        values = {}
        if "fd" in metrics:
            name = "FID" if extractor.name == "inception:2048" else "FD"
            values[name] = distances.frechet_distance_of(found, known)
        if "kid" in metrics:
            size = {"subsets": SUBSETS, "subset_size": subset_size}
            mean, spread = distances.kernel_distance(features, real, **size)
            values |= {"KID": mean, "KID std": spread}
        if logits:
            mean, spread = distances.inception_score(np.concatenate(logits), splits=SPLITS)
            values |= {"IS": mean, "IS std": spread}
        if "precision_recall" in metrics:
            pair = distances.precision_recall(features, real, neighbours=NEIGHBOURS)
            values |= dict(zip(("precision", "recall"), pair, strict=True))
        return {f"{name}[{extractor.name}]@{count}": value for name, value in values.items()}

    return Meter(count, reference, measure)


def _check_new_file(path):
    """Refuse a path of statistics where no file can be written."""
    path = pathlib.Path(path)
    accepted = "accepted: a file in a folder that exists"
    if not os.path.isdir(path.parent):
        raise ConfigError(
            f"--save-statistics is {str(path)!r}: there is no folder {path.parent}; {accepted}"
        )
    if os.path.isdir(path):
        raise ConfigError(f"--save-statistics is {str(path)!r}: it is a folder; {accepted}")
    require_writable(path.parent, "the folder of --save-statistics")


def _load_statistics(path, extractor):
    try:
        statistics, about = distances.load_statistics(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"statistics {str(path)!r}: {error}") from error
    made_by = about.get("extractor", extractor.name)
    if made_by != extractor.name:
        raise ConfigError(
            f"statistics {str(path)!r} are of {made_by}; accepted: those of {extractor.name}"
        )
    # Files that say their extractor are this project's. Inception has always seen 8 bits.
    seen = about.get("pictures", PICTURES if extractor.name.startswith("inception") else None)
    if "extractor" in about and seen != PICTURES:
        raise ConfigError(
            f"statistics {str(path)!r} were made by a version that measured unrounded floats; "
            f"accepted: those of {PICTURES} pictures, written anew by save_statistics"
        )
    if len(statistics.mean) != extractor.dim:
        raise ConfigError(
            f"statistics {str(path)!r} are of {len(statistics.mean)} features; accepted: "
            f"{extractor.dim}, as {extractor.name} has"
        )
    return statistics


def _check_counts(metrics, count, real, subset_size):
    """Refuse too few samples before anything is drawn."""
    least = {"fd": 2, "kid": subset_size, "is": SPLITS, "precision_recall": NEIGHBOURS + 1}
    both = {"fd", "kid", "precision_recall"}
    if "kid" in metrics and subset_size < 2:
        raise ConfigError(f"KID subset size {subset_size}; accepted: 2 or more")
    for metric in metrics:
        fewest = min(count, real) if metric in both else count
        if fewest < least[metric]:
            hint = "; or a smaller KID subset size" if metric == "kid" else ""
            raise ConfigError(
                f"metric {metric!r} of {count} samples and {real} real examples; accepted: "
                f"{least[metric]} or more of each{hint}"
            )
