"""What the training loop calls: the functions of the network that is trained, whole or compact."""

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from PIL import Image

from sparsejax.atomic import replacing
from sparsejax.compact.states import paired_model, shrink_state, state_expander
from sparsejax.errors import require
from sparsejax.families import Model
from sparsejax.parallel import data_parallel, replicate, shard_batch
from sparsejax.sparsity.compact_trees import CompactTrees
from sparsejax.sparsity.costs import forward_flops
from sparsejax.sparsity.masks import Summary
from sparsejax.sparsity.methods import Method
from sparsejax.training.sampling import frozen_of, make_sampler
from sparsejax.training.setup import Setup
from sparsejax.training.soundness import Check, make_check
from sparsejax.training.state import TrainState, ema_params_of
from sparsejax.training.steps import (
    Earlier,
    UpdateKeys,
    make_gradient_sum,
    make_topology_update,
    make_train_step,
)
from sparsejax.types import Batch, Metrics, Pictures, PyTree

logger = logging.getLogger(__name__)


class Program(NamedTuple):
    """The functions of a run, compiled at their first calls, and the state to call them with.

    Attributes:
      state: TrainState, on all devices; that of the compact network if it is what is trained.
      train_step: see `steps.make_train_step`.
      topology_update: see `steps.make_topology_update`.
      earlier: `earlier(state)` returns the `steps.Earlier` gradients for the update of a state;
        None if `sparsity.gradient_batches` is 1 or the method uses no gradients.
      check: `check(state)` raises FloatingPointError if a state must not be saved: see
        `soundness.make_check`.
      whole: `whole(state)` returns a state as checkpoints hold it, of full shape.
      save_samples: `save_samples(step, state)` writes a grid of samples, in the first process only,
        and returns it: [height, width, 3] uint8, None in other processes.
    """

    state: TrainState
    train_step: Callable
    topology_update: Callable
    earlier: Callable[[TrainState], Earlier | None]
    check: Check
    whole: Callable[[TrainState], TrainState]
    save_samples: Callable[[int, TrainState], Pictures | None]


def build_program(run: Setup, counts: Summary) -> Program:
    """Return the Program of a run.

    Args:
      run: Setup of a run that has steps left.
      counts: of its masks, which each state that is saved has to have.
    """
    plan, optimizer, accumulate = run.plan, run.optimizer, run.config.optimizer.accumulate
    network = plan.compact(run.state.masks) if plan.trains_compact else None
    trees = network.trees if network else None
    state, model = run.state, run.model
    whole: Callable[[TrainState], TrainState] = _unchanged
    if network:
        logger.info("%d layers are trained without their inactive parts", len(network.layers))
        state = shrink_state(network, state)
        whole, model = state_expander(network, optimizer), paired_model(network, model)
    state = replicate(state)
    train_step = make_train_step(
        run.model,
        optimizer,
        ema_limit=run.config.ema.decay,
        accumulate=accumulate,
        network=network,
        skips=run.config.optimizer.skip_nonfinite > 0,
    )
    topology_update = make_topology_update(
        run.model,
        optimizer,
        plan.method,
        plan.drop_fraction,
        density=jax.tree.map(lambda sparsity: 1.0 - sparsity, plan.sparsities),
        progress=plan.updates.progress,
        accumulate=accumulate,
        trees=trees,
    )
    train_step = data_parallel(train_step, donate_state=True)
    topology_update = data_parallel(topology_update, donate_state=True)
    if plan.method.changes_density:
        topology_update = _recording_flops(topology_update, run.model)
    params_of = _ema_and_indices if network else ema_params_of
    save_samples = _sample_writer(run, model, params_of)
    active = {name: layer.active for name, layer in counts.layers.items()}
    check = make_check(None if plan.method.changes_density else active, trees)
    earlier = _earlier_gradients(run, trees)
    program = Program(state, train_step, topology_update, earlier, check, whole, save_samples)
    return _checking_units(program, plan.method) if network else program


