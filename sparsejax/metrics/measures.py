"""Measures of samples: distances to a reference set in the features of an extractor."""

import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sparsejax.errors import ConfigError
from sparsejax.metrics import distances, moments
from sparsejax.metrics.by_label import (
    ByLabel,
    accuracies,
    frechet_distances,
    statistics_by_label,
)
from sparsejax.metrics.copying import nearer_to_training
from sparsejax.metrics.extractors import (
    Extractor,
    Labelled,
    build_extractor,
    reference_features,
)
from sparsejax.metrics.names import DEFAULT_METRICS, METRICS, SUBSET_SIZE
from sparsejax.rendering.pixels import PICTURES
from sparsejax.storage import require_writable
from sparsejax.types import NumpyArray, PathLike

SUBSETS, SPLITS, NEIGHBOURS = 100, 10, 3  # torch-fidelity's

logger = logging.getLogger(__name__)


class Meter(NamedTuple):
    """Measures samples against one reference set.

    Attributes:
      count: number of samples that it measures.
      reference: description of what they are compared with.
      measure: `measure(batches, labels=None) -> {name: value}` for batches of pictures [n, height,
        width, channels] uint8, `count` in all, and the labels that they were made for, [count] int.
        With labels and a classifier of the same labels, the share of samples that it recognizes is
        measured too, and with `fd` the distances of each label (`by_label`). Names contain metric,
        extractor and number of samples: `FD[classifier:digits]@1797`. Pictures are dropped after
        each batch; features are kept only if a metric or labels need them, so the Frechet distance
        alone takes no more memory than a covariance.
    """

    count: int  # type: ignore[assignment]  # it hides the method of tuples
    reference: str
    measure: Callable[..., dict[str, float]]


class _Reference(NamedTuple):
    """What samples are compared with: Statistics, features (None of a file), a description."""

    statistics: moments.Statistics
    features: NumpyArray
    words: str
    by_label: ByLabel = {}  # noqa: RUF012  # never changed


class _Copying(NamedTuple):
    """Pixels of as many training as held-out examples, whatever features the metrics are of.

    A copy is one of pixels; features that are trained on labels could hide or invent it.
    """

    extractor: Extractor
    training: NumpyArray
    held_out: NumpyArray

    def note(self, batches: Iterable[NumpyArray], seen: list[NumpyArray]) -> Iterator[NumpyArray]:
        """Yield the batches, adding their pixels to `seen`."""
        for batch in batches:
            seen.append(self.extractor.extract(batch)[0])
            yield batch


