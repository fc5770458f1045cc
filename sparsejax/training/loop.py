"""The training loop: every step trains; where the schedule is due, the topology changes."""

import contextlib
import functools
import logging
import os
import pathlib

import jax
import ml_collections
import numpy as np
from PIL import Image

from sparsejax.compact.states import (
    compact_model,
    compile_network,
    expand_state,
    outline,
    shrink_state,
)
from sparsejax.errors import ConfigError, require
from sparsejax.families import Model, build_data, build_model, network_arguments
from sparsejax.sparse_files import is_sparse_file
from sparsejax.sparsity.costs import forward_flops
from sparsejax.sparsity.flat import counts_of
from sparsejax.sparsity.masks import summarize
from sparsejax.sparsity.methods import METHODS, get_method
from sparsejax.training import checkpoints, runs
from sparsejax.training.metrics_log import MetricsLog
from sparsejax.training.optimizers import (
    build_optimizer,
    drop_fraction_schedule,
    learning_rate_schedule,
    update_schedule,
)
from sparsejax.training.parallel import data_parallel, replicate, shard_batch
from sparsejax.training.plan import (
    build_method,
    build_structure,
    layer_sparsities,
    log_structure,
    trains_compiled,
)
from sparsejax.training.progress import progress_bar
from sparsejax.training.sampling import frozen_of, make_sampler
from sparsejax.training.state import (
    TrainState,
    create_state,
    ema_params_of,
    named_key,
    state_from,
)
from sparsejax.training.steps import make_topology_update, make_train_step
from sparsejax.training.stopping import stopping
from sparsejax.types import Optimizer, PathLike

logger = logging.getLogger(__name__)


def train(config, workdir):
    """Train a model, or go on with one, and leave everything in the workdir.

    Writes config.json, data.json, checkpoints/, metrics.jsonl, tensorboard/ and samples/. A SIGTERM
    saves a checkpoint and ends the loop early.

    Args:
      config: ml_collections.ConfigDict with the schema of `configuration.default_config`.
      workdir: path; a run of the same config found there is resumed.

    Returns:
      True if the run is finished, False if a signal ended it early.

    Raises:
      ConfigError: the config can't work, or the workdir holds a run of another config or of
        other data.
      FloatingPointError: the loss is not finite; the newest checkpoint is from before.
    """
    workdir = pathlib.Path(workdir)
    config = runs.resolve_for(workdir, config)
    check_batch(config)
    facts, data = runs.read_facts(workdir), None
    model = build_model(config, facts)
    layer_sparsities(config.sparsity, model)
    build_structure(config.sparsity, model)
    before = runs.saved_config(workdir)
    is_trained = before and checkpoints.list_steps(workdir / "checkpoints")[-1:] == [config.steps]
    # A finished run needs its data for another reference split alone.
    if not is_trained or before["task"]["reference_split"] != config.task.reference_split:
        model, data, facts = _prepare(config, workdir)
    optimizer = build_optimizer(config)
    state, pending = first_state(config, workdir, model, optimizer)
    is_main = jax.process_index() == 0
    start = int(state.step)
    accepted = f"{start} or more: {workdir} is trained that far"
    require(config.steps >= start, "steps", config.steps, accepted)
    if is_main:
        runs.save_config(workdir, config)
        if facts is not None:
            runs.save_facts(workdir, facts)
        checkpoints.set_aside_after(workdir / "checkpoints", start)
    if start == config.steps:
        return True
    if data is None:  # the last checkpoint is damaged
        model, data, facts = _prepare(config, workdir)
    if is_main and before and before["steps"] != config.steps:
        _announce_other_steps(config, before["steps"], start)
    # From here on: a signal is waited for until the last checkpoint is written whole.
    with stopping() as (request, is_stop_due):
        request.after = "compilation and the first step"
        return _take_steps(
            config, workdir, model, data, optimizer, state, pending, request, is_stop_due
        )


def _prepare(config, workdir):
    """Make the data ready; return the Model that knows its facts, the data and the facts."""
    data = build_data(config)
    if jax.process_index() == 0:
        runs.check_writable(workdir)
    data.prepare()
    facts = runs.read_facts(workdir)
    if facts is None:
        facts = data.facts()
    return build_model(config, facts), data, facts


