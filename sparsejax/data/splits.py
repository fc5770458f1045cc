"""Splits of a dataset, named and sliced as in tensorflow-datasets."""

import itertools

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from sparsejax.errors import ConfigError
from sparsejax.types import NumpyArray

_KEYS = ("split", "reference_split", "labelled_split")


def check_split(settings: ConfigDict, split: str, builder: tfds.core.DatasetBuilder) -> None:
    """Raise ConfigError for a split that the dataset doesn't have, or that is empty.

    Args:
      settings: `config.task`.
      split: as in tensorflow-datasets, such as train, validation or train[:12500].
      builder: prepared builder of the dataset.

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    try:
        count = builder.info.splits[split].num_examples
    except (KeyError, ValueError) as error:
        problem = str(error).split("\n")[0].strip("'\".")
    else:
        if count > 0:
            return
        problem = "it selects nothing"
    key = next((key for key in _KEYS if settings.get(key) == split), "split")
    splits = ", ".join(f"{name} ({s.num_examples})" for name, s in builder.info.splits.items())
    raise ConfigError(
        f"config.task.{key} is {split!r}: {problem}; accepted: {splits}, and slices of these such "
        "as train[:1000]"
    )


def is_held_out(settings: ConfigDict, builder: tfds.core.DatasetBuilder) -> bool:
    """Return whether no example of `reference_split` is in the training split.

    Args:
      settings: `config.task`.
      builder: prepared builder of the dataset.

    Raises:
      ConfigError: the dataset lacks one of the splits; see `check_split`.
    """
    for split in (settings.split, settings.reference_split):
        check_split(settings, split, builder)
    ours, theirs = (_parts(split, builder) for split in (settings.split, settings.reference_split))
    return not any(
        name == other and max(first, begin) < min(last, end)
        for (name, first, last), (other, begin, end) in itertools.product(ours, theirs)
    )


def _parts(split: str, builder: tfds.core.DatasetBuilder) -> list[tuple[str, int, int]]:
    """Return the slices of a split: (name, first example, example to stop before)."""
    splits = builder.info.splits
    return [
        (part.splitname, part.from_ or 0, part.to or splits[part.splitname].num_examples)
        for part in tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
    ]


def spread_over(count: int, most: int) -> NumpyArray:
    """Return the indices of `most` examples spread evenly over `count`, or all [number] int64."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)