def build_meter(
    reference: Callable[[], NumpyArray],
    label: str,
    *,
    split: str = "",
    labelled: Labelled | None = None,
    training: Callable[[int], NumpyArray] | None = None,
    reference_labels: Callable[[], NumpyArray] | None = None,
    count: int | None = None,
    metrics: Sequence[str] | None = None,
    extractor: str | None = None,
    weights: PathLike | None = None,
    statistics: PathLike | None = None,
    save_statistics: PathLike | None = None,
    subset_size: int = SUBSET_SIZE,
) -> Meter:
    """Return a Meter that compares samples with a set of real pictures.

    Args:
      reference: `reference() -> pictures` [number, height, width, channels] uint8.
      label: short name of the data.
      split: split of the reference set, for its description.
      labelled: see `build_extractor`; None without labels.
      training: `training(most) -> pictures`, at most so many examples that were trained on, for
        the metric `nearest`; None if there are none, or the reference set is trained on.
      reference_labels: `reference_labels() -> labels` [number] int of the reference set, to compare
        the samples of each label; None without labels.
      count: number of samples (default: size of the reference set).
      metrics: some of `METRICS` (default: those of `DEFAULT_METRICS` that there are enough
        examples for); `is`
        (Inception Score) is skipped if the extractor is not a classifier.
      extractor: see `build_extractor`.
      weights: path of Inception's weight file.
      statistics: path of an npz with `mu` and `sigma` to compare with instead of the pictures;
        only for the metric `fd`.
      save_statistics: path of an npz to write, to be passed as `statistics` later.
      subset_size: size of the subsets that `kid` draws.

    Raises:
      ConfigError: a metric is unknown, or has too few samples; a file of statistics can't be
        read or written, or doesn't fit the extractor.
    """
    _check_metrics(METRICS if metrics is None else metrics, statistics)
    pictures = np.asarray(reference())
    count = len(pictures) if count is None else count
    metrics = _enough(metrics, count, len(pictures), subset_size)
    copying = _copying_of(pictures, training, label) if "nearest" in metrics else None
    if save_statistics:
        _check_new_file(save_statistics)
    chosen = build_extractor(extractor, label, labelled, pictures.shape[1:], weights)
    if tuple(metrics) == ("is",) and chosen.name.startswith("pixels"):
        raise ConfigError(f"metric 'is' of {chosen.name}; accepted: a classifier or inception")
    if statistics:
        real = _read_reference(statistics, chosen)
    else:
        words = " ".join(filter(None, [label, split])) + f", {len(pictures):,} examples"
        compares_labels = "fd" in metrics and chosen.name.startswith("classifier")
        labels = reference_labels if compares_labels else None
        real = _reference_of(chosen, pictures, words, labels)
    if save_statistics:
        _save_statistics(save_statistics, chosen, real)
    if "fd" in metrics and count <= chosen.dim:
        problem = "the Frechet distance of so few samples is biased upwards"
        logger.warning("%d samples for %d features: %s", count, chosen.dim, problem)

    def measure(
        batches: Iterable[NumpyArray], labels: NumpyArray | None = None
    ) -> dict[str, float]:
        seen: list[NumpyArray] = []
        noted = copying.note(batches, seen) if copying else batches
        is_classifier = chosen.name.startswith("classifier")
        values = _measure(
            chosen, real, noted, metrics, subset_size, labels if is_classifier else None
        )
        named = {f"{name}[{chosen.name}]@{count}": value for name, value in values.items()}
        if copying:
            share = nearer_to_training(np.concatenate(seen), copying.training, copying.held_out)
            named[f"nearest[{copying.extractor.name}]@{count}"] = share
        return named

    return Meter(count, real.words, measure)


def _reference_of(
    extractor: Extractor,
    pictures: NumpyArray,
    words: str,
    labels: Callable[[], NumpyArray] | None,
) -> _Reference:
    features = reference_features(extractor, pictures)
    by_label = statistics_by_label(features, labels()) if labels else {}
    return _Reference(moments.statistics(features), features, words, by_label)


def _copying_of(
    held_out: NumpyArray, training: Callable[[int], NumpyArray] | None, label: str
) -> _Copying:
    if training is None:
        raise ConfigError(
            f"metric 'nearest' of {label}, whose reference examples are trained on; accepted: a "
            "config.task.reference_split without any example of config.task.split"
        )
    extractor = build_extractor("pixels", label, None, held_out.shape[1:])
    ours = training(len(held_out))
    others = held_out[np.linspace(0, len(held_out) - 1, len(ours)).astype(np.int64)]
    return _Copying(extractor, *(extractor.extract(pictures)[0] for pictures in (ours, others)))


def _measure(
    extractor: Extractor,
    real: _Reference,
    batches: Iterable[NumpyArray],
    metrics: Sequence[str],
    subset_size: int,
    labels: NumpyArray | None,
) -> dict[str, float]:
    """Return the metrics of batches of pictures, by name; labels are those of a classifier."""
    found: moments.Statistics | None = None
    features, logits = [], []
    for batch in batches:
        ours, scores = extractor.extract(batch)
        if "fd" in metrics:
            found = moments.update(found, ours)
        if labels is not None or "kid" in metrics or "precision_recall" in metrics:
            features.append(ours)
        if scores is not None and ("is" in metrics or labels is not None):
            logits.append(scores)
    together = np.concatenate(features) if features else np.empty((0, extractor.dim))
    values = {}
    if found is not None:
        name = "FID" if extractor.name == "inception:2048" else "FD"
        values[name] = distances.frechet_distance_of(found, real.statistics)
    if "kid" in metrics:
        mean, spread = distances.kernel_distance(
            together, real.features, subsets=SUBSETS, subset_size=subset_size
        )
        values |= {"KID": mean, "KID std": spread}
    if labels is not None:
        values |= accuracies(np.concatenate(logits), labels)
    if labels is not None and found is not None and real.by_label:
        values |= frechet_distances(together, labels, real.by_label)
    if logits and "is" in metrics:
        mean, spread = distances.inception_score(np.concatenate(logits), splits=SPLITS)
        values |= {"IS": mean, "IS std": spread}
    if "precision_recall" in metrics:
        pair = distances.precision_recall(together, real.features, neighbours=NEIGHBOURS)
        values |= dict(zip(("precision", "recall"), pair, strict=True))
    return values


