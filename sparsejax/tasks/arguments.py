"""Flax modules from the arguments that a config gives them."""

import jax.numpy as jnp

from sparsejax.configuration import require

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build_module(cls, arguments, key):
    """Return `cls(**arguments)`, the names of the arguments checked.

    Args:
      cls: Flax module class.
      arguments: ConfigDict of its attributes, `dtype` by name.
      key: where the arguments stand in the config.

    Raises:
      ConfigError: an argument that the class doesn't have, or an unknown dtype.
    """
    fields = [name for name in cls.__dataclass_fields__ if name not in ("parent", "name")]
    for name in arguments:
        require(name in fields, f"{key}.{name}", arguments[name], f"keys {', '.join(fields)}")
    arguments = {"dtype": "float32"} | arguments.to_dict()
    dtype = arguments["dtype"]
    require(dtype in DTYPES, f"{key}.dtype", dtype, ", ".join(DTYPES))
    return cls(**(arguments | {"dtype": DTYPES[dtype]}))


def is_count(value):
    """Tell whether a value is a whole number, 1 or more."""
    return isinstance(value, int) and value >= 1
