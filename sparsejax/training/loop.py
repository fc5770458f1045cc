"""The training loop: every step trains; where the schedule is due, the topology changes."""

import contextlib
import logging
import math
import pathlib
import signal
import time

import jax
import numpy as np
from PIL import Image

from sparsejax.configuration import require
from sparsejax.sparsity.masks import summarize
from sparsejax.sparsity.methods import get_method
from sparsejax.tasks import build_task
from sparsejax.training import checkpoints, runs
from sparsejax.training.metrics import MetricsWriter
from sparsejax.training.optimizers import (
    build_optimizer,
    drop_fraction_schedule,
    learning_rate_schedule,
    update_schedule,
)
from sparsejax.training.parallel import data_parallel, replicate, shard_batch
from sparsejax.training.progress import progress_bar
from sparsejax.training.state import create_state, named_key, state_from
from sparsejax.training.steps import make_topology_update, make_train_step

logger = logging.getLogger(__name__)


def train(config, workdir):
    """Train a model, or go on with one, and leave everything in the workdir.

    Writes config.json, checkpoints/, metrics.jsonl, tensorboard/ and samples/. A SIGTERM
    saves a checkpoint and ends the loop early.

    Args:
      config: ConfigDict with the schema of `configuration.default_config`.
      workdir: path; a run of the same config found there is resumed.

    Returns:
      True if the run is finished, False if a signal ended it early.

    Raises:
      ConfigError: the config can't work, or the workdir holds a run of another config.
      FloatingPointError: the loss is not finite; the newest checkpoint is from before.
    """
    workdir = pathlib.Path(workdir)
    config = runs.resolve_for(workdir, config)
    _check_batch(config)
    task = build_task(config)
    optimizer = build_optimizer(config)
    state, pending = _first_state(config, workdir, task, optimizer)
    is_main = jax.process_index() == 0
    if is_main:
        runs.save_config(workdir, config)
    start = int(state.step)
    state = replicate(state)
    if start >= config.steps:
        return True

    train_step, topology_update = _compiled_functions(config, task, optimizer)
    due = update_schedule(config.sparsity).is_due if topology_update else lambda step: False
    steps_key = named_key(config.seed, "steps")
    keys = (steps_key, named_key(config.seed, "topology"))
    counts = summarize(state.params, state.masks)
    if is_main:
        print(
            f"{config.name}: {config.sparsity.method}, {counts.total.active:,} of "
            f"{counts.total.weights:,} parameters active, {config.steps:,} steps on "
            f"{jax.device_count()} x {jax.devices()[0].device_kind}; the first steps compile",
            flush=True,
        )
    save_samples = _sample_writer(config, workdir, task) if is_main else lambda step, params: None

    with contextlib.ExitStack() as stack:
        manager = stack.enter_context(
            checkpoints.open_manager(workdir / "checkpoints", config.checkpoint.keep)
        )
        log = _Log(config, workdir, start, pending, steps_key)
        stack.callback(log.close)
        show = stack.enter_context(progress_bar(config.steps, start, counts.sparsifiable.density))
        stopping = stack.enter_context(_sigterm())

        for step, batch in enumerate(task.batches(start, config.steps), start + 1):
            batch = shard_batch(batch)
            state, metrics = train_step(state, batch, steps_key)
            if due(step):
                state, changes = topology_update(state, batch, keys)
                metrics |= changes
            log.add(step, metrics)
            last = step == config.steps
            stop = stopping(step)
            if step % config.log.every == 0 or last:
                show(step, *log.flush())
            else:
                show(step)
            if last or stop or _is_multiple(step, config.checkpoint.every):
                checkpoints.save(manager, state, {"pending": log.pending()})
            if stop and not last:
                logger.info("stopped by a signal after step %d; checkpoint saved", step)
                return False
            if _is_multiple(step, config.sample.every):
                save_samples(step, state.ema_params)
    return True


def _is_multiple(step, every):
    return every > 0 and step % every == 0


def _check_batch(config):
    parts = jax.device_count() * config.optimizer.accumulate
    accepted = f"multiples of {parts}: devices times optimizer.accumulate"
    size = config.batch_size
    require(size >= parts and size % parts == 0, "batch_size", size, accepted)


def _first_state(config, workdir, task, optimizer):
    """Return the state to begin with and the metrics not yet written at that point."""
    restored = runs.restore_state(workdir, config, task)
    if restored is not None:
        state, extra = restored
        logger.info("resumed %s after step %d", workdir, int(state.step))
        return state, extra["pending"]
    if config.checkpoint.init_from:
        return _state_of_another_run(config, task, optimizer), []
    return create_state(config, task, optimizer), []


