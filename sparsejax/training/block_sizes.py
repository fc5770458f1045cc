"""Whether blocks with constant fan-in give a model the requested density, or which size does."""

import math

import jax

from sparsejax.configuration import size_word
from sparsejax.errors import require
from sparsejax.sparsity.blocks import BlockSize, block_of, fan_in_sparsities
from sparsejax.sparsity.masks import is_sparsifiable, target_active
from sparsejax.types import Leaf, Params, Sparsities

_MOST_WITHOUT = 0.05  # of the sparsifiable weights, in layers that don't divide into blocks
_MOST_OFF = 0.02  # of the requested density


def check_block_size(params: Params, requested: Sparsities, size: BlockSize) -> None:
    """Check that blocks of this size, with constant fan-in, give a model its density.

    Args:
      params: pytree of arrays or `jax.ShapeDtypeStruct`.
      requested: sparsity requested of each layer, Python floats in the structure of `params`.
      size: of a block.

    Raises:
      ConfigError: more than 5 % of the sparsifiable weights lie in layers that don't divide into
        blocks, or the density of the model would be more than 2 % off; names a size that works.
    """
    share, off = share_without(params, requested, size), density_error(params, requested, size)
    if share <= _MOST_WITHOUT and off <= _MOST_OFF:
        return
    fitting = _fitting(params, requested, size)
    accepted = f"{'a smaller size' if fitting is None else size_word(fitting)}, or fan_in False"
    reason = f"{share:.0%} of the weights lie in layers that don't divide into such blocks"
    if share <= _MOST_WITHOUT:
        reason = f"the density of the model would be {off:.1%} off"
    require(False, "sparsity.block_size", size, f"{accepted} [{reason}]")


def share_without(params: Params, requested: Sparsities, size: BlockSize) -> float:
    """Return the share of the sparsifiable weights that are to be sparse without blocks.

    Args:
      params: pytree of arrays or `jax.ShapeDtypeStruct`.
      requested: sparsity requested of each layer, in the structure of `params`.
      size: of a block.
    """
    layers = _sparsifiable(params, requested)
    without = sum(
        math.prod(leaf.shape) for leaf, s in layers if s and block_of(leaf.shape, size) is None
    )
    return without / max(1, sum(math.prod(leaf.shape) for leaf, _ in layers))


def density_error(params: Params, requested: Sparsities, size: BlockSize) -> float:
    """Return how far the number of active sparsifiable weights is off, relative to the request.

    Args:
      params: pytree of arrays or `jax.ShapeDtypeStruct`.
      requested: sparsity requested of each layer, in the structure of `params`.
      size: of a block; fan-ins are rounded by `fan_in_sparsities`.
    """
    rounded = fan_in_sparsities(params, requested, size)
    had = sum(_active(leaf, s, size) for leaf, s in _sparsifiable(params, rounded))
    asked = sum(
        target_active(math.prod(leaf.shape), s) for leaf, s in _sparsifiable(params, requested)
    )
    return abs(had - asked) / max(1, asked)


def _active(leaf: Leaf, sparsity: float, size: BlockSize) -> float:
    weights = math.prod(leaf.shape)
    has_blocks = block_of(leaf.shape, size) is not None
    return (1 - sparsity) * weights if has_blocks else target_active(weights, sparsity)


def _sparsifiable(params: Params, sparsities: Sparsities) -> list[tuple[Leaf, float]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    values = jax.tree.leaves(jax.tree.map(lambda _, s: s, params, sparsities))
    pairs = zip(leaves, values, strict=True)
    return [(leaf, s) for (path, leaf), s in pairs if is_sparsifiable(path, leaf)]


def _fitting(params: Params, requested: Sparsities, size: BlockSize) -> BlockSize | None:
    """Return the first size that works, halving inputs and outputs; None if none does."""
    inputs, outputs = (size, size) if isinstance(size, int) else size
    halvings = [(i, o) for i in range(7) for o in range(7) if i + o]
    candidates: list[BlockSize] = []
    for i, o in sorted(halvings, key=lambda pair: (sum(pair), pair[1])):
        if isinstance(size, int) and i == o and size % 2**i == 0:
            candidates.append(size // 2**i)
        if inputs % 2**i == 0 and outputs % 2**o == 0 and outputs // 2**o >= 8:
            candidates.append((inputs // 2**i, outputs // 2**o))
    for candidate in candidates:
        if share_without(params, requested, candidate) > _MOST_WITHOUT:
            continue
        if density_error(params, requested, candidate) <= _MOST_OFF:
            return candidate
    return None
