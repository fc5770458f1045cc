"""The runs of a comparison: methods x structures x sparsities x drop fractions x ... x seeds."""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from sparsejax.configuration import STRUCTURES, default_config, resolve, structure_words
from sparsejax.errors import require
from sparsejax.evaluation.baselines import small_dense
from sparsejax.seeds import ACCEPTED, MAX_SEED
from sparsejax.sparsity.distributions import GLOBAL
from sparsejax.sparsity.methods import METHODS, get_method

BASELINES = {"small_dense": "parameters", "small_dense_flops": "flops"}


class Run(NamedTuple):
    """One run of a grid.

    Attributes:
      name: name of its workdir; runs that differ have different names.
      method: a method, or one of `BASELINES`.
      level: sparsity; for a baseline, that of the sparse model whose size it has; 0 if dense.
      config: config to train it with.
    """

    name: str
    method: str
    level: float
    config: ConfigDict


def grid(
    config: ConfigDict,
    *,
    methods: Sequence[str],
    levels: Sequence[float],
    structures: Sequence[str] = (),
    drop_fractions: Sequence[float] = (),
    update_intervals: Sequence[int] = (),
    seeds: Sequence[int] = (0,),
) -> list[Run]:
    """List the runs of a grid, each once, even if its method ignores some of the axes.

    Dense models have no structure, and a baseline has the size of the sparse model with single
    weights.

    Args:
      config: ConfigDict that all runs share.
      methods: names of methods and of `BASELINES`.
      levels: sparsities.
      structures: some of `configuration.STRUCTURES` (default: the config's). Blocks are of the
        config's `sparsity.block_size`.
      drop_fractions: drop fractions (default: the config's).
      update_intervals: steps between topology updates (default: the config's).
      seeds: Python ints.

    Returns:
      The runs, ordered by seed.

    Raises:
      ConfigError: a value is unknown or out of range, or the config of a run is invalid.
    """
    for method in methods:
        known = [*METHODS, *BASELINES]
        require(method in known, "sparsity.method", method, ", ".join(known))
    structures = structures or (config.sparsity.structure,)
    for structure in structures:
        is_known = structure in STRUCTURES
        require(is_known, "sparsity.structure", structure, ", ".join(STRUCTURES))
    drop_fractions = drop_fractions or (config.sparsity.drop_fraction,)
    update_intervals = update_intervals or (config.sparsity.update_interval,)
    narrowed = functools.cache(lambda method, level: _narrowed(config, method, level))
    for seed in seeds:
        is_seed = isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed <= MAX_SEED
        require(is_seed, "seed", seed, ACCEPTED)
    runs = {}
    for seed, method, structure, level, fraction, interval in itertools.product(
        seeds, methods, structures, levels, drop_fractions, update_intervals
    ):
        level = 0.0 if method == "dense" else level
        structure = "weight" if method in ("dense", *BASELINES) else structure
        found = get_method("dense" if method in BASELINES else method)
        takes_fraction = found.is_dynamic and found.uses_fraction
        ours = _with_structure(config, structure)
        if method in BASELINES:
            ours.model = narrowed(method, level)
            ours.sparsity.method = "dense"
        else:
            ours.sparsity.method, ours.sparsity.level = method, level
        if takes_fraction:
            ours.sparsity.drop_fraction = fraction
        if found.is_dynamic:
            ours.sparsity.update_interval = interval
        ours.seed = seed
        parts = [config.name, method, *structure_words(ours.sparsity)]
        parts += [f"{level:g}"] if level else []
        parts += [f"p{fraction:g}"] if takes_fraction else []
        parts += [f"dT{interval}"] if found.is_dynamic else []
        name = "-".join([*parts, str(seed)])
        if name in runs:
            continue
        resolve(ours)  # an invalid config raises before the first run starts
        runs[name] = Run(name, method, level, ours)
    return list(runs.values())


def _with_structure(config: ConfigDict, structure: str) -> ConfigDict:
    """Return a copy of a config with a structure; keys of blocks have defaults without them."""
    ours = ConfigDict(config.to_dict())
    ours.sparsity.structure = structure
    if structure != "block":
        ours.sparsity.block_size = default_config().sparsity.block_size
        ours.sparsity.fan_in = None
    return ours


def _narrowed(config: ConfigDict, method: str, level: float) -> ConfigDict:
    sparse = _with_structure(config, "weight")
    sparse.sparsity.method, sparse.sparsity.level = "static", level
    if sparse.sparsity.distribution == GLOBAL:  # as many weights are left in all
        sparse.sparsity.distribution = "uniform"
    return small_dense(resolve(sparse), BASELINES[method]).model