def _take_steps(config, workdir, model, data, optimizer, state, pending, request, is_stop_due):
    """Take the steps that are left; return whether all were taken."""
    is_main, start = jax.process_index() == 0, int(state.step)
    counts = summarize(state.params, state.masks)
    if is_main:
        _announce(config, model, counts)
        log_structure(config.sparsity, model)
    model, state, whole = _without_inactive(config.sparsity, model, state)
    state = replicate(state)

    train_step, topology_update = _compiled_functions(config, model, optimizer)
    due = update_schedule(config.sparsity).is_due if topology_update else lambda step: False
    steps_key = named_key(config.seed, "steps")
    keys = (steps_key, named_key(config.seed, "topology"))
    save_samples = lambda step, state: None  # noqa: E731
    if is_main:
        save_samples = _sample_writer(config, workdir, model, data)

    with contextlib.ExitStack() as stack:
        manager = stack.enter_context(
            checkpoints.open_manager(workdir / "checkpoints", config.checkpoint.keep)
        )
        log = MetricsLog(config, workdir, start, pending, steps_key)
        stack.callback(log.close)
        train_step = log.without_first(train_step, steps=1)
        topology_update = topology_update and log.without_first(topology_update)
        changes = get_method(config.sparsity.method).changes_density
        density = None if changes else counts.sparsifiable.density
        show = stack.enter_context(progress_bar(config.steps, start, density))

        for step, batch in enumerate(data.batches(start, config.steps), start + 1):
            batch = shard_batch(batch)
            state, metrics = train_step(state, batch, steps_key)
            request.after = "this step"
            if due(step):
                state, changes = topology_update(state, batch, keys)
                metrics |= changes
            log.add(step, metrics)
            last = step == config.steps
            if step % config.log.every == 0 or last:
                show(step, *log.flush())
            else:
                show(step)
            # Before the checkpoint: a run that is killed in between draws them again.
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


def _without_inactive(sparsity, model, state):
    """Leave out what a fixed structure never uses.

    Returns:
      Tuple of the Model and the TrainState to train, and a function that makes the whole state of
      such a state, to be saved.
    """
    network = None
    if trains_compiled(sparsity):
        network = compile_network(sparsity, model, state.masks)
    if network is None:
        return model, state, lambda state: state
    logger.info("%d layers are trained without what is inactive", len(network.layers))
    first = outline(state)
    small = shrink_state(network, state)
    return compact_model(network, model), small, lambda state: expand_state(network, state, first)


def _announce(config, model, counts):
    """Say what is trained, since the first steps take long: they compile."""
    sparsity = config.sparsity
    print(
        f"{config.name}: {sparsity.method}, {counts.total.active:,} of {counts.total.weights:,} "
        f"parameters active, {config.steps:,} steps on {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}; the first steps compile",
        flush=True,
    )
    for line in model.warnings:
        logger.warning(line)
    updates = update_schedule(sparsity).count_due(config.steps)
    if get_method(sparsity.method).is_dynamic and not updates:
        logger.warning(
            "no topology update is due in %d steps: begin %d, end %d, update_interval %d",
            config.steps,
            sparsity.begin,
            sparsity.end,
            sparsity.update_interval,
        )


def _announce_other_steps(config, steps_before, start):
    """Say what a run that goes on with another number of steps makes of its schedules.

    The learning rate follows `steps`; `sparsity.end`, and with it the drop fraction, stay as the
    run began. So they part ways, which nobody should have to find in the curves.
    """
    before = ml_collections.ConfigDict(config.to_dict())
    before.steps = steps_before
    old, new = (float(learning_rate_schedule(c)(start)) for c in (before, config))
    parts = []
    if old != new:
        parts.append(
            f"the {config.optimizer.schedule} learning-rate schedule now ends at step "
            f"{config.steps}, so step {start + 1} is taken at {new:.3g} in place of {old:.3g}"
        )
    if get_method(config.sparsity.method).is_dynamic:
        parts.append(f"topology updates still end at step {config.sparsity.end}, as the run began")
    if parts:
        print(f"config.steps was {steps_before}, is {config.steps}: {'; '.join(parts)}", flush=True)


def _is_multiple(step, every):
    return every > 0 and step % every == 0


def check_batch(config: ml_collections.ConfigDict) -> None:
    """Check that batches divide among all devices and microbatches; raises ConfigError."""
    parts = jax.device_count() * config.optimizer.accumulate
    accepted = f"multiples of {parts}: devices times optimizer.accumulate"
    size = config.batch_size
    require(size >= parts and size % parts == 0, "batch_size", size, accepted)


def first_state(
    config: ml_collections.ConfigDict, workdir: PathLike, model: Model, optimizer: Optimizer
) -> tuple[TrainState, list]:
    """Return the state to begin with and the metrics not yet written at that point."""
    restored = runs.restore_state(workdir, config, model)
    if restored is not None:
        state, extra = restored
        logger.info("resumed %s after step %d", workdir, int(state.step))
        return state, extra["pending"]
    if config.checkpoint.init_from:
        return _state_of_other_weights(config, model, optimizer), []
    return create_state(config, model, optimizer), []


