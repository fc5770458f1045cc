"""The Plan of a run: `config.sparsity` applied to a Model, and checked against it."""

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from ml_collections import ConfigDict

from sparsejax.compact.blocks import compact_blocks
from sparsejax.compact.channels import compact_channels, takes_channels
from sparsejax.compact.free_blocks import compact_free_blocks, has_fan_in
from sparsejax.compact.network import CompactNetwork, find_layers, is_plain, named
from sparsejax.configuration import asked_level, structure_name
from sparsejax.errors import ConfigError, require
from sparsejax.families import Model
from sparsejax.sparsity import channels, topology
from sparsejax.sparsity import structure as structures
from sparsejax.sparsity.blocks import fan_in_sparsities
from sparsejax.sparsity.distributions import GLOBAL, get_distribution
from sparsejax.sparsity.flat import static_counts
from sparsejax.sparsity.masks import apply_masks
from sparsejax.sparsity.methods import Method, get_method
from sparsejax.sparsity.schedules import UpdateSchedule
from sparsejax.training.block_sizes import check_block_size
from sparsejax.training.keys import named_key
from sparsejax.training.optimizers import drop_fraction_schedule, update_schedule
from sparsejax.types import Array, Masks, Params, PyTree, Schedule, Sparsities

logger = logging.getLogger(__name__)

# Structure, sparsities as requested and as whole units allow, and a function that logs what happens
# to layers without the structure.
_Read: TypeAlias = tuple[structures.Structure, Sparsities, Sparsities, Callable[[], None]]

_NEVER = UpdateSchedule(update_interval=1, begin=0, end=0)


class Plan(NamedTuple):
    """How a run is sparse.

    Attributes:
      method: how masks are drawn and how they change.
      structure: unit that is pruned and regrown: `weight`, `block` or `channel`; `weight` if dense.
      requested: as `sparsities`, before rounding to whole blocks; empty if only an overall sparsity
        is requested.
      sparsities: sparsity per layer, Python floats in the structure of params; with
        channels, of each group, `{group: float}`.
      level: requested overall sparsity; 0 if dense.
      flat_counts: number of active weights of each layer (`flat.static_counts`), the same at every
        step, for flat optimizer state (`optimizer.packed`); None if the state is whole.
      updates: when the topology changes; never if the method is not dynamic.
      drop_fraction: optax schedule over global steps.
      compact: `compact(masks)` returns the compact network of concrete masks, or None if no layer
        would become smaller.
      trains_compact: whether the compact network is the one that is trained: its shapes must never
        change, so a dynamic method needs channels or blocks with constant fan-in.
      log: `log()` logs what the structure leaves out, and which config keys are ignored.
    """

    method: Method
    structure: str
    requested: Sparsities
    sparsities: Sparsities
    level: float
    flat_counts: PyTree | None
    updates: UpdateSchedule
    drop_fraction: Schedule
    compact: Callable[[Masks], CompactNetwork | None]
    trains_compact: bool
    log: Callable[[], None]


def build_plan(config: ConfigDict, model: Model) -> Plan:
    """Return the Plan for a model: how `config.sparsity` applies to it.

    Args:
      config: resolved ConfigDict.
      model: Model.

    Raises:
      ConfigError: the network doesn't have the structure, a pattern in `sparsity.custom` is invalid
        or matches no layer, or a method that changes density is combined with flat optimizer state.
    """
    sparsity = config.sparsity
    params = jax.eval_shape(model.init, jax.random.key(0))
    read = _STRUCTURES[structure_name(sparsity)]
    structure, requested, sparsities, log_structure = read(sparsity, model, params)
    try:
        method = get_method(sparsity.method, structure)
    except ValueError as error:
        raise ConfigError(f"config.sparsity.structure is {structure.name!r}: {error}") from error
    level = asked_level(sparsity)

    def log() -> None:
        log_structure()
        if level != sparsity.level:
            logger.info("method dense ignores sparsity.level = %g", sparsity.level)

    accepted = f"False with sparsity.method {method.name!r}, which changes density"
    packed = config.optimizer.packed
    require(not (packed and method.changes_density), "optimizer.packed", packed, accepted)
    is_compact = _trains_compact(sparsity, structure, method, packed)
    flat_counts = None
    if packed and not is_compact:  # a compact network holds only active weights anyway
        masks = method.init(named_key(config.seed, "masks"), params, sparsities)
        flat_counts = static_counts(masks)
    return Plan(
        method=method,
        structure=structure.name,
        requested=requested,
        sparsities=sparsities,
        level=level,
        flat_counts=flat_counts,
        updates=update_schedule(sparsity) if method.is_dynamic else _NEVER,
        drop_fraction=drop_fraction_schedule(sparsity),
        compact=functools.partial(compact_network, sparsity, model),
        trains_compact=is_compact,
        log=log,
    )


def check_updates(config: ConfigDict, plan: Plan) -> None:
    """Check that a run has the topology updates that its method needs; warn if it has too few.

    Args:
      config: resolved ConfigDict.
      plan: its Plan.

    Raises:
      ConfigError: the network of a method that prunes would stay dense.
    """
    updates, steps, prunes = plan.updates, config.steps, plan.method.changes_density and plan.level
    planned, due = updates.due(updates.end + 1), updates.due(steps)
    if plan.method.is_dynamic and not due:
        none = (
            f"no topology update is due in {steps} steps: begin {updates.begin}, end {updates.end}"
        )
        accepted = f"a smaller one: {none}, so {plan.method.name} would prune nothing"
        interval = updates.update_interval
        require(not prunes, "sparsity.update_interval", interval, accepted)
        logger.warning("%s, update_interval %d", none, interval)
    elif prunes and due[-1] < planned[-1]:
        text = "%s ends its pruning at step %d, so %d steps don't reach S = %g"
        logger.warning(text, plan.method.name, planned[-1], steps, plan.level)
    elif prunes and due[-1] == steps:
        text = (
            "%s prunes after the last step, so nothing is fine-tuned; sparsity.end could be lower"
        )
        logger.warning(text, plan.method.name)


