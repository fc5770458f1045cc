"""The training loop: train steps, each followed by a topology update where one is due."""

import contextlib
import functools
import logging
from collections.abc import Callable

import jax
import ml_collections
from PIL import Image

from sparsejax.compact.network import CompactNetwork
from sparsejax.compact.states import paired_model, shrink_state, state_expander
from sparsejax.errors import require
from sparsejax.families import Data, Model
from sparsejax.parallel import data_parallel, replicate, shard_batch
from sparsejax.signals import Request
from sparsejax.sparsity.costs import forward_flops
from sparsejax.sparsity.masks import summarize
from sparsejax.sparsity.methods import Method
from sparsejax.training import checkpoints, runs
from sparsejax.training.announcement import announce
from sparsejax.training.facts import save_facts
from sparsejax.training.keys import named_key
from sparsejax.training.metrics_log import MetricsLog
from sparsejax.training.progress import progress_bar
from sparsejax.training.sampling import frozen_of, make_sampler
from sparsejax.training.setup import Setup, set_up
from sparsejax.training.state import TrainState, ema_params_of
from sparsejax.training.steps import make_topology_update, make_train_step
from sparsejax.training.stopping import stopping
from sparsejax.types import Batch, Metrics, PathLike, PRNGKey

logger = logging.getLogger(__name__)


def train(config: ml_collections.ConfigDict, workdir: PathLike) -> bool:
    """Train a model, or resume its training, and write everything to the workdir.

    Writes config.json, data.json, facts.json, checkpoints/, metrics.jsonl, tensorboard/ and
    samples/. A SIGTERM saves a checkpoint and ends the loop early.

    Args:
      config: ConfigDict with the schema of `configuration.default_config`.
      workdir: path; a run of the same config found there is resumed.

    Returns:
      True if the run is finished, False if a signal ended it early.

    Raises:
      ConfigError: the config is invalid, or the workdir holds a run with a different config or
        different data.
      FloatingPointError: the loss is not finite; the newest checkpoint is older.
    """
    run = set_up(config, workdir)
    start = int(run.state.step)
    if jax.process_index() == 0:
        runs.save_config(run.workdir, run.config)
        if run.facts is not None:
            save_facts(run.workdir, run.facts)
        checkpoints.set_aside_after(run.workdir / "checkpoints", start)
    if start == run.config.steps:
        return True
    # From here on, a signal ends the run only after its last checkpoint is complete.
    with stopping() as (request, is_stop_due):
        request.after = "compilation and the first step"
        return _take_steps(run, request, is_stop_due)


def _take_steps(run: Setup, request: Request, is_stop_due: Callable[[int], bool]) -> bool:
    """Take the remaining steps; return whether all of them were taken."""
    config, data, folder = run.config, run.data, run.workdir / "checkpoints"
    assert data is not None, "steps are left, so there are data"
    is_main, start = jax.process_index() == 0, int(run.state.step)
    counts = summarize(run.state.params, run.state.masks)
    if is_main:
        announce(run, counts)
    network = run.plan.compact(run.state.masks) if run.plan.trains_compact else None
    state, whole = _without_inactive(run, network)
    state = replicate(state)
    train_step, topology_update = _compiled_functions(run, network)
    steps_key = named_key(config.seed, "steps")
    keys = (steps_key, named_key(config.seed, "topology"))
    save_samples = _sample_writer(run, network, data) if is_main else lambda step, state: None

    with contextlib.ExitStack() as stack:
        manager = stack.enter_context(checkpoints.open_manager(folder, config.checkpoint.keep))
        log = MetricsLog(config, run.workdir, start, run.pending, steps_key)
        stack.callback(log.close)
        train_step = log.without_first(train_step, steps=1)
        topology_update = log.without_first(topology_update)
        density = None if run.plan.method.changes_density else counts.sparsifiable.density
        show = stack.enter_context(progress_bar(config.steps, start, density))

        for step, batch in enumerate(data.batches(start, config.steps), start + 1):
            batch = shard_batch(batch)
            state, metrics = train_step(state, batch, steps_key)
            request.after = "this step"
            if run.plan.updates.is_due(step):
                state, changes = topology_update(state, batch, keys)
                metrics |= changes
            log.add(step, metrics)
            last = step == config.steps
            if step % config.log.every == 0 or last:
                show(step, *log.flush())
            else:
                show(step)
            # Before the checkpoint, so that a run killed in between draws them again.
            if _is_multiple(step, config.sample.every):
                request.after = "the pictures of this step"
                with log.uncounted(state):
                    save_samples(step, state)
            stop = is_stop_due(step)
            if last or stop or _is_multiple(step, config.checkpoint.every):
                checkpoints.save(manager, whole(state), {"pending": log.pending()})
            if stop and not last:
                return False
    return True


