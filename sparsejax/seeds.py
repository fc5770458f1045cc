"""Checks of seeds.

JAX reduces seeds modulo 2^32, so a larger seed would silently equal a smaller one.
"""

import operator

MAX_SEED = 2**32 - 1
ACCEPTED = f"whole numbers from 0 to {MAX_SEED}"


def check_seed(seed: int) -> int:
    """Return a seed as a Python int, checked.

    Args:
      seed: Python or numpy integer.

    Raises:
      ValueError: `seed` is not an integer in [0, 2^32).

    Examples:
      >>> check_seed(3)
      3
    """
    is_seed = not isinstance(seed, bool) and hasattr(seed, "__index__")
    if not is_seed or not 0 <= operator.index(seed) <= MAX_SEED:
        raise ValueError(f"seed {seed!r}; accepted: {ACCEPTED}")
    return operator.index(seed)
