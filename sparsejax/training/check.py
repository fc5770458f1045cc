"""Dry run: make every check that training makes at its start, without taking a step."""

import functools
import math
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from sparsejax.compact.states import shrink_state
from sparsejax.configuration import complete
from sparsejax.data import publishers
from sparsejax.errors import require
from sparsejax.families import build_data, build_model
from sparsejax.sparsity.masks import Summary, is_sparsifiable, path_name, summarize
from sparsejax.training import checkpoints, runs
from sparsejax.training.init_from import other_weights
from sparsejax.training.keys import named_key
from sparsejax.training.optimizers import build_optimizer
from sparsejax.training.plan import Plan, build_plan, check_updates
from sparsejax.training.setup import resolve_run
from sparsejax.training.state import TrainState, abstract_state
from sparsejax.types import Leaf, Masks, Params, PathLike, Sparsities


class Layer(NamedTuple):
    """A layer that can be sparse.

    Attributes:
      name: path of its weights.
      weights: number of weights.
      requested: sparsity that the config requests; None if groups of channels are removed,
        or magnitudes of all layers are ranked together.
      actual: sparsity of the masks.
    """

    name: str
    weights: int
    requested: float | None
    actual: float


class Check(NamedTuple):
    """What `check` found.

    Attributes:
      config: resolved config.
      data: label of the data, and the number of examples of each split; None if they aren't here.
      download: what training downloads first, and from where; empty if nothing.
      counts: parameters, all and active.
      layers: layers that can be sparse.
      done: steps already taken.
      updates: number of topology updates in the whole run.
      state_bytes: bytes of the training state by part, on each device.
      devices: number and kind of devices.
      batch_per_device: number of examples that a device processes at once.
    """

    config: ml_collections.FrozenConfigDict
    data: tuple[str, Mapping[str, int]] | None
    download: str
    counts: Summary
    layers: tuple[Layer, ...]
    done: int
    updates: int
    state_bytes: dict[str, int]
    devices: tuple[int, str]
    batch_per_device: int


def check(config: ml_collections.ConfigDict, workdir: PathLike) -> Check:
    """Check that a run can start or resume, without training or leaving files in the workdir.

    Nothing is downloaded: if data are missing that training downloads, all else is checked.

    Args:
      config: ConfigDict with the schema of `configuration.default_config`.
      workdir: path; a run found there would be resumed.

    Returns:
      Check.

    Raises:
      ConfigError: see `loop.train`.
    """
    workdir = pathlib.Path(workdir)
    whole = complete(config.copy_and_resolve_references().to_dict())
    download = publishers.missing(whole.task)
    config = resolve_run(workdir, config, has_data=not download)
    data = None if download else build_data(config)
    model = build_model(config, data.facts() if data else None)
    plan = build_plan(config, model)
    check_updates(config, plan)
    runs.check_writable(workdir)
    found = (data.label, data.sizes()) if data else None
    optimizer = build_optimizer(config)
    done = _steps_taken(config, workdir)
    if done:
        runs.restore_state(workdir, model, plan, optimizer)  # raises if no checkpoint is intact
    elif config.checkpoint.init_from:
        other_weights(config, model)  # raises if these weights are unusable
    params = jax.eval_shape(model.init, jax.random.key(0))
    masks = plan.method.init(named_key(config.seed, "masks"), params, plan.sparsities)
    state = abstract_state(model, plan, optimizer)
    parts = jax.device_count() * config.optimizer.accumulate
    return Check(
        config,
        found,
        download,
        summarize(params, masks),
        _layers(params, masks, plan.requested),
        done,
        plan.updates.count_due(config.steps),
        _bytes(_trained(plan, state, masks)),
        (jax.device_count(), jax.devices()[0].device_kind),
        config.batch_size // parts,
    )


def _steps_taken(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> int:
    steps = checkpoints.list_steps(workdir / "checkpoints")
    done = steps[-1] if steps else 0
    accepted = f"{done} or more: {workdir} has been trained that far"
    require(config.steps >= done, "steps", config.steps, accepted)
    return done


def _layers(params: Params, masks: Masks, sparsities: Sparsities) -> tuple[Layer, ...]:
    """Return the Layers of params, in order."""
    summary = summarize(params, masks).layers
    # With channels, these are names of groups, which no layer has.
    leaves = jax.tree_util.tree_leaves_with_path(sparsities)
    requested = {path_name(path): float(leaf) for path, leaf in leaves}
    names = [
        path_name(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if is_sparsifiable(path, leaf)
    ]
    return tuple(
        Layer(name, summary[name].weights, requested.get(name), 1 - summary[name].density)
        for name in names
    )


def _trained(plan: Plan, state: TrainState, masks: Masks) -> TrainState:
    """Return the shapes of the state that is trained, which may be that of a compact network."""
    network = plan.compact(masks) if plan.trains_compact else None
    return jax.eval_shape(functools.partial(shrink_state, network), state) if network else state


def _bytes(state: TrainState) -> dict[str, int]:
    parts = {
        "params": state.params,
        "masks": (state.masks, state.ever_active),
        "optimizer": (state.opt_state, state.indices),
        "EMA": state.ema_params,
    }
    return {name: sum(map(_nbytes, jax.tree.leaves(part))) for name, part in parts.items()}


def _nbytes(leaf: Leaf) -> int:
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
