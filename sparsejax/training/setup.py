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
from sparsejax.training.keys import RunKeys, run_keys
from sparsejax.training.optimizers import build_optimizer, learning_rate_schedule
from sparsejax.training.plan import Plan, build_plan, check_updates
from sparsejax.training.state import TrainState, create_state
from sparsejax.training.tracking import require_wandb
from sparsejax.types import Optimizer, PathLike, Schedule

logger = logging.getLogger(__name__)


class Setup(NamedTuple):
    """A run that is ready to take its steps.

    Attributes:
      config: resolved config.
      workdir: where everything is written.
      model: what is trained.
      data: what it is trained on; None for a finished run that needs none of it.
      facts: what the Model needs to know about the data; None if there are none.
      plan: how it is sparse.
      learning_rate: schedule of the learning rate over global steps.
      optimizer: optimizer of the train step.
      keys: PRNG keys by purpose.
      state: the TrainState to continue from.
      log: what the MetricsLog of the steps before saved (`MetricsLog.extra`).
      steps_before: `config.steps` when the run was last started; None for a new run.
    """

    config: ml_collections.FrozenConfigDict
    workdir: pathlib.Path
    model: Model
    data: Data | None
    facts: Facts | None
    plan: Plan
    learning_rate: Schedule
    optimizer: Optimizer
    keys: RunKeys
    state: TrainState
    log: checkpoints.Extra
    steps_before: int | None


def set_up(config: ml_collections.ConfigDict, workdir: PathLike) -> Setup:
    """Set up a run, new or resumed.

    Args:
      config: config as `resolve_run` returns it.
      workdir: path; a run of the same config found there is resumed.

    Returns:
      Setup. Nothing is written yet, except data that are prepared on disk.

    Raises:
      ConfigError: the config is invalid, or no checkpoint can be restored.
    """
    workdir = pathlib.Path(workdir)
    before = runs.saved_config(workdir)
    # What is wrong with the data is said before anything compiles.
    data = build_data(config) if needs_data(workdir, config) else None
    facts = read_facts(workdir, config)
    model = build_model(config, facts)
    keys, plan = run_keys(config.seed), build_plan(config, model)
    check_updates(config, plan)
    learning_rate, optimizer = learning_rate_schedule(config), build_optimizer(config)
    restored = runs.restore_state(workdir, model, plan, optimizer)
    start = int(restored[0].step) if restored else 0
    accepted = f"{start} or more: {workdir} has been trained that far"
    require(config.steps >= start, "steps", config.steps, accepted)
    if data is None and start < config.steps:  # the last checkpoint is damaged
        data = build_data(config)
    if data is not None:
        data.prepare()
        facts = data.facts() if facts is None else facts
        model = build_model(config, facts)
    if restored:
        state, log = restored
        said = "resumed %s after step %d" if start < config.steps else "%s is trained: %d steps"
        logger.info(said, workdir, start)
    else:
        weights = other_weights(config, model) if config.checkpoint.init_from else None
        state, log = create_state(keys, model, plan, optimizer, weights), {}
    return Setup(
        config=config,
        workdir=workdir,
        model=model,
        data=data,
        facts=facts,
        plan=plan,
        learning_rate=learning_rate,
        optimizer=optimizer,
        keys=keys,
        state=state,
        log=log,
        steps_before=before["steps"] if before else None,
    )


def needs_data(workdir: PathLike, config: ml_collections.ConfigDict) -> bool:
    """Return whether a run needs its data: a finished one does only for other splits to measure.

    Args:
      workdir: path.
      config: resolved ConfigDict.
    """
    before = runs.saved_config(workdir)
    measured = ("reference_split", "labelled_split")
    if not before or any(before["task"].get(key, "") != config.task[key] for key in measured):
        return True
    return checkpoints.list_steps(pathlib.Path(workdir) / "checkpoints")[-1:] != [config.steps]


def resolve_run(
    workdir: PathLike, config: ml_collections.ConfigDict, *, has_data: bool = True
) -> ml_collections.ConfigDict:
    """Resolve a config against the run in a workdir, if any, and the devices of all processes.

    Args:
      workdir: path.
      config: ConfigDict with the schema of `configuration.default_config`.
      has_data: see `runs.resolve_for`.

    Returns:
      The resolved config.

    Raises:
      ConfigError: see `runs.resolve_for`; or batches don't divide among devices and microbatches,
        or Weights & Biases isn't installed.
    """
    config = runs.resolve_for(workdir, config, has_data=has_data)
    require_wandb(config.log.wandb and jax.process_index() == 0)  # no other process needs it
    size, parts = config.batch_size, jax.device_count() * config.optimizer.accumulate
    accepted = f"multiples of {parts}: devices times optimizer.accumulate"
    require(size >= parts and size % parts == 0, "batch_size", size, accepted)
    return config
