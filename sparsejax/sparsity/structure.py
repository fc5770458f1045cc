"""The unit that is pruned and regrown: single weights, blocks of channels, or whole channels.

A structure converts scores of weights to scores of units, and masks of units to masks of weights.
Prune and regrow (`topology`) work on units without knowing what a unit is. Masks keep their
contract: full-shape booleans, constant within a unit.
"""

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.sparsity import blocks, channels, topology
from sparsejax.sparsity.blocks import BlockSize, block_of
from sparsejax.sparsity.channel_trees import channel_trees
from sparsejax.sparsity.channels import (
    ChannelGroups,
    Member,
    channel_sparsities,
    members_by_path,
)
from sparsejax.sparsity.compact_trees import CompactTrees, block_trees
from sparsejax.sparsity.masks import apply_masks, is_sparsifiable, path_name, random_masks
from sparsejax.types import (
    ArrayLike,
    Gradients,
    IsSparsifiable,
    Masks,
    Params,
    PRNGKey,
    PyTree,
    Scores,
    Sparsities,
    Units,
)

logger = logging.getLogger(__name__)

__all__ = [
    "WEIGHT",
    "ChannelGroups",
    "CompactTrees",
    "Member",
    "Structure",
    "block",
    "block_of",
    "channel",
    "channel_sparsities",
    "log_exceptions",
]


class Structure(NamedTuple):
    """How weights are grouped into units; all functions are pure and may be traced.

    Attributes:
      name: `weight`, `block` or `channel`.
      pool: `pool(params) -> scores`: magnitude of every unit, a pytree of arrays [units].
      grow_scores: `grow_scores(gradients) -> scores` of the same shapes: mean |gradient|.
      unit_masks: `unit_masks(masks) -> booleans` of the same shapes; 0-d masks stay 0-d.
      spread: `spread(unit_masks, params) -> masks`, full-shape; uses only the shapes of `params`.
      probe: `probe(key, params, masks) -> params` at which the dense gradient is taken: the
        same function of the inputs, with a gradient for every unit that may grow.
      revive: `revive(key, params, before, after) -> params` under the masks `after`, with initial
        values for units that are newly active since `before`; `key` is that of `probe`.
      rewire: `rewire(scores, unit_masks, grow_scores, fraction) -> unit_masks`, with as many active
        units (see `topology.rewire`).
      keep: `keep(scores, unit_masks, counts) -> unit_masks` with the `counts` largest of the active
        units of each array (see `topology.keep`).
      draw: `draw(key, units, sparsities) -> unit_masks`: a random topology; `units` are arrays of
        the shapes of scores, or `jax.ShapeDtypeStruct`.
      compact_trees: `compact_trees(params, sparsities) -> CompactTrees`, from the shapes of params;
        None if the structure doesn't fix the shapes of what is active.
    """

    name: str
    pool: Callable[[Params], Scores]
    grow_scores: Callable[[Gradients], Scores]
    unit_masks: Callable[[Masks], Units]
    spread: Callable[[Units, Params], Masks]
    probe: Callable[[PRNGKey, Params, Masks], Params] = lambda key, params, masks: params
    revive: Callable[[PRNGKey, Params, Masks, Masks], Params] = lambda key, params, before, after: (
        apply_masks(params, after)
    )
    rewire: Callable[[Scores, Units, Scores, ArrayLike], Units] = topology.rewire
    keep: Callable[[Scores, Units, PyTree], Units] = topology.keep
    draw: Callable[[PRNGKey, PyTree, Sparsities], Units] = random_masks
    compact_trees: Callable[[Params, Sparsities], CompactTrees | None] | None = None


def _magnitudes(tree: PyTree) -> Scores:
    return jax.tree.map(jnp.abs, tree)


WEIGHT = Structure(
    "weight", _magnitudes, _magnitudes, lambda masks: masks, lambda units, params: units
)