def _unchanged(state: TrainState) -> TrainState:
    return state


def _ema_and_indices(state: TrainState) -> PyTree:
    """Return what a `paired_model` has in place of params."""
    return state.ema_params, state.masks.indices


def _earlier_gradients(
    run: Setup, trees: CompactTrees | None
) -> Callable[[TrainState], Earlier | None]:
    """Return `Program.earlier`; batches are functions of the step, so they are read again."""
    data, keys, method = run.data, run.keys, run.plan.method
    count = run.config.sparsity.gradient_batches - 1
    if count == 0 or not method.uses_gradients:
        return lambda state: None
    assert data is not None, "steps are left, so there are data"
    shapes = jax.eval_shape(run.model.init, jax.random.key(0))
    accumulate = run.config.optimizer.accumulate
    add_gradients = data_parallel(
        make_gradient_sum(run.model, method, accumulate=accumulate, trees=trees)
    )

    def earlier(state: TrainState) -> Earlier | None:
        last = int(state.step) - 1  # whose batch the update reads itself
        first = max(last - count, 0)
        if first == last:
            return None
        total = replicate(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))
        for step, batch in enumerate(data.batches(first, last), first):
            total = add_gradients(
                state, shard_batch(batch), (keys.steps, keys.topology, step, total)
            )
        return total, last - first

    return earlier


def _recording_flops(topology_update: Callable, model: Model) -> Callable:
    """Add to an update's metrics the FLOPs of a forward pass in the steps before it."""
    layer_flops = model.layer_flops(jax.eval_shape(model.init, jax.random.key(0)))

    def update(state: TrainState, batch: Batch, keys: UpdateKeys) -> tuple[TrainState, Metrics]:
        before = forward_flops(layer_flops, state.masks)
        state, metrics = topology_update(state, batch, keys)
        return state, metrics | {"forward_flops_before": before}

    return update


def _sample_writer(
    run: Setup, model: Model, params_of: Callable[[TrainState], PyTree]
) -> Callable[[int, TrainState], Pictures | None]:
    """Return `save_samples(step, state)`, which writes a grid of samples and returns it.

    Args:
      run: Setup.
      model: Model that draws.
      params_of: returns what `model` draws with.
    """
    folder, count, data = run.workdir / "samples", run.config.sample.count, run.data
    assert data is not None, "steps are left, so there are data"
    key = run.keys.samples
    sampler = functools.cache(lambda: make_sampler(model, frozen_of(model, data), key, count))

    def save_samples(step: int, state: TrainState) -> Pictures | None:
        if jax.process_index() != 0:
            return None
        folder.mkdir(exist_ok=True)
        grid = model.render(sampler()(jax.device_get(params_of(state))))
        with replacing(folder / f"{step:08d}.png") as partial:
            Image.fromarray(grid).save(partial)
        return grid

    return save_samples


def _checking_units(program: Program, method: Method) -> Program:
    """Return a Program of a compact network that checks that its states lose no active unit.

    Checked are the state after the first update (which is waited for anyway), and those that
    `check` is called with.
    """
    is_first = True

    def topology_update(
        state: TrainState, batch: Batch, keys: UpdateKeys
    ) -> tuple[TrainState, Metrics]:
        nonlocal is_first
        state, metrics = program.topology_update(state, batch, keys)
        if is_first:
            _require_units(method, state)
        is_first = False
        return state, metrics

    def check(state: TrainState) -> None:
        _require_units(method, state)
        program.check(state)

    return program._replace(topology_update=topology_update, check=check)


def _require_units(method: Method, state: TrainState) -> None:
    """Check that a compact state holds all that the method left active.

    Raises:
      ConfigError: it doesn't; names the method.
    """
    units = "blocks of each output block and channels of each group"
    accepted = f"methods that keep the number of active {units}, or sparsity.compact False"
    require(not int(state.masks.lost), "sparsity.method", method.name, accepted)
