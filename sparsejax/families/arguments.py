"""Build Flax modules from config arguments; checks that families share."""

import inspect
import re
import typing
from typing import TypeVar

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from sparsejax import values
from sparsejax.errors import require
from sparsejax.network_values import NETWORK_VALUES
from sparsejax.schema import Key
from sparsejax.types import Value

Network = TypeVar("Network", bound=nn.Module)

MAX_LEVELS, MAX_WIDTH = 16, 65_536
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def network_keys(cls: type[nn.Module], section: str = "model") -> tuple[Key, ...]:
    """Return the config keys of a network: one per field, its meaning taken from the docstring.

    Args:
      cls: Flax module class.
      section: config section that holds its arguments.

    Examples:
      >>> from sparsejax.models.unet import UNet
      >>> [key.default for key in network_keys(UNet) if key.path == "model.channel_mult"]
      [(1, 2, 3, 4)]
    """
    types, meanings = typing.get_type_hints(cls), _meanings(cls)
    keys = []
    for name, field in cls.__dataclass_fields__.items():
        if name in ("parent", "name"):
            continue
        meaning, accepted = meanings.get(name, ""), NETWORK_VALUES.get(name)
        key = Key(f"{section}.{name}", types[name], field.default, meaning, accepted)
        if name == "dtype":
            key = key._replace(type=str, default="float32", accepted=tuple(DTYPES))
        keys.append(key)
    return tuple(keys)


def _meanings(cls: type[nn.Module]) -> dict[str, str]:
    """Return `{attribute: meaning}` from the docstrings of a class and its bases."""
    meanings = {}
    for base in reversed(cls.__mro__):
        # Python 3.13 already strips the indentation.
        doc = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        text = doc.partition("Attributes:\n")[2].split("\n\n")[0]
        for name, meaning in re.findall(r"^ {2}(\w+): (.*(?:\n {4}.*)*)", text, re.MULTILINE):
            meanings[name] = " ".join(meaning.split()).rstrip(".")
    return meanings


def build_module(cls: type[Network], arguments: ConfigDict, section: str) -> Network:
    """Return `cls(**arguments)` after checking the names, types and values of the arguments.

    Args:
      cls: Flax module class.
      arguments: ConfigDict of its attributes, `dtype` by name.
      section: config section that holds the arguments.

    Raises:
      ConfigError: the class has no such argument, or a value has the wrong type or is out of range.
    """
    known = {key.path: key for key in network_keys(cls, section)}
    accepted = f"arguments of {cls.__name__}: " + ", ".join(p.rpartition(".")[2] for p in known)
    arguments = {"dtype": "float32"} | arguments.to_dict()
    for name, value in arguments.items():
        path = f"{section}.{name}"
        values.require_key(path, value, known, accepted)
        arguments[name] = values.check_value(known[path], value)
    return cls(**(arguments | {"dtype": DTYPES[arguments["dtype"]]}))


def check_widths(section: str, name: str, width: int, mults: tuple[int, ...]) -> None:
    """Check the widths of a network's levels.

    Args:
      section: config section that holds its arguments.
      name: argument that holds the width of the first level.
      width: its value.
      mults: `channel_mult`.

    Raises:
      ConfigError: there is no level, or too many, or one is too wide.
    """
    fits = 0 < len(mults) <= MAX_LEVELS
    require(fits, f"{section}.channel_mult", mults, f"1 to {MAX_LEVELS} whole numbers")
    accepted = f"{MAX_WIDTH // max(mults)} or less: {MAX_WIDTH} channels with channel_mult {mults}"
    require(width * max(mults) <= MAX_WIDTH, f"{section}.{name}", width, accepted)


def is_count(value: Value) -> bool:
    """Return whether a value is a whole number, 1 or more."""
    return values.has_type(int, value) and value >= 1


def require_fact(condition: object, name: str, value: object, accepted: str) -> None:
    """Check one of the facts of a run or a sparse file.

    Args:
      condition: whether the fact can be right.
      name: of the fact.
      value: of the fact.
      accepted: what is accepted, in words.

    Raises:
      ValueError: the condition doesn't hold; names the fact, its value and what is accepted.
    """
    if not condition:
        raise ValueError(f"the fact {name} is {value!r}; accepted: {accepted}")


def check_batch_size(config: ConfigDict, count: int) -> None:
    """Check that no training example appears twice in a batch.

    Args:
      config: resolved ConfigDict.
      count: number of training examples.

    Raises:
      ConfigError: `batch_size` is larger than `count`.
    """
    accepted = f"{count:,} or less, the number of examples in task.split ({config.task.split!r})"
    require(config.batch_size <= count, "batch_size", config.batch_size, accepted)
