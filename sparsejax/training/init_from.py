"""Start a run from the weights that `checkpoint.init_from` names."""

import logging
import os
import pathlib
from collections.abc import Callable
from typing import TypeVar

import jax
import ml_collections
import numpy as np

from sparsejax.configuration import asked_level, structure_name, structure_words
from sparsejax.errors import ConfigError, require
from sparsejax.families import Model, network_arguments
from sparsejax.sparse_files import is_sparse_file
from sparsejax.sparsity.methods import METHODS, get_method
from sparsejax.training import runs
from sparsejax.training.hub import sparse_file_of
from sparsejax.training.plan import complete_units
from sparsejax.types import Masks, Params, PathLike

logger = logging.getLogger(__name__)
Loaded = TypeVar("Loaded")


def other_weights(config: ml_collections.ConfigDict, model: Model) -> tuple[Params, Masks | None]:
    """Load the weights that `checkpoint.init_from` names.

    Args:
      config: resolved ConfigDict.
      model: its Model.

    Returns:
      Tuple of params and masks. The params are the EMA weights of a run, the weights in a sparse
      file, or published weights. The masks are those of the run or sparse file if this run would
      draw its own in the same way (see `same_masks`), otherwise None.

    Raises:
      ConfigError: the weights don't exist, or belong to a different network.
    """
    path = _load_weights(sparse_file_of, config.checkpoint.init_from)
    other, masks = None, None
    if os.path.exists(path / "checkpoints"):
        _, params, masks = runs.load_run(path)
        other = runs.read_config(path)
    elif is_sparse_file(path):
        other, params, masks = _load_weights(runs.read_sparse_run, path)
    else:
        params = _load_weights(model.load, path)
    _compare_network(config, other, path)
    compare_diffusion(config, model, other, path)
    keeps_masks = other is not None and same_masks(config.sparsity, other.sparsity)
    expected = jax.eval_shape(model.init, jax.random.key(0))
    if jax.tree.map(np.shape, params) != jax.tree.map(np.shape, expected):
        require(False, "checkpoint.init_from", str(path), "weights of a network of the same shape")
    params = jax.tree.map(lambda param, ours: np.asarray(param, ours.dtype), params, expected)
    if other is not None:
        params, masks = complete_units(structure_name(other.sparsity), model, params, masks)
    masks = masks if keeps_masks else None
    logger.info("weights%s from %s", "" if masks is None else " and masks", path)
    return params, masks


def _compare_network(
    config: ml_collections.ConfigDict, other: ml_collections.ConfigDict | None, path: pathlib.Path
) -> None:
    """Raise ConfigError if the weights are of a different network, even if all shapes agree."""
    if other is None or other.task.name != config.task.name:
        return
    theirs = network_arguments(other)
    for name, ours in network_arguments(config).items():
        same = theirs.get(name, ours) == ours
        require(same, f"model.{name}", ours, f"{theirs.get(name)!r}, as in {path}")


def compare_diffusion(
    config: ml_collections.ConfigDict,
    model: Model,
    other: ml_collections.ConfigDict | None,
    path: PathLike,
) -> None:
    """Warn if the initial weights were trained with a different noise schedule.

    Args:
      config: resolved config of the run that starts.
      model: its Model.
      other: config that the weights were trained with; None if it is unknown.
      path: of the weights, for the warning.
    """
    has_diffusion = model.schedule is not None or config.diffusion.process != "ddpm"
    if other is None or not has_diffusion:
        return
    ours, theirs = config.diffusion.to_dict(), other.diffusion.to_dict()
    differing = [
        f"{key} {theirs[key]} (now {ours[key]})" for key in ours if ours[key] != theirs[key]
    ]
    if differing:
        logger.warning(
            "the weights of %s were trained with diffusion.%s", path, ", diffusion.".join(differing)
        )


def same_masks(ours: ml_collections.ConfigDict, other: ml_collections.ConfigDict) -> bool:
    """Return whether a run's masks are what this config would draw, up to the seed.

    Args:
      ours: `config.sparsity` of the run that starts.
      other: `config.sparsity` of the run that provides the weights.
    """
    if other.method not in METHODS:  # a sparse file of a method that is not registered here
        return False
    if any(get_method(sparsity.method).changes_density for sparsity in (ours, other)):
        return False
    asked = [(asked_level(s), structure_words(s), s.distribution, s.custom) for s in (ours, other)]
    return asked[0] == asked[1]


def _load_weights(load: Callable[[PathLike], Loaded], path: PathLike) -> Loaded:
    try:
        return load(path)
    except ValueError as error:
        problem = str(error).removeprefix(f"{path}: ")
        raise ConfigError(f"config.checkpoint.init_from is {str(path)!r}: {problem}") from error
