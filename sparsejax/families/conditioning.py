"""Labels of examples: left out at random in training, chosen and guided by in sampling."""

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sparsejax.errors import require
from sparsejax.families.objectives import Predict
from sparsejax.types import Apply, Array, Keys, NumpyArray, Params

Span: TypeAlias = tuple[float, float]  # times of the network, from and to

_MOST_COLUMNS = 20
_LABEL_DROPOUT = 3  # folded into an example's key


def classes_of(config: ConfigDict) -> int:
    """Return the number of labels of a config's network; 0 for one without."""
    return config.model.get("classes", 0)


def drop_labels(labels: Array, keys: Keys, rate: float, classes: int) -> Array:
    """Replace labels by `classes`, which stands for no label, each with probability `rate`.

    Args:
      labels: [batch] int.
      keys: a PRNG key per example [batch].
      rate: 0 to 1.
      classes: number of labels.
    """

    def is_left_out(key: Array) -> Array:
        return jax.random.bernoulli(jax.random.fold_in(key, _LABEL_DROPOUT), rate)

    return jnp.where(jax.vmap(is_left_out)(keys), classes, labels)


def sampled_labels(settings: ConfigDict, classes: int, indices: Array) -> Array:
    """Return the labels of samples: `sample.label`, or all labels in turn.

    Args:
      settings: `config.sample`.
      classes: number of labels.
      indices: of the samples, [count].
    """
    if settings.label is None:
        return indices % classes
    return jnp.full(indices.shape, settings.label)


def grid_columns(settings: ConfigDict, classes: int) -> int | None:
    """Return the number of columns of a grid of samples, one for each label, or None if too many.

    Args:
      settings: `config.sample`.
      classes: number of labels; 0 for a network without.
    """
    is_by_label = settings.label is None and 1 < classes <= _MOST_COLUMNS
    return classes if is_by_label else None


def in_turn(labels: NumpyArray, classes: int, count: int) -> NumpyArray:
    """Return the indices of `count` examples whose labels are 0, 1, ..., `classes` - 1, 0, ...

    Args:
      labels: [number] int; examples of a label are taken in their order, and again if there are
        too few.
      classes: number of labels.
      count: number of indices.
    """
    of_label = [np.flatnonzero(labels == label) for label in range(classes)]
    if not all(map(len, of_label)):
        return np.arange(min(count, len(labels)))
    places = (of_label[i % classes] for i in range(count))
    return np.array([place[i // classes % len(place)] for i, place in enumerate(places)])


def check_classes(classes: int, found: int, name: str) -> None:
    """Check that a network knows as many labels as its data have.

    Args:
      classes: number of labels of the network; 0 if it takes none.
      found: number of labels in the data; 1 if they have none.
      name: short name of the data.

    Raises:
      ConfigError: the numbers differ, or the data have no labels.
    """
    accepted = f"0 or {found}, the classes of {name}" if found > 1 else f"0: {name} has none"
    require(not classes or classes == found > 1, "model.classes", classes, accepted)


def check_conditioning(config: ConfigDict, classes: int) -> None:
    """Check the keys of `config.sample` that a network with labels reads.

    Args:
      config: resolved ConfigDict.
      classes: number of labels of the network; 0 if it takes none.

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    settings = config.sample
    label, span = settings.label, settings.guidance_interval
    without = "with model.classes 0, a network without labels"
    if not classes:
        require(label is None, "sample.label", label, f"None {without}")
        require(settings.guidance == 1, "sample.guidance", settings.guidance, f"1.0 {without}")
        require(not span, "sample.guidance_interval", span, f"() {without}")
        return
    accepted = f"None, or 0 to {classes - 1} (model.classes is {classes})"
    require(label is None or 0 <= label < classes, "sample.label", label, accepted)
    fits = not span or (len(span) == 2 and 0 <= span[0] < span[1] < math.inf)
    require(fits, "sample.guidance_interval", span, "(), or two numbers, 0 <= from < to")


def guided_span(settings: ConfigDict, network_time: Callable[[float], float]) -> Span | None:
    """Return the network's times between which guidance acts; None if it never does.

    Args:
      settings: `config.sample`.
      network_time: see `Objective`.
    """
    if settings.guidance == 1:
        return None
    if not settings.guidance_interval:
        return -math.inf, math.inf
    low, high = map(network_time, settings.guidance_interval)
    return low, high


def guided_passes(visited: NumpyArray, span: Span | None) -> int:
    """Return the number of forward passes per sample: two at each time that is guided.

    Args:
      visited: see `Objective`.
      span: see `guided_span`.
    """
    if span is None:
        return len(visited)
    return len(visited) + int(np.sum((visited >= span[0]) & (visited <= span[1])))


def conditioned(
    settings: ConfigDict,
    span: Span | None,
    classes: int,
    apply: Apply,
    params: Params,
    indices: Array,
) -> Predict:
    """Return `predict(x, t)` of a sampler, with labels and guidance if the network takes labels.

    Args:
      settings: `config.sample`.
      span: see `guided_span`.
      classes: number of labels; 0 for a network without.
      apply: `apply(params, x, t)`, or with labels after t.
      params: what `apply` takes.
      indices: of the samples, [count].
    """
    if not classes:
        return functools.partial(apply, params)
    labels = sampled_labels(settings, classes, indices)
    return guided(apply, params, labels, classes, settings.guidance, span)


def guided(
    apply: Apply, params: Params, labels: Array, classes: int, weight: float, span: Span | None
) -> Predict:
    """Return `predict(x, t)` by classifier-free guidance: Ho and Salimans (2022), equation 6.

    Between the times of `span` it is the prediction without labels plus `weight` times what labels
    change about it; elsewhere the prediction with labels.

    Args:
      apply: `apply(params, x, t, labels)`.
      params: what `apply` takes.
      labels: [batch] int.
      classes: the label that stands for none.
      weight: 1 is no guidance; this is 1 + w of the paper.
      span: see `guided_span`.
    """

    def plain(x: Array, t: Array) -> Array:
        return apply(params, x, t, labels)

    def weighted(x: Array, t: Array) -> Array:
        none = jnp.full_like(labels, classes)
        twice = [jnp.concatenate(pair) for pair in ((x, x), (t, t), (labels, none))]
        with_labels, without = jnp.split(apply(params, *twice), 2)
        return without + weight * (with_labels - without)

    if span is None:
        return plain
    low, high = span
    if low == -math.inf and high == math.inf:
        return weighted

    def predict(x: Array, t: Array) -> Array:
        is_inside = (low <= t[0]) & (t[0] <= high)
        return jax.lax.cond(is_inside, weighted, plain, x, t)

    return predict
