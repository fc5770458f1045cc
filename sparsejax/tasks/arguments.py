"""Flax modules from the arguments that a config gives them, and checks that tasks share."""

import jax.numpy as jnp

from sparsejax.configuration import require

SAMPLERS = ("ddim", "ddpm")
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


def check_sampling(config):
    """Refuse a sampler, or settings of it, that `diffusion.samplers` doesn't have.

    Args:
      config: resolved ConfigDict.

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    sampler, steps = config.sample.sampler, config.sample.steps
    require(sampler in SAMPLERS, "sample.sampler", sampler, ", ".join(SAMPLERS))
    total = config.diffusion.steps
    require(1 <= steps <= total, "sample.steps", steps, f"1 to {total} (diffusion.steps)")
    require(0 <= config.sample.eta <= 1, "sample.eta", config.sample.eta, "[0, 1]")
    clip = config.sample.clip
    require(clip is None or clip > 0, "sample.clip", clip, "None, or more than 0")
    weight = config.sample.noise_weight
    require(weight >= 0, "sample.noise_weight", weight, "0 or more")
