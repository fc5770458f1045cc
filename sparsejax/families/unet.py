"""The UNet of Latent Diffusion as a backbone: its checks, units and widths."""

from ml_collections import ConfigDict

from sparsejax.errors import require
from sparsejax.families.arguments import check_widths
from sparsejax.families.backbone import Backbone, check_image_size
from sparsejax.models.convert import unet_to_torch
from sparsejax.models.published import load_unet
from sparsejax.models.unet import UNet
from sparsejax.models.units import unet_units
from sparsejax.types import Groups, Params, PathLike, Value


def _check(network: UNet, config: ConfigDict, size: int) -> None:
    _check_sizes(network)
    _check_attention(network)
    halvings = len(network.channel_mult) - 1
    halved = "images" if size == config.task.image_size else "latents"
    reason = f"model.channel_mult halves {halved} {halvings} times"
    check_image_size(config, size, 2**halvings, reason)


def _check_sizes(network: UNet) -> None:
    width, groups = network.model_channels, network.norm_groups
    check_widths("model", "model_channels", width, network.channel_mult)
    accepted = f"multiples of {groups} (norm_groups)"
    require(width % groups == 0, "model.model_channels", width, accepted)
    same = network.in_channels == network.out_channels
    accepted = f"{network.in_channels}, as model.in_channels"
    require(same, "model.out_channels", network.out_channels, accepted)
    accepted = "0, or 1 where model.model_channels is 4 or more"
    has_frequencies = network.freq_shift == 0 or width >= 4
    require(has_frequencies, "model.freq_shift", network.freq_shift, accepted)


def _check_attention(network: UNet) -> None:
    factors = [2**level for level in range(len(network.channel_mult))]
    attends = network.attention_resolutions
    accepted = f"some of {factors}, the downsampling factors"
    require(set(attends) <= set(factors), "model.attention_resolutions", attends, accepted)
    head = network.num_head_channels
    for factor, mult in zip(factors, network.channel_mult, strict=True):
        channels = mult * network.model_channels
        divides = channels % head == 0 or not (factor in attends or factor == factors[-1])
        accepted = f"divisors of {channels}, the channels at factor {factor}"
        require(divides, "model.num_head_channels", head, accepted)


def _widths(network: UNet) -> tuple[int, ...]:
    """Return the even widths that keep the number of attention heads.

    They keep at least half of the GroupNorm groups, too.
    """
    full, head = network.model_channels, network.num_head_channels
    widths = range(4 if network.freq_shift else 2, full + 1, 2)
    return tuple(w for w in widths if _norm_groups(network, w) and not head * w % full)


def _norm_groups(network: UNet, width: int) -> int:
    """Return the largest number of groups that divides a width, from half to all of the model's."""
    full = network.norm_groups
    divisors = [groups for groups in range(-(-full // 2), full + 1) if width % groups == 0]
    return max(divisors, default=0)


def _narrow(network: UNet, width: int) -> dict[str, Value]:
    """Return the arguments of a UNet with another width and the same depth."""
    return {
        "num_head_channels": network.num_head_channels * width // network.model_channels,
        "norm_groups": _norm_groups(network, width),
        "model_channels": width,
    }


def _load(path: PathLike, network: UNet) -> Params:
    return load_unet(path, model=network)


def _units(network: UNet, params: Params) -> Groups:
    return unet_units(params, network.norm_groups, network.num_head_channels)


BACKBONE = Backbone(UNet, _check, _load, unet_to_torch, _units, _widths, _narrow)
