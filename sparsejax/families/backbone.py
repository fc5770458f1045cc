"""What `denoising_model` knows about a kind of network that denoises images or latents."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from flax import linen as nn
from ml_collections import ConfigDict

from sparsejax.errors import require
from sparsejax.families.arguments import is_count
from sparsejax.types import Groups, Params, PathLike, StateDict, Value

Network: TypeAlias = Any  # an instance of the backbone's Flax module


class Backbone(NamedTuple):
    """A kind of network: one file, and one line in `denoising.BACKBONES`.

    Attributes:
      module: Flax module with the fields `in_channels`, `classes` and `label_dropout`;
        `apply(params, x [batch, size, size, in_channels], t [batch], labels [batch] or None,
        train=..., dropout_keys=...)` predicts an array of x's shape.
      check: `check(network, config, size)` raises ConfigError unless the network fits inputs of
        this height and width.
      load: `load(path, network) -> params` from published files; raises ValueError if they are of
        another kind.
      to_names: `to_names(params) -> {name: array}` of published files.
      units: `units(network, params)`, see `Model.units`.
      widths: `widths(network)`, see `Model.widths`.
      narrow: `narrow(network, width)`, see `Model.narrow`.
    """

    module: type[nn.Module]
    check: Callable[[Network, ConfigDict, int], None]
    load: Callable[[PathLike, Network], Params]
    to_names: Callable[[Params], StateDict]
    units: Callable[[Network, Params], Groups]
    widths: Callable[[Network], tuple[int, ...]]
    narrow: Callable[[Network, int], dict[str, Value]]


def check_image_size(config: ConfigDict, size: int, multiple: int, reason: str) -> None:
    """Check that a network can take inputs of a size.

    Args:
      config: resolved ConfigDict.
      size: height and width of what is denoised.
      multiple: that `size` must be a multiple of.
      reason: why, given after the multiples.

    Raises:
      ConfigError: names `task.image_size` and what is accepted.
    """
    image_size = config.task.image_size
    require(is_count(image_size), "task.image_size", image_size, "1 or more")
    accepted = f"multiples of {multiple * (image_size // size)}: {reason}"
    fits = size >= multiple and size % multiple == 0
    require(fits, "task.image_size", image_size, accepted)
