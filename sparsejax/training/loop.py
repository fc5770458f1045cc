"""The training loop: train steps, each followed by a topology update where one is due."""

import contextlib
import pathlib
from collections.abc import Callable

import jax
import ml_collections

from sparsejax.lease import Guard
from sparsejax.parallel import shard_batch
from sparsejax.processes.together import failing
from sparsejax.signals import Request
from sparsejax.sparsity.masks import summarize
from sparsejax.training import checkpoints, runs, side_files
from sparsejax.training.announcement import announce
from sparsejax.training.holding import hold_workdir
from sparsejax.training.metrics_log import MetricsLog
from sparsejax.training.program import build_program
from sparsejax.training.progress import progress_bar
from sparsejax.training.setup import Setup, needs_data, resolve_run, set_up
from sparsejax.training.steps import SKIPPED
from sparsejax.training.stopping import stopping
from sparsejax.types import PathLike


def train(config: ml_collections.ConfigDict, workdir: PathLike, guard: Guard | None = None) -> bool:
    """Train a model, or resume its training, and write everything to the workdir.

    Writes config.json, data.json, facts.json, checkpoints/, metrics.jsonl, tensorboard/ and
    samples/, with `config.log.wandb` also wandb.json and wandb/. A SIGTERM saves a checkpoint and
    ends the loop early. Meanwhile the workdir's lease is held, so that no other process trains
    there.

    Args:
      config: ConfigDict with the schema of `configuration.default_config`.
      workdir: path; a run of the same config found there is resumed.
      guard: guard of the workdir's lease, if the caller holds it.

    Returns:
      True if the run is finished, False if a signal ended it early.

    Raises:
      ConfigError: the config is invalid, or the workdir holds a run with a different config or
        different data, or another process trains there.
      FloatingPointError: the loss or the state is not finite, or the state is damaged (see
        `soundness.make_check`); the newest checkpoint, which the message names, is older.
    """
    workdir = pathlib.Path(workdir)
    config = resolve_run(workdir, config)
    with contextlib.ExitStack() as stack:
        # A finished run may lie on a read-only disk.
        if needs_data(workdir, config):
            guard = stack.enter_context(hold_workdir(workdir)) if guard is None else guard
            if jax.process_index() == 0:  # before what may take long
                print(f"{config.name}: preparing data and weights", flush=True)
        run = set_up(config, workdir)
        if guard is None and run.data is not None:  # its last checkpoint is damaged
            guard = stack.enter_context(hold_workdir(workdir))
            run = set_up(config, workdir)
        start = int(run.state.step)
        if jax.process_index() == 0:
            side_files.restore(run.workdir)
            runs.save_config(run.workdir, run.config, run.facts)
            checkpoints.set_aside_after(run.workdir / "checkpoints", start)
        if guard is None or start == run.config.steps:
            return True
        # From here on, a signal ends the run only after its last checkpoint is complete.
        request, is_stop_due = stack.enter_context(stopping())
        request.after = "compilation and the first step"
        try:
            return _take_steps(run, guard, request, is_stop_due)
        except FloatingPointError as error:
            # The manager is closed by now, so a checkpoint that was being written is complete.
            folder = run.workdir / "checkpoints"
            newest = [str(folder / str(step)) for step in checkpoints.list_steps(folder)[-1:]]
            good = f"last good checkpoint: {newest[0] if newest else 'none'}"
            raise FloatingPointError(f"{error}; {good}") from error


def _take_steps(
    run: Setup, guard: Guard, request: Request, is_stop_due: Callable[[int], bool]
) -> bool:
    """Take the remaining steps; return whether all of them were taken."""
    config, data, keys, start = run.config, run.data, run.keys, int(run.state.step)
    assert data is not None, "steps are left, so there are data"
    counts = summarize(run.state.params, run.state.masks)
    copies = {}
    if jax.process_index() == 0:  # which alone writes them
        copies = side_files.copies(run.workdir)
        announce(run, counts)
    with contextlib.ExitStack() as stack:
        density = None if run.plan.method.changes_density else counts.sparsifiable.density
        bar = stack.enter_context(progress_bar(config.steps, start, density))
        with bar.during("compiling the check of the state"):
            program = build_program(run, counts)
            state = program.state
            program.check(state)
        log = _open_log(run, start)
        # After the manager, so that the last checkpoint doesn't wait for a tracker.
        stack.push(lambda error, *_: log.close(failed=error is not None))
        folder = run.workdir / "checkpoints"
        manager = stack.enter_context(checkpoints.open_manager(folder, config.checkpoint.keep))
        train_step = bar.compiling("train step", log.without_first(program.train_step, steps=1))
        update = bar.compiling("topology update", log.without_first(program.topology_update))
        stack.enter_context(failing())  # first of all, since closing the others may wait

        for step, batch in enumerate(data.batches(start, config.steps), start + 1):
            batch = shard_batch(batch)
            state, metrics = train_step(state, batch, keys.steps)
            request.after = "this step"
            if run.plan.updates.is_due(step):
                request.after = "this step's topology update"
                earlier = program.earlier(state)
                update_keys = (keys.steps, keys.topology, metrics.get(SKIPPED), earlier)
                state, changes = update(state, batch, update_keys)
                metrics |= changes
                request.after = "this step"
            log.add(step, metrics)
            last = step == config.steps
            if step % config.log.every == 0 or last:
                guard()
                bar.show(step, *log.flush())
            else:
                bar.show(step)
            # Before the checkpoint, so that a run killed in between draws them again.
            if _is_multiple(step, config.sample.every):
                request.after = "the pictures of this step"
                guard()
                with log.uncounted(state), bar.during("drawing samples"):
                    log.picture(step, program.save_samples(step, state))
            stop = is_stop_due(step)
            if last or stop or _is_multiple(step, config.checkpoint.every):
                extra = log.extra()
                program.check(state)
                guard()
                checkpoints.save(manager, program.whole(state), extra | {"copies": copies})
            if stop and not last:
                return False
    return True


def _open_log(run: Setup, start: int) -> MetricsLog:
    return MetricsLog(
        *(run.workdir, start, run.log, run.keys.steps, run.learning_rate),
        tensorboard=run.config.log.tensorboard,
        wandb=run.config.log.wandb,
        may_skip=run.config.optimizer.skip_nonfinite,
    )


def _is_multiple(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