def _state_of_another_run(config, task, optimizer):
    """Begin with another run's EMA weights; with its masks too where they fit this config."""
    other_workdir = config.checkpoint.init_from
    other = runs.read_config(other_workdir).sparsity
    _, params, masks = runs.load_run(other_workdir)
    ours = config.sparsity
    state = create_state(config, task, optimizer)
    if jax.tree.map(np.shape, params) != jax.tree.map(np.shape, state.params):
        accepted = "a run of a network of the same shape"
        require(False, "checkpoint.init_from", other_workdir, accepted)
    fits = "dense" not in (ours.method, other.method) and all(
        ours[key] == other[key] for key in ("level", "distribution", "custom")
    )
    logger.info("weights%s from %s", " and masks" if fits else "", other_workdir)
    return state_from(params, masks if fits else state.masks, optimizer)


def _compiled_functions(config, task, optimizer):
    accumulate = config.optimizer.accumulate
    train_step = data_parallel(
        make_train_step(task, optimizer, ema_limit=config.ema.decay, accumulate=accumulate),
        donate_state=True,
    )
    method = get_method(config.sparsity.method)
    if not method.is_dynamic:
        return train_step, None
    fraction = drop_fraction_schedule(config.sparsity)
    update = make_topology_update(task, optimizer, method, fraction, accumulate=accumulate)
    return train_step, data_parallel(update, donate_state=True)


def _sample_writer(config, workdir, task):
    key = named_key(config.seed, "samples")
    sample = jax.jit(lambda params: task.sample(task.apply, params, key, config.sample.count))
    folder = workdir / "samples"

    def save_samples(step, params):
        folder.mkdir(exist_ok=True)
        grid = task.render(np.asarray(sample(params)))
        Image.fromarray(grid).save(folder / f"{step:08d}.png")

    return save_samples


class _Log:
    """Holds the metrics of steps on the device until they are written, `log.every` steps."""

    def __init__(self, config, workdir, start, pending, steps_key):
        self._workdir, self._steps_key = workdir, steps_key
        self._learning_rate = learning_rate_schedule(config)
        self._writer = None
        if jax.process_index() == 0:
            self._writer = MetricsWriter(workdir, start, config.log.tensorboard)
        self._pending = [tuple(item) for item in pending]
        self._clock, self._clock_step = time.monotonic(), start

    def add(self, step, metrics):
        """Keep one step's metrics, arrays on the device."""
        self._pending.append((step, metrics))

    def pending(self):
        """Fetch and return what is not yet written, as JSON-able data.

        Raises:
          FloatingPointError: a loss is not finite.
        """
        fetched = jax.device_get(self._pending)
        self._pending = [(step, {k: float(v) for k, v in m.items()}) for step, m in fetched]
        for step, metrics in self._pending:
            if not math.isfinite(metrics["loss"]):
                self._refuse(step, metrics["loss"])
        return self._pending

    def flush(self):
        """Write a line for each topology update and one for the mean of the steps.

        Returns:
          Tuple of the mean loss and steps per second.
        """
        lines = self.pending()
        step = lines[-1][0]
        now = time.monotonic()
        speed = (step - self._clock_step) / max(now - self._clock, 1e-9)
        mean = {
            name: math.fsum(metrics[name] for _, metrics in lines) / len(lines)
            for name in ("loss", "grad_norm")
        }
        if self._writer:
            for update_step, metrics in lines:
                if "replaced" in metrics:
                    names = ("drop_fraction", "replaced")
                    self._writer.write(update_step, {name: metrics[name] for name in names})
            self._writer.write(
                step,
                mean
                | {
                    "learning_rate": float(self._learning_rate(step - 1)),
                    "seconds": time.time(),
                    "steps_per_second": speed,
                },
            )
        self._pending, self._clock, self._clock_step = [], now, step
        return mean["loss"], speed

    def close(self):
        """Close the metrics files."""
        if self._writer:
            self._writer.close()

    def _refuse(self, step, loss):
        saved = checkpoints.list_steps(self._workdir / "checkpoints")
        newest = f"checkpoint of step {saved[-1]}" if saved else "none"
        key = jax.random.key_data(jax.random.fold_in(self._steps_key, step - 1)).tolist()
        raise FloatingPointError(
            f"loss is {loss} at step {step}; last good state in {self._workdir}: {newest}; "
            f"the batch is that of step index {step - 1}, its key {key}"
        )


@contextlib.contextmanager
def _sigterm():
    """Yield `stopping(step)`, true once any process of the run got a SIGTERM."""
    received = False

    def note(signum, frame):
        del signum, frame
        nonlocal received
        received = True

    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        yield multihost_utils.reached_preemption_sync_point
        return
    try:
        previous = signal.signal(signal.SIGTERM, note)
    except ValueError:  # not the main thread: signals are somebody else's
        yield lambda step: False
        return
    try:
        yield lambda step: received
    finally:
        signal.signal(signal.SIGTERM, previous)
