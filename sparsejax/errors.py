"""Errors that users can provoke: one line, naming what is wrong and what is accepted.

Imports nothing heavy, so every module can raise them.
"""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A config, a file or a workdir that can't work; the message says what would be accepted."""


def require(condition: object, key: str, value: object, accepted: str) -> None:
    """Raise a ConfigError that names a config key, its value and what is accepted.

    Args:
      condition: nothing happens if it is true.
      key: path of the key below `config`.
      value: what the key holds.
      accepted: what it may hold, in words.

    Raises:
      ConfigError: `condition` is false.
    """
    if not condition:
        raise ConfigError(f"config.{key} is {value!r}; accepted: {accepted}")


def nearest(path: str, known: Iterable[str]) -> str:
    """Return the known key whose path and last name are most like a mistyped one.

    Example:
      >>> nearest("sparsty.level", ["sparsity.level", "log.every"]), nearest("lvel", ["a.level"])
      ('sparsity.level', 'a.level')
    """

    def likeness(candidate: str) -> float:
        last = [name.rpartition(".")[2] for name in (path, candidate)]
        pairs = (path, candidate), last
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    known = list(known)
    inside = [candidate for candidate in known if candidate.startswith(f"{path}.")]
    return max(inside or known, key=likeness)