def _is_multiple(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _without_inactive(
    run: Setup, network: CompactNetwork | None
) -> tuple[TrainState, Callable[[TrainState], TrainState]]:
    """Return the state to train, and a function that expands such a state for saving."""
    if network is None:
        return run.state, lambda state: state
    logger.info("%d layers are trained without their inactive parts", len(network.layers))
    expand = state_expander(network, run.optimizer)

    def whole(state: TrainState) -> TrainState:
        _require_units(run.plan.method, state)
        return expand(state)

    state = shrink_state(network, run.state)
    _require_units(run.plan.method, state)
    return state, whole


def _require_units(method: Method, state: TrainState) -> None:
    """Check that a compact state holds all that the method left active.

    Raises:
      ConfigError: it doesn't; names the method.
    """
    units = "blocks of each output block and channels of each group"
    accepted = f"methods that keep the number of active {units}, or sparsity.compact False"
    require(not int(state.masks.lost), "sparsity.method", method.name, accepted)


def _compiled_functions(run: Setup, network: CompactNetwork | None) -> tuple[Callable, Callable]:
    """Return the train step and the topology update, compiled at their first calls."""
    plan, optimizer, accumulate = run.plan, run.optimizer, run.config.optimizer.accumulate
    train_step = data_parallel(
        make_train_step(
            run.model,
            optimizer,
            ema_limit=run.config.ema.decay,
            accumulate=accumulate,
            network=network,
        ),
        donate_state=True,
    )
    update = data_parallel(
        make_topology_update(
            run.model,
            optimizer,
            plan.method,
            plan.drop_fraction,
            density=jax.tree.map(lambda sparsity: 1.0 - sparsity, plan.sparsities),
            accumulate=accumulate,
            trees=network.trees if network else None,
        ),
        donate_state=True,
    )
    if plan.method.changes_density:
        update = _recording_flops(update, run.model)
    return train_step, _checking_first(update, plan.method) if network else update


def _checking_first(topology_update: Callable, method: Method) -> Callable:
    """Check the units after the first update, which is waited for anyway."""
    is_first = True

    def update(
        state: TrainState, batch: Batch, keys: tuple[PRNGKey, PRNGKey]
    ) -> tuple[TrainState, Metrics]:
        nonlocal is_first
        state, metrics = topology_update(state, batch, keys)
        if is_first:
            _require_units(method, state)
        is_first = False
        return state, metrics

    return update


def _recording_flops(topology_update: Callable, model: Model) -> Callable:
    """Add to an update's metrics the FLOPs of a forward pass in the steps before it."""
    layer_flops = model.layer_flops(jax.eval_shape(model.init, jax.random.key(0)))

    def update(
        state: TrainState, batch: Batch, keys: tuple[PRNGKey, PRNGKey]
    ) -> tuple[TrainState, Metrics]:
        before = forward_flops(layer_flops, state.masks)
        state, metrics = topology_update(state, batch, keys)
        return state, metrics | {"forward_flops_before": before}

    return update


def _sample_writer(
    run: Setup, network: CompactNetwork | None, data: Data
) -> Callable[[int, TrainState], None]:
    """Return `save_samples(step, state)`, which writes a grid of samples."""
    key = named_key(run.config.seed, "samples")
    folder, count = run.workdir / "samples", run.config.sample.count
    model = paired_model(network, run.model) if network else run.model
    sampler = functools.cache(lambda: make_sampler(model, frozen_of(model, data), key, count))

    def save_samples(step: int, state: TrainState) -> None:
        folder.mkdir(exist_ok=True)
        params = (state.ema_params, state.masks.indices) if network else ema_params_of(state)
        grid = model.render(sampler()(jax.device_get(params)))
        Image.fromarray(grid).save(folder / f"{step:08d}.png")

    return save_samples