def _trains_compact(
    sparsity: ConfigDict, structure: structures.Structure, method: Method, packed: bool
) -> bool:
    """Return whether the compact network is trained: its shapes must never change.

    With `optimizer.packed`, a method that moves blocks or channels trains masked, as it always has.
    """
    if structure.name == "weight" or not sparsity.compact or method.changes_density:
        return False
    fixed = structure.compact_trees is not None and not packed
    return fixed or not method.is_dynamic


def compact_network(sparsity: ConfigDict, model: Model, masks: Masks) -> CompactNetwork | None:
    """Return the compact network of a model: the network without its inactive parts.

    Args:
      sparsity: `config.sparsity`, resolved; its method need not be registered here.
      model: Model.
      masks: concrete masks.

    Returns:
      CompactNetwork, or None if no layer would become smaller.
    """
    name, size = structure_name(sparsity), sparsity.block_size
    if name == "weight":
        return None
    masks = jax.device_get(masks)
    params, layers = find_layers(model.init)
    shapes = named(params)

    def takes_blocks(name: str) -> bool:
        return is_plain(layers.get(name.rpartition("/")[0]), shapes[name].shape)

    if name == "channel":
        groups = _groups(model, params)
        others = [
            path
            for path in channels.members_by_path(groups)
            if not takes_channels(layers.get(path.rpartition("/")[0]))
        ]
        if others:
            logger.info("the network stays masked: no channels can be removed from %s", others)
            return None
        network = compact_channels(
            params, _had(structures.channel(groups, model.init), masks), groups
        )
    elif has_fan_in(masks, size):
        network = compact_blocks(params, _had(structures.block(size), masks), size, takes_blocks)
    else:
        network = compact_free_blocks(masks, size, takes_blocks)
    return network if network and network.layers else None


def complete_units(
    structure: str, model: Model, params: Params, masks: Masks
) -> tuple[Params, Masks]:
    """Return params and masks in which inactive channels have no biases and scales.

    Older versions left these dense.

    Args:
      structure: `weight`, `block` or `channel`.
      model: Model.
      params: params, host arrays.
      masks: their masks, host arrays.

    Returns:
      Tuple of params and masks, host arrays; those that were given if nothing is missing.
    """
    if structure != "channel":
        return params, masks
    groups = _groups(model, params)
    whole = channels.complete(groups, masks, params)
    if whole is masks:
        return params, masks
    return jax.device_get((apply_masks(params, whole), whole))


def _had(structure: structures.Structure, masks: Masks) -> Sparsities:
    """Return sparsities, by layer or by group, that yield as many active units as masks have."""

    def sparsity(units: Array) -> float:
        inactive = int(np.sum(~np.asarray(units)))
        # A quarter of a unit more: rounding doesn't lose one.
        return (inactive + 0.25) / units.size if inactive else 0.0

    return jax.tree.map(sparsity, jax.jit(structure.unit_masks)(masks))


def _groups(model: Model, params: Params) -> channels.ChannelGroups:
    return {
        name: [structures.Member(*member) for member in members]
        for name, members in model.units(params).items()
    }


def _weights(sparsity: ConfigDict, model: Model, params: Params) -> _Read:
    del model
    sparsities = _by_layer(sparsity, params)
    if sparsity.distribution != GLOBAL:
        return structures.WEIGHT, sparsities, sparsities, lambda: None
    # No layer has a sparsity of its own; the sparsities say which can be sparse.
    overall = structures.WEIGHT._replace(keep=topology.keep_overall)
    return overall, {}, sparsities, lambda: None


def _blocks(sparsity: ConfigDict, model: Model, params: Params) -> _Read:
    del model
    size = sparsity.block_size
    fits = any(structures.block_of(leaf.shape, size) for leaf in jax.tree.leaves(params))
    accepted = "a size that divides the input and output channels of some layer"
    require(fits, "sparsity.block_size", size, accepted)
    requested = sparsities = _by_layer(sparsity, params)
    if sparsity.fan_in:
        check_block_size(params, requested, size)
        sparsities = fan_in_sparsities(params, requested, size)

    def log() -> None:
        structures.log_exceptions("block", params, size)

    return structures.block(size, sparsity.fan_in), requested, sparsities, log


def _channels(sparsity: ConfigDict, model: Model, params: Params) -> _Read:
    groups = _groups(model, params)
    accepted = "weight, block: channels of this network can't be removed independently"
    require(groups, "sparsity.structure", "channel", accepted)
    accepted = "() with channels: the same share is removed from every group"
    require(not sparsity.custom, "sparsity.custom", sparsity.custom, accepted)
    sparsities = structures.channel_sparsities(groups, params, sparsity.level)

    def log() -> None:
        structures.log_exceptions("channel", params, groups=groups)
        name = sparsity.distribution
        logger.info("structure channel ignores sparsity.distribution = %s", name)

    return structures.channel(groups, model.init), sparsities, sparsities, log


_STRUCTURES = {"weight": _weights, "block": _blocks, "channel": _channels}


def _by_layer(sparsity: ConfigDict, params: Params) -> Sparsities:
    custom = sparsity.custom
    try:
        return get_distribution(sparsity.distribution)(params, sparsity.level, custom=custom)
    except ValueError as error:
        require(False, "sparsity.custom", custom, f"pairs (pattern, sparsity) [{error}]")