def _check_metrics(metrics: Sequence[str], statistics: PathLike | None) -> None:
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        raise ConfigError(f"metrics {', '.join(unknown)!r}; accepted: {', '.join(METRICS)}")
    if statistics and tuple(metrics) != ("fd",):
        raise ConfigError(
            f"metrics {', '.join(metrics)!r} with statistics {str(statistics)!r}; accepted: fd, "
            "since such a file holds only a mean and a covariance"
        )


def _check_new_file(path: PathLike) -> None:
    """Raise ConfigError if a file of statistics can't be written."""
    path = pathlib.Path(path)
    accepted = "accepted: a file in a folder that exists"
    if not os.path.isdir(path.parent):
        raise ConfigError(
            f"--save-statistics is {str(path)!r}: there is no folder {path.parent}; {accepted}"
        )
    if os.path.isdir(path):
        raise ConfigError(f"--save-statistics is {str(path)!r}: it is a folder; {accepted}")
    require_writable(path.parent, "the folder of --save-statistics")


def _save_statistics(path: PathLike, extractor: Extractor, real: _Reference) -> None:
    about = {"extractor": extractor.name, "pictures": PICTURES, "reference": real.words}
    try:
        moments.save_statistics(path, real.statistics, **about)
    except OSError as error:
        raise ConfigError(f"--save-statistics is {str(path)!r}: {error}") from error


def _read_reference(path: PathLike, extractor: Extractor) -> _Reference:
    """Return the Statistics of a file, checked against the extractor."""
    try:
        statistics, about = moments.load_statistics(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"statistics {str(path)!r}: {error}") from error
    made_by = about.get("extractor", extractor.name)
    if made_by != extractor.name:
        raise ConfigError(
            f"statistics {str(path)!r} are of {made_by}; accepted: those of {extractor.name}"
        )
    # Files that name their extractor are written by this project. Inception has always had 8 bits.
    seen = about.get("pictures", PICTURES if extractor.name.startswith("inception") else None)
    if "extractor" in about and seen != PICTURES:
        raise ConfigError(
            f"statistics {str(path)!r} were made by a version that measured unrounded floats; "
            f"accepted: those of {PICTURES} pictures, written again with --save-statistics"
        )
    if len(statistics.mean) != extractor.dim:
        raise ConfigError(
            f"statistics {str(path)!r} are of {len(statistics.mean)} features; accepted: "
            f"{extractor.dim}, as {extractor.name} has"
        )
    words = f"{path}, {statistics.count or 'unknown number of'} examples"
    return _Reference(statistics, np.empty((0, extractor.dim)), words)


def _enough(
    metrics: Sequence[str] | None, count: int, real: int, subset_size: int
) -> tuple[str, ...]:
    """Return the metrics that there are enough examples for, before any is drawn.

    Raises:
      ConfigError: there are too few for one that was asked for, or for all.
    """
    least = {"fd": 2, "kid": subset_size, "is": SPLITS, "precision_recall": NEIGHBOURS + 1}
    least["nearest"] = 1
    both = {"fd", "kid", "precision_recall"}
    asked = DEFAULT_METRICS if metrics is None else metrics
    if "kid" in asked and subset_size < 2:
        raise ConfigError(f"KID subset size {subset_size}; accepted: 2 or more")
    problems = {}
    for metric in asked:
        fewest = min(count, real) if metric in both else count
        if fewest < least[metric]:
            hint = "; or a smaller KID subset size" if metric == "kid" else ""
            problems[metric] = (
                f"metric {metric!r} of {count} samples and {real} real examples; accepted: "
                f"{least[metric]} or more of each{hint}"
            )
    if problems and (metrics is not None or len(problems) == len(asked)):
        raise ConfigError(next(iter(problems.values())))
    for metric in problems:
        needed = f"{least[metric]:,} samples" + (" and real examples" if metric in both else "")
        logger.info(
            "metric %r isn't measured: it needs %s; here are %d and %d", metric, needed, count, real
        )
    return tuple(metric for metric in asked if metric not in problems)
