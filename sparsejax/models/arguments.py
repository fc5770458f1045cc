"""The arguments of a network that determine what it computes, and files that state them.

Weights don't tell all of them, such as the channels of an attention head: a config.json does, or
the metadata of a file that was exported here.
"""

import json
from collections.abc import Mapping

import flax.linen as nn
from safetensors import SafetensorError, safe_open

from sparsejax.types import PathLike, Value

# What a network computes without training doesn't depend on these arguments.
FREE_ARGUMENTS = ("dtype", "remat", "dropout", "code_limit")
# What CompVis's code computes; of files that state no other.
COMPVIS_ARGUMENTS = {
    "norm_eps": 1e-5,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "downsample_padding": 1,
}
MODEL_KEY = "model"  # of metadata: arguments of the network, as JSON


def check_arguments(arguments: Mapping[str, Value], model: nn.Module, path: PathLike) -> None:
    """Refuse a file that describes another network than the one that will run its weights.

    Args:
      arguments: what the file says, `{name: value}`; names that the model doesn't have, or that
        change nothing without training (`FREE_ARGUMENTS`), don't count.
      model: of `models.unet` or `models.autoencoder`.
      path: of the file.

    Raises:
      ValueError: names the file, each argument that differs, and both values.
    """
    differing = []
    for name, theirs in arguments.items():
        ours = getattr(model, name, theirs)
        both = [comparable(name, value) for value in (theirs, ours)]
        if name not in FREE_ARGUMENTS and both[0] != both[1]:
            differing.append(f"{name} is {theirs!r}; accepted: {ours!r}, as in the model")
    if differing:
        raise ValueError(f"{path} describes another network: {'; '.join(differing)}")


def network_arguments(model: nn.Module) -> dict[str, Value]:
    """Return the arguments of a model that determine what it computes, `{name: value}`.

    Args:
      model: Flax module of `models`.

    Example:
      >>> from sparsejax.models.unet import UNet
      >>> network_arguments(UNet(norm_groups=8, remat=True))["norm_groups"]
      8
    """
    names = [name for name in type(model).__dataclass_fields__ if name not in ("parent", "name")]
    return {name: getattr(model, name) for name in names if name not in FREE_ARGUMENTS}


def comparable(name: str, value: Value) -> Value:
    """Return an argument's value such that equal ones compute the same."""
    value = tuple(value) if isinstance(value, list | tuple) else value
    return sorted(value) if name == "attention_resolutions" else value


def read_arguments(path: PathLike) -> dict[str, Value]:
    """Return what a file that was written here says of its network.

    Args:
      path: of any file.

    Returns:
      `{name: value}` of the arguments of a model of `models`; empty if the file doesn't say.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            arguments = json.loads((file.metadata() or {}).get(MODEL_KEY, "{}"))
    except (SafetensorError, OSError, ValueError):
        return {}
    return arguments if isinstance(arguments, dict) else {}
