"""Splits of a dataset, named and sliced as in tensorflow-datasets."""

import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from sparsejax.errors import ConfigError


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
    key = "reference_split" if split == settings.reference_split != settings.split else "split"
    splits = ", ".join(f"{name} ({s.num_examples})" for name, s in builder.info.splits.items())
    raise ConfigError(
        f"config.task.{key} is {split!r}: {problem}; accepted: {splits}, and slices of these such "
        "as train[:1000]"
    )
