"""Seeds: whole numbers that name one stream of random numbers each.

A JAX key takes its seed modulo 2^32, so a larger one would silently stand for a smaller.
"""

import operator

MAX_SEED = 2**32 - 1
ACCEPTED = f"whole numbers from 0 to {MAX_SEED}"


def check_seed(seed: int) -> int:
    """Return a seed as a Python int.

    Args:
      seed: Python or numpy integer.

    Raises:
      ValueError: it is no integer, or not in [0, 2^32).

    Example:
      >>> check_seed(3)
      3
    """
    is_seed = not isinstance(seed, bool) and hasattr(seed, "__index__")
    if not is_seed or not 0 <= operator.index(seed) <= MAX_SEED:
        raise ValueError(f"seed {seed!r}; accepted: {ACCEPTED}")
    return operator.index(seed)