def _state_of_other_weights(config, model, optimizer):
    """Begin with the weights that `checkpoint.init_from` names.

    Of another run, or a sparse file of one: its EMA weights (of a file, those it holds), and its
    masks too where they fit this config.
    """
    path = pathlib.Path(config.checkpoint.init_from)
    other = None
    if os.path.exists(path / "checkpoints"):
        _, params, other_masks = runs.load_run(path)
        other = runs.read_config(path)
    elif is_sparse_file(path):
        other, params, other_masks = _load_weights(runs.read_sparse_run, path)
    else:
        params = _load_weights(model.load, path)
    _compare_network(config, other, path)
    _compare_diffusion(config, model, other, path)
    state = create_state(config, model, optimizer)
    takes_masks = other is not None and _same_masks(config.sparsity, other.sparsity)
    masks = other_masks if takes_masks else state.masks
    if jax.tree.map(np.shape, params) != jax.tree.map(np.shape, state.params):
        require(False, "checkpoint.init_from", str(path), "weights of a network of the same shape")
    params = jax.tree.map(lambda param, ours: np.asarray(param, ours.dtype), params, state.params)
    logger.info("weights%s from %s", " and masks" if takes_masks else "", path)
    return state_from(params, masks, optimizer, counts_of(state.indices))


def _compare_network(config, other, path):
    """Refuse weights of another network, even one whose weights have the same shapes."""
    if other is None or other.task.name != config.task.name:
        return
    theirs = network_arguments(other)
    for name, ours in network_arguments(config).items():
        same = theirs.get(name, ours) == ours
        require(same, f"model.{name}", ours, f"{theirs.get(name)!r}, as in {path}")


def _compare_diffusion(config, model, other, path):
    """Warn where the weights that a run begins with were trained on other noise."""
    if other is None or model.schedule is None:
        return
    ours, theirs = config.diffusion.to_dict(), other.diffusion.to_dict()
    differing = [
        f"{key} {theirs[key]} (now {ours[key]})" for key in ours if ours[key] != theirs[key]
    ]
    if differing:
        logger.warning(
            "the weights of %s were trained with diffusion.%s", path, ", diffusion.".join(differing)
        )


def _same_masks(ours, other):
    keys = ["level", "distribution", "custom", "structure"]
    keys += ["block_size"] if ours.structure == "block" else []
    if other.method not in METHODS:  # a sparse file of a method that is not registered here
        return False
    methods = [get_method(ours.method), get_method(other.method)]
    return not any(m.name == "dense" or m.changes_density for m in methods) and all(
        ours[key] == other[key] for key in keys
    )


def _load_weights(load, path):
    try:
        return load(path)
    except ValueError as error:
        raise ConfigError(f"config.checkpoint.init_from is {str(path)!r}: {error}") from error


def _compiled_functions(config, model, optimizer):
    accumulate = config.optimizer.accumulate
    train_step = data_parallel(
        make_train_step(model, optimizer, ema_limit=config.ema.decay, accumulate=accumulate),
        donate_state=True,
    )
    method = build_method(config.sparsity, model)
    if not method.is_dynamic:
        return train_step, None
    fraction = drop_fraction_schedule(config.sparsity)
    density = jax.tree.map(lambda s: 1.0 - s, layer_sparsities(config.sparsity, model))
    update = data_parallel(
        make_topology_update(
            model, optimizer, method, fraction, density=density, accumulate=accumulate
        ),
        donate_state=True,
    )
    return train_step, _recording_flops(update, model) if method.changes_density else update


def _recording_flops(topology_update, model):
    """Put into the metrics of an update what a forward pass cost in the steps before it."""
    layer_flops = model.layer_flops(jax.eval_shape(model.init, jax.random.key(0)))

    def update(state, batch, keys):
        before = forward_flops(layer_flops, state.masks)
        state, metrics = topology_update(state, batch, keys)
        return state, metrics | {"forward_flops_before": before}

    return update


def _sample_writer(config, workdir, model, data):
    key, folder = named_key(config.seed, "samples"), workdir / "samples"
    sampler = functools.cache(
        lambda: make_sampler(model, frozen_of(model, data), key, config.sample.count)
    )

    def save_samples(step, state):
        folder.mkdir(exist_ok=True)
        grid = model.render(sampler()(jax.device_get(ema_params_of(state))))
        Image.fromarray(grid).save(folder / f"{step:08d}.png")

    return save_samples
