"""How much of their masks two runs share, against what chance gives."""

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from sparsejax import zips
from sparsejax.reports.results import Layers

PackedMasks: TypeAlias = Mapping[str, np.ndarray]  # uint8, by layer


class Overlap(NamedTuple):
    """The overlap of the masks of several runs of one setting.

    Attributes:
      mean: over all pairs of runs.
      low: the smallest of a pair.
      high: the largest of a pair.
      chance: what masks of the same layer densities share that were drawn independently.
      masks: number of runs.
      pairs: number of pairs.
    """

    mean: float
    low: float
    high: float
    chance: float
    masks: int
    pairs: int


def read_masks(path: str | os.PathLike[str], layers: Layers) -> PackedMasks:
    """Read the packed masks of the layers that are sparse.

    Args:
      path: npz of one uint8 array a layer, as `numpy.packbits` packs its mask.
      layers: `{path: (active, weights)}`.

    Returns:
      `{path: packed mask}` of the layers in which not every weight is active.

    Raises:
      ValueError: a mask is missing, or isn't of the size or the number of active weights that
        `layers` says; or the file is no npz, or damaged.
      OSError: there is no such file, or it can't be read.
    """
    try:
        packed = zips.read_npz(path, layers)
    except zips.NpzError as error:  # without the path: it ends in a report
        raise ValueError(f"its masks can't be read: {error.problem}") from error
    masks = {}
    for name, (active, weights) in layers.items():
        if active == weights:
            continue
        if name not in packed:
            raise ValueError(f"no mask of layer {name}")
        mask = packed[name]
        if mask.dtype != np.uint8 or mask.shape != (-(-weights // 8),):
            raise ValueError(f"the mask of layer {name} isn't one of {weights} packed bits")
        if _count(mask) != active:
            raise ValueError(f"the mask of layer {name} has {_count(mask)} bits, not {active}")
        masks[name] = mask
    return masks


def overlap(first: PackedMasks, second: PackedMasks) -> float:
    """Return the share of active weights that two runs have in common.

    |A and B| / |A|, with A and B the active weights of all sparse layers taken together. Should
    the two differ in size, |A| is the mean of the two.

    Args:
      first: `{layer: packed mask}`.
      second: the same layers.

    Returns:
      float from 0 to 1.

    Raises:
      ValueError: the layers aren't the same.

    Examples:
      >>> a, b = (np.packbits(np.array(bits, bool)) for bits in ([1, 1, 0, 0], [0, 1, 1, 0]))
      >>> overlap({"layer": a}, {"layer": b})
      0.5
    """
    if {name: len(mask) for name, mask in first.items()} != {
        name: len(mask) for name, mask in second.items()
    }:
        raise ValueError("masks of different layers")
    both = sum(_count(first[name] & second[name]) for name in first)
    return both / ((_active(first) + _active(second)) / 2)


def chance(layers: Layers) -> float:
    """Return the overlap to expect of masks that are drawn independently layer by layer.

    A layer of n weights, a of them active, shares a^2 / n on average; so sum(a^2 / n) / sum(a)
    over the sparse layers.

    Args:
      layers: `{path: (active, weights)}`; layers in which all weights are active don't count.

    Returns:
      float from 0 to 1.

    Examples:
      >>> chance({"sparse": (25, 100), "dense": (9, 9)})
      0.25
    """
    sparse = [(active, weights) for active, weights in layers.values() if active < weights]
    expected = sum(active * active / weights for active, weights in sparse)
    return expected / sum(active for active, _ in sparse)


def overlap_of_runs(masks: Sequence[PackedMasks], layers: Layers) -> Overlap:
    """Compare every pair of runs.

    Args:
      masks: list of what `read_masks` returns, two or more.
      layers: `{path: (active, weights)}` of one of them.

    Returns:
      Overlap.
    """
    pairs = [overlap(first, second) for first, second in itertools.combinations(masks, 2)]
    return Overlap(
        float(np.mean(pairs)), min(pairs), max(pairs), chance(layers), len(masks), len(pairs)
    )


def _count(packed: np.ndarray) -> int:
    return int(np.bitwise_count(packed).sum(dtype=np.int64))


def _active(masks: PackedMasks) -> int:
    return sum(map(_count, masks.values()))
