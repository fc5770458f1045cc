"""The diffusion transformer as a backbone: its checks, units and widths."""

import math

from ml_collections import ConfigDict

from sparsejax.errors import require
from sparsejax.families.backbone import Backbone, check_image_size
from sparsejax.models.dit import DiT
from sparsejax.models.dit_layout import dit_to_torch
from sparsejax.models.published_dit import load_dit
from sparsejax.models.units import dit_units
from sparsejax.types import Groups, Params, PathLike, Value

_MAX_HIDDEN = 65_536


def _check(network: DiT, config: ConfigDict, size: int) -> None:
    width, heads = network.hidden_size, network.num_heads
    multiple = math.lcm(heads, 4)
    accepted = f"multiples of {multiple}: of model.num_heads and of 4"
    require(width % multiple == 0, "model.hidden_size", width, accepted)
    hidden = width * network.mlp_ratio
    fits = hidden == int(hidden) and 1 <= hidden <= _MAX_HIDDEN
    accepted = f"a number that makes 1 to {_MAX_HIDDEN} hidden units of model.hidden_size ({width})"
    require(fits, "model.mlp_ratio", network.mlp_ratio, accepted)
    check_image_size(config, size, network.patch_size, "model.patch_size divides them into patches")


def _load(path: PathLike, network: DiT) -> Params:
    return load_dit(path, model=network)


def _units(network: DiT, params: Params) -> Groups:
    return dit_units(params, network.hidden_size // network.num_heads)


def _widths(network: DiT) -> tuple[int, ...]:
    """Return the widths that keep the number of attention heads."""
    step = math.lcm(network.num_heads, 4)
    widths = range(step, network.hidden_size + 1, step)
    return tuple(width for width in widths if (width * network.mlp_ratio).is_integer())


def _narrow(network: DiT, width: int) -> dict[str, Value]:
    """Return the arguments of a DiT with another width and the same depth."""
    del network
    return {"hidden_size": width}


BACKBONE = Backbone(DiT, _check, _load, dit_to_torch, _units, _widths, _narrow)