def block(size: BlockSize, fan_in: bool = False) -> Structure:
    """Return the structure of blocks: some input by some output channels, with all taps.

    A block's score is the mean over its weights. Like a weight, it is regrown at zero. In a layer
    whose channels don't divide into blocks, single weights move; see `log_exceptions`.

    With constant fan-in, every output block of a layer has the same number of active input blocks,
    so what is active has the same shape whatever the topology (SRigL does it for single weights,
    Lasby et al. 2023). Blocks are dropped wherever they are the weakest of the layer; each output
    block then regrows as many as it lost.

    Args:
      size: number of input and of output channels of a block, or a pair (see `blocks.block_of`).
      fan_in: whether all output blocks of a layer have the same number of active input blocks.

    Returns:
      Structure for kernels [..., input channels, output channels].

    Examples:
      >>> kernel = {"kernel": jnp.ones((3, 3, 4, 6))}
      >>> block(2).pool(kernel)["kernel"].shape
      (2, 3)
    """

    def pool(tree: PyTree) -> Scores:
        return jax.tree.map(lambda leaf: blocks.pool(leaf, size), tree)

    return Structure(
        "block",
        pool,
        pool,
        lambda masks: jax.tree.map(lambda mask: blocks.unit_mask(mask, size), masks),
        lambda units, params: jax.tree.map(
            lambda mask, leaf: blocks.spread(mask, leaf, size), units, params
        ),
        rewire=topology.rewire_columns if fan_in else topology.rewire,
        keep=topology.keep_columns if fan_in else topology.keep,
        draw=blocks.random_fan_in if fan_in else random_masks,
        compact_trees=functools.partial(block_trees, size=size) if fan_in else None,
    )


def channel(groups: ChannelGroups, init: Callable[[PRNGKey], Params]) -> Structure:
    """Return the structure of channels: units that extend over several arrays.

    If a unit is inactive, so are all weights that lead into it and out of it, its biases and scales
    included: the network is one without the unit. A unit's score is the mean over its weights,
    without biases and scales. It is regrown with fresh incoming weights, biases and scales, and
    zero outgoing weights. The gradient of an inactive unit is zero by construction, so growth
    scores are taken with every inactive unit given the incoming weights that it would be regrown
    with: the network's outputs don't change, and the gradient of the outgoing weights measures how
    useful a unit is. Arrays in no group stay dense.

    Args:
      groups: `{name: [Member, ...]}`.
      init: `init(key) -> params`, to draw fresh parameters.

    Returns:
      Structure; its units are `{name: array [units]}`.
    """
    return Structure(
        "channel",
        pool=functools.partial(channels.mean_over, groups),
        grow_scores=lambda gradients: channels.mean_over(
            groups, gradients, lambda member: not member.incoming
        ),
        unit_masks=functools.partial(channels.unit_masks, groups),
        spread=functools.partial(channels.spread, groups),
        probe=functools.partial(channels.probe, groups, init),
        revive=functools.partial(channels.revive, groups, init),
        compact_trees=functools.partial(channel_trees, groups),
    )


def log_exceptions(
    structure: str,
    params: Params,
    size: BlockSize | None = None,
    groups: ChannelGroups | None = None,
    *,
    is_sparsifiable: IsSparsifiable = is_sparsifiable,
) -> list[str]:
    """Log which sparsifiable layers a structure can't divide, and how they are treated instead.

    Args:
      structure: `block` or `channel`; nothing is logged for `weight`.
      params: pytree of arrays or `jax.ShapeDtypeStruct`.
      size: of a block, if `structure` is `block`.
      groups: `{name: [Member, ...]}`, if `structure` is `channel`.
      is_sparsifiable: predicate of path and leaf that selects the layers to check.

    Returns:
      Names of the layers.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    layers = {path_name(path): leaf.shape for path, leaf in leaves if is_sparsifiable(path, leaf)}
    if structure == "block" and size is not None:
        rule = f"move single weights: channels aren't multiples of {size}"
        others = [name for name, shape in layers.items() if block_of(shape, size) is None]
    elif structure == "channel":
        rule = "stay dense: they belong to no group of channels"
        others = [name for name in layers if name not in members_by_path(groups or {})]
    else:
        return []
    if others:
        logger.info("structure %s: %d layers %s: %s", structure, len(others), rule, others)
    return others
