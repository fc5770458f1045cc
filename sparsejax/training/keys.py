"""PRNG keys: the source of all randomness."""

import zlib

import jax

from sparsejax.seeds import check_seed
from sparsejax.types import PRNGKey


def named_key(seed: int, purpose: str) -> PRNGKey:
    """Return the PRNG key of a named purpose: `init`, `masks`, `steps`, `topology`, `samples`.

    Args:
      seed: Python int in [0, 2^32).
      purpose: any string; keys of different purposes are independent.

    Raises:
      ValueError: `seed` is out of range; JAX would reduce it modulo 2^32.
    """
    return jax.random.fold_in(jax.random.key(check_seed(seed)), zlib.crc32(purpose.encode()))
