"""Values of config keys: their types, how texts become values, and what is wrong with them."""

import ast
import os
import re
import sys
import types
import typing
from collections.abc import Collection

from sparsejax.errors import ConfigError, nearest, require
from sparsejax.schema import PLACES, SIZE, Key, KeyType
from sparsejax.types import Value

_WORDS = {bool: "True or False", int: "a whole number", float: "a finite number", str: "text"}


def is_optional(type_: KeyType) -> bool:
    """Return whether a key of this type can be None."""
    return isinstance(type_, types.UnionType) and types.NoneType in typing.get_args(type_)


def without_none(type_: KeyType) -> KeyType:
    """Return a type without its None: `float` for `float | None`."""
    if not is_optional(type_):
        return type_
    return next(t for t in typing.get_args(type_) if t is not types.NoneType)


def describe_type(type_: KeyType) -> str:
    """Describe the values of a type in words.

    Examples:
      >>> describe_type(float | None), describe_type(tuple[int, ...])
      ('None, or a finite number', 'a tuple of whole numbers, such as (1, 2)')
    """
    plain = without_none(type_)
    if plain == SIZE:
        return "a whole number, or two such as 16x64"
    if typing.get_origin(plain) is tuple:
        words = {int: "whole numbers, such as (1, 2)", str: "texts, such as ('a', 'b')"}
        words[float] = "finite numbers, such as (0.1, 0.9)"
        text = f"a tuple of {words[typing.get_args(plain)[0]]}"
    else:
        text = _WORDS.get(plain, "a tuple")
    return f"None, or {text}" if is_optional(type_) else text


def describe_accepted(key: Key) -> str:
    """Describe the accepted values of a key: its choices, or its type and range."""
    if isinstance(key.accepted, dict):
        return f"{', '.join(key.accepted)}, or what a module of config.imports registers"
    if isinstance(key.accepted, tuple):
        return ", ".join(map(str, key.accepted))
    text = describe_type(key.type)
    return f"{text}, {key.accepted}" if key.accepted else text


def has_type(type_: KeyType, value: Value) -> bool:
    """Return whether a value has a key's type; a bool is not a number, a float not an int.

    Examples:
      >>> has_type(int, True), has_type(float, 1), has_type(tuple[int, ...], (1, 2.5))
      (False, True, False)
      >>> has_type(float, 10**400), has_type(float, float("nan"))
      (False, False)
    """
    if value is None:
        return is_optional(type_)
    plain = without_none(type_)
    if plain == SIZE:
        pair = value if isinstance(value, tuple) else (value, value)
        return len(pair) == 2 and all(has_type(int, number) for number in pair)
    if typing.get_origin(plain) is tuple:
        element = typing.get_args(plain)[0]
        return isinstance(value, tuple) and all(has_type(element, child) for child in value)
    if plain is tuple:
        kinds = (bool, int, float, str)
        return isinstance(value, tuple) and all(
            isinstance(child, kinds) or has_type(tuple, child) for child in value
        )
    if plain is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # Not isfinite: whole numbers can be too large for a float.
        return is_number and abs(value) <= sys.float_info.max
    if plain is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, plain)


def as_type(type_: KeyType, value: Value) -> Value:
    """Convert a value to a key's type: whole numbers to floats, lists (from JSON) to tuples."""
    plain = without_none(type_)
    if plain is float and has_type(float, value):
        return float(value)
    takes_tuple = plain is tuple or plain == SIZE or typing.get_origin(plain) is tuple
    if takes_tuple and isinstance(value, list):
        value = tuple(as_type(tuple, child) for child in value)
    if plain == tuple[float, ...] and isinstance(value, tuple):
        value = tuple(as_type(float, child) for child in value)
    return value


def is_accepted(key: Key, value: Value) -> bool:
    """Return whether a value of the right type is one of a key's choices, or in its range."""
    if key.accepted is None or value is None:
        return True
    if isinstance(key.accepted, tuple | dict):
        return value in key.accepted
    values = value if isinstance(value, tuple) else (value,)
    return all(within(number, key.accepted) for number in values)


