"""Errors that users can cause: one line that says what is wrong and what is accepted.

This module imports nothing heavy, so any module can use it.
"""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """An invalid config, file or workdir; the message says what is accepted."""


def require(condition: object, key: str, value: object, accepted: str) -> None:
    """Raise a ConfigError about a config key unless a condition holds.

    Args:
      condition: truth value to check.
      key: dotted path below `config`.
      value: value of the key.
      accepted: description of the accepted values.

    Raises:
      ConfigError: `condition` is false; names the key, its value and what is accepted.
    """
    if not condition:
        raise ConfigError(f"config.{key} is {value!r}; accepted: {accepted}")


def reason(error: BaseException) -> str:
    """Return an exception's message on one line, with its type if the message isn't plain words."""
    text = " ".join(str(error).split())
    plain = isinstance(error, OSError | ValueError) and text
    return text if plain else f"{type(error).__name__} {text}".strip()


def nearest(path: str, known: Iterable[str]) -> str:
    """Return the known key most similar to a mistyped one, by its path and its last name.

    Examples:
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
