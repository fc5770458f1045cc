"""The runs of a comparison: methods x sparsities x drop fractions x update intervals x seeds."""

import functools
import itertools
from typing import NamedTuple

import ml_collections

from sparsejax.configuration import require, resolve
from sparsejax.evaluation.baselines import small_dense
from sparsejax.sparsity.methods import METHODS, get_method

BASELINES = {"small_dense": "parameters", "small_dense_flops": "flops"}


class Run(NamedTuple):
    """One run of a grid.

    Attributes:
      name: of its workdir; runs that differ have different names.
      method: a method, or one of `BASELINES`.
      level: sparsity; of a baseline, that of the sparse model it is as small as; 0 if dense.
      config: ConfigDict to train it by.
    """

    name: str
    method: str
    level: float
    config: ml_collections.ConfigDict


def grid(config, *, methods, levels, drop_fractions=(), update_intervals=(), seeds=(0,)):
    """List the runs of a grid, each once: what a method ignores makes no difference.

    Args:
      config: ConfigDict that all runs have in common.
      methods: names of methods and of `BASELINES`.
      levels: sparsities.
      drop_fractions: those of the config, if empty.
      update_intervals: that of the config, if empty.
      seeds: Python ints.

    Returns:
      List of Run, all runs of the first seed first.

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    for method in methods:
        known = [*METHODS, *BASELINES]
        require(method in known, "sparsity.method", method, ", ".join(known))
    drop_fractions = drop_fractions or (config.sparsity.drop_fraction,)
    update_intervals = update_intervals or (config.sparsity.update_interval,)
    narrowed = functools.cache(lambda method, level: _narrowed(config, method, level))
    runs = {}
    for seed, method, level, fraction, interval in itertools.product(
        seeds, methods, levels, drop_fractions, update_intervals
    ):
        level = 0.0 if method == "dense" else level
        is_dynamic = method not in BASELINES and get_method(method).is_dynamic
        parts = [config.name, method]
        parts += [f"{level:g}"] if level else []
        parts += [f"p{fraction:g}", f"dT{interval}"] if is_dynamic else []
        name = "-".join([*parts, str(seed)])
        if name in runs:
            continue
        ours = ml_collections.ConfigDict(config.to_dict())
        if method in BASELINES:
            ours.model = narrowed(method, level)
            ours.sparsity.method = "dense"
        else:
            ours.sparsity.method, ours.sparsity.level = method, level
        if is_dynamic:
            ours.sparsity.drop_fraction, ours.sparsity.update_interval = fraction, interval
        ours.seed = seed
        resolve(ours)  # refuses what can't work before the first run begins
        runs[name] = Run(name, method, level, ours)
    return list(runs.values())


def _narrowed(config, method, level):
    sparse = ml_collections.ConfigDict(config.to_dict())
    sparse.sparsity.method, sparse.sparsity.level = "static", level
    return small_dense(resolve(sparse), BASELINES[method]).model
