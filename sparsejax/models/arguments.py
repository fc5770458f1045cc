"""The arguments of a network that determine what it computes, and files that state them.

Weights don't tell all of them, such as the channels of an attention head: a config.json does, or
the metadata of a file that was exported here.
"""

import json
from collections.abc import Mapping

import flax.linen as nn
from safetensors import SafetensorError, safe_open

from sparsejax.types import PathLike, Value

# Inference doesn't depend on these arguments.
FREE_ARGUMENTS = ("dtype", "remat", "dropout", "label_dropout", "code_limit")
# What CompVis's code computes, for files that don't state otherwise.
COMPVIS_ARGUMENTS = {
    "norm_eps": 1e-5,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "downsample_padding": 1,
}
MODEL_KEY = "model"  # of metadata: arguments of the network, as JSON


def check_arguments(arguments: Mapping[str, Value], model: nn.Module, path: PathLike) -> None:
    """Raise ValueError if a file describes another network than the model that will run it.

    Args:
      arguments: arguments stated by the file, `{name: value}`; names that the model doesn't have,
        or that only affect training (`FREE_ARGUMENTS`), are ignored.
      model: model of `models.unet` or `models.autoencoder`.
      path: the file.

    Raises:
      ValueError: arguments differ; names the file, each argument, and both values.
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
    """Return the arguments that determine what a model computes, `{name: value}`.

    Args:
      model: Flax module of `models`.

    Examples:
      >>> from sparsejax.models.unet import UNet
      >>> network_arguments(UNet(norm_groups=8, remat=True))["norm_groups"]
      8
    """
    names = [name for name in type(model).__dataclass_fields__ if name not in ("parent", "name")]
    return {name: getattr(model, name) for name in names if name not in FREE_ARGUMENTS}


def comparable(name: str, value: Value) -> Value:
    """Normalize the value of an argument: equal results mean equal networks."""
    value = tuple(value) if isinstance(value, list | tuple) else value
    return sorted(value) if name == "attention_resolutions" else value


def read_arguments(path: PathLike) -> dict[str, Value]:
    """Return the network arguments in the metadata of a file exported by sparsejax.

    Args:
      path: any file.

    Returns:
      `{name: value}`; empty if the file has no such metadata.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            arguments = json.loads((file.metadata() or {}).get(MODEL_KEY, "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError):
        return {}
    return arguments if isinstance(arguments, dict) else {}