def within(value: float, interval: str) -> bool:
    """Return whether a number lies in a range such as `[0, 1)` or `1 or more`.

    Args:
      value: a number.
      interval: `[a, b]`, `[a, b)`, `(a, b)`, `a to b`, `a or more`, or `more than a`.

    Examples:
      >>> within(1, "[0, 1)"), within(1, "1 or more"), within(0, "more than 0"), within(3, "0 to 3")
      (False, True, False, True)
    """
    low, *high = (float(number) for number in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", interval))
    above = value > low if interval.startswith(("(", "more than")) else value >= low
    below = not high or (value < high[0] if interval.endswith(")") else value <= high[0])
    return above and below


def parse(type_: KeyType, text: str) -> Value:
    """Parse a value given on the command line.

    Args:
      type_: type of the key.
      text: `None` if the type allows it; `true`, `t`, `1` and their opposites for bool; Python
        literals for tuples, where a single value is a tuple of one; `64` or `16x64` for a size.

    Raises:
      ValueError: `text` is not a value of the type.

    Examples:
      >>> parse(float | None, "None"), parse(float, "1e-3"), parse(tuple[int, ...], "1,2")
      (None, 0.001, (1, 2))
      >>> parse(SIZE, "64"), parse(SIZE, "16x64"), parse(SIZE, "(16, 64)")
      (64, (16, 64), (16, 64))
    """
    plain = without_none(type_)
    if is_optional(type_) and text.lower() == "none":
        return None
    if plain is bool:
        if text.lower() not in ("true", "t", "1", "false", "f", "0"):
            raise ValueError(text)
        return text.lower() in ("true", "t", "1")
    if plain == SIZE:
        return _parse_size(text)
    value = _parse_tuple(text) if typing.get_origin(plain) or plain is tuple else plain(text)
    value = as_type(type_, value)
    if not has_type(type_, value):
        raise ValueError(text)
    return value


def _parse_size(text: str) -> Value:
    value = _parse_tuple(re.sub(r"^(\d+)x(\d+)$", r"\1,\2", text))
    value = value[0] if len(value) == 1 else value
    if not has_type(SIZE, value):
        raise ValueError(text)
    return value


def _parse_tuple(text: str) -> tuple[Value, ...]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        if re.search(r"['\"()\[\]]", text):
            raise ValueError(text) from None
        value = [word.strip() for word in text.split(",") if word.strip()]
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def require_key(
    path: str, value: Value, known: Collection[str], accepted: str = "the keys in docs/configs.md"
) -> None:
    """Raise a ConfigError that names the nearest key if a key is unknown.

    Args:
      path: dotted path below `config`.
      value: value given for it.
      known: paths of the known keys.
      accepted: description of the known keys.

    Raises:
      ConfigError: `path` is not in `known`.
    """
    if path not in known:
        near = nearest(path, known)
        raise ConfigError(
            f"config.{path} (given {value!r}) is not a key; accepted: {accepted}; "
            f"nearest: config.{near}"
        )


def check_value(key: Key, value: Value) -> Value:
    """Return a value as its key holds it.

    Raises:
      ConfigError: the key can't hold it, whatever the other keys hold.
    """
    value = typed(key, value)
    if key.path in (*PLACES, "checkpoint.init_from", "name"):
        _check_path(key.path, value)
    check_range(key, value)
    return value


def typed(key: Key, value: Value) -> Value:
    """Return a value converted to the type of its key.

    Raises:
      ConfigError: it doesn't have that type.
    """
    value = as_type(key.type, value)
    fits = has_type(key.type, value)
    require(fits, key.path, value, describe_accepted(key))
    return value


def check_range(key: Key, value: Value) -> None:
    """Raise a ConfigError if a value is none of its key's choices, or out of its range."""
    text = key.accepted if isinstance(key.accepted, str) else describe_accepted(key)
    accepted = f"None, or {text}" if is_optional(key.type) else text
    fits = is_accepted(key, value)
    require(fits, key.path, value, accepted)


def _check_path(key: str, path: str) -> None:
    """Raise ConfigError for a path that the system rejects, other than a missing file."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise ConfigError(f"config.{key} is {path!r}: {problem}; accepted: a path") from error
