"""PRNG keys: the source of all randomness."""

import zlib
from typing import NamedTuple

import jax

from sparsejax.seeds import check_seed
from sparsejax.types import PRNGKey


class RunKeys(NamedTuple):
    """The PRNG keys of a run, by purpose.

    Attributes:
      init: of the initial params.
      masks: of the first masks.
      steps: of the train steps: times, noise, dropout.
      topology: of the topology updates.
      samples: of the pictures drawn during training.
    """

    init: PRNGKey
    masks: PRNGKey
    steps: PRNGKey
    topology: PRNGKey
    samples: PRNGKey


def run_keys(seed: int) -> RunKeys:
    """Return the keys of a run; see `named_key`."""
    return RunKeys(*(named_key(seed, purpose) for purpose in RunKeys._fields))


def named_key(seed: int, purpose: str) -> PRNGKey:
    """Return the PRNG key of a named purpose: a field of RunKeys, or any other.

    Args:
      seed: Python int in [0, 2^32).
      purpose: any string; keys of different purposes are independent.

    Raises:
      ValueError: `seed` is out of range; JAX would reduce it modulo 2^32.
    """
    return jax.random.fold_in(jax.random.key(check_seed(seed)), zlib.crc32(purpose.encode()))
