"""Set up a run before its first step, and raise an error for everything that is wrong with it."""

import logging
import pathlib
from typing import NamedTuple

import jax
import ml_collections

from sparsejax.errors import require
from sparsejax.families import Data, Facts, Model, build_data, build_model
from sparsejax.training import checkpoints, runs
from sparsejax.training.facts import read_facts
from sparsejax.training.init_from import other_weights
from sparsejax.training.optimizers import build_optimizer
from sparsejax.training.plan import Plan, build_plan
from sparsejax.training.state import TrainState, create_state, state_from
from sparsejax.types import Optimizer, PathLike, Value

logger = logging.getLogger(__name__)


class Setup(NamedTuple):
    """A run that is ready to take its steps.

    Attributes:
      config: resolved config.
      workdir: where everything is written.
      model: what is trained.
      data: what it is trained on; None if no step is left.
      facts: what the Model needs to know about the data; None if there are none.
      plan: how it is sparse.
      optimizer: optimizer of the train step.
      state: the TrainState to continue from.
      pending: metrics of single steps that are not written yet.
      steps_before: `config.steps` when the run was last started; None for a new run.
    """

    config: ml_collections.FrozenConfigDict
    workdir: pathlib.Path
    model: Model
    data: Data | None
    facts: Facts | None
    plan: Plan
    optimizer: Optimizer
    state: TrainState
    pending: list[Value]
    steps_before: int | None


def set_up(config: ml_collections.ConfigDict, workdir: PathLike) -> Setup:
    """Set up a run, new or resumed.

    Args:
      config: ConfigDict with the schema of `configuration.default_config`.
      workdir: path; a run of the same config found there is resumed.

    Returns:
      Setup. Nothing is written yet, except data that are prepared on disk.

    Raises:
      ConfigError: the config is invalid, or the workdir holds a run with a different config or
        different data.
    """
    workdir = pathlib.Path(workdir)
    config = runs.resolve_for(workdir, config)
    check_batch(config)
    before = runs.saved_config(workdir)
    is_trained = before and checkpoints.list_steps(workdir / "checkpoints")[-1:] == [config.steps]
    # A finished run needs its data only for another reference split.
    is_needed = (
        not before
        or not is_trained
        or before["task"]["reference_split"] != config.task.reference_split
    )
    data = build_data(config) if is_needed else None
    facts = read_facts(workdir, config)
    model = build_model(config, facts)
    plan, optimizer = build_plan(config, model), build_optimizer(config)
    if data is not None:
        _prepare(data, workdir)
    state, pending = first_state(config, workdir, model, plan, optimizer)
    start = int(state.step)
    accepted = f"{start} or more: {workdir} has been trained that far"
    require(config.steps >= start, "steps", config.steps, accepted)
    if data is None and start < config.steps:  # the last checkpoint is damaged
        data = build_data(config)
        _prepare(data, workdir)
    if data is not None:
        facts = data.facts() if facts is None else facts
        model = build_model(config, facts)
    steps_before = before["steps"] if before else None
    return Setup(config, workdir, model, data, facts, plan, optimizer, state, pending, steps_before)


def _prepare(data: Data, workdir: pathlib.Path) -> None:
    """Prepare data on disk, after checking that the workdir can be written to."""
    if jax.process_index() == 0:
        runs.check_writable(workdir)
    data.prepare()


def check_batch(config: ml_collections.ConfigDict) -> None:
    """Check that batches divide among all devices and microbatches.

    Args:
      config: resolved ConfigDict.

    Raises:
      ConfigError: they don't; names `batch_size`.
    """
    parts = jax.device_count() * config.optimizer.accumulate
    accepted = f"multiples of {parts}: devices times optimizer.accumulate"
    size = config.batch_size
    require(size >= parts and size % parts == 0, "batch_size", size, accepted)


def first_state(
    config: ml_collections.ConfigDict,
    workdir: PathLike,
    model: Model,
    plan: Plan,
    optimizer: Optimizer,
) -> tuple[TrainState, list[Value]]:
    """Return the state to start from and the metrics not yet written at that point.

    Args:
      config: resolved ConfigDict.
      workdir: of the run; its newest intact checkpoint is restored, if there is one.
      model: Model.
      plan: its Plan.
      optimizer: the optax transformation of the train step.

    Returns:
      Tuple of a TrainState (host arrays if restored) and the metrics of single steps.

    Raises:
      ConfigError: no checkpoint is intact, or `checkpoint.init_from` names no weights of this
        network.
    """
    restored = runs.restore_state(workdir, config, model, plan, optimizer)
    if restored is not None:
        state, extra = restored
        logger.info("resumed %s after step %d", workdir, int(state.step))
        return state, extra["pending"]
    weights = other_weights(config, model) if config.checkpoint.init_from else None
    state = create_state(config, model, plan, optimizer)
    if weights is not None:
        params, masks = weights
        masks = state.masks if masks is None else masks
        state = state_from(params, masks, optimizer, plan.flat_counts)
    return state, []
