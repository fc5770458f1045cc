"""The two functions that change the state: the train step and the topology update.

Both run once per device under `parallel.data_parallel`. Gradients are taken with respect to
params that are already masked, so they are dense at no extra cost: the train step masks them
(inside the optimizer), the topology update uses them as they are.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from sparsejax.compact.network import CompactNetwork
from sparsejax.compact.states import compact_model
from sparsejax.families import Model
from sparsejax.parallel import AXIS
from sparsejax.sparsity.compact_trees import (
    CompactMasks,
    CompactTrees,
    spread_masks,
    tree_masks,
)
from sparsejax.sparsity.flat import flat_masks, to_flat, to_whole
from sparsejax.sparsity.masks import apply_masks, pack_bits
from sparsejax.sparsity.methods import Method
from sparsejax.sparsity.topology_update import update_topology
from sparsejax.sparsity.transforms import FlatState
from sparsejax.training.ema import ema_decay, move_ema, update_ema
from sparsejax.training.state import TrainState
from sparsejax.types import (
    Array,
    Batch,
    Gradients,
    Keys,
    Masks,
    Metrics,
    Optimizer,
    OptState,
    Params,
    PRNGKey,
    PyTree,
    Schedule,
)

STEP_METRICS = ("loss", "grad_norm")  # of a train step; all others are of an update,
SKIPPED = "skipped"  # but for this one, of a train step that may be skipped


# The keys of all steps and of all updates; then, or None, the metric `SKIPPED` where steps may be
# skipped, and the `Earlier` gradients.
UpdateKeys: TypeAlias = tuple[Any, ...]
# The sum of the dense gradients of earlier batches, and their number.
Earlier: TypeAlias = tuple[Gradients, int]


def example_keys(key: PRNGKey, step: Array, local_batch: int) -> Keys:
    """Return one key per example of this device, a function of the example's global index.

    Hence an example's noise and dropout don't depend on the number of devices.

    Args:
      key: PRNG key of all steps.
      step: the step that the batch belongs to, int32.
      local_batch: examples on this device.

    Returns:
      PRNG keys [local_batch].
    """
    indices = jax.lax.axis_index(AXIS) * local_batch + jnp.arange(local_batch)
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(lambda index: jax.random.fold_in(step_key, index))(indices)


def mean_gradients(
    model: Model, accumulate: int, params: Params, batch: Batch, keys: Keys
) -> tuple[Array, Gradients]:
    """Return loss and dense gradients, averaged over microbatches and devices.

    Args:
      model: Model.
      accumulate: number of microbatches that the device's batch is split into.
      params: params to differentiate at, masked already.
      batch: examples of this device [local batch, ...].
      keys: a PRNG key per example [local batch].

    Returns:
      Tuple of the loss, a scalar, and gradients like params; the same on all devices.
    """

    def microbatch_gradients(batch: Batch, keys: Keys) -> tuple[Array, Gradients]:
        return jax.value_and_grad(
            lambda params: model.loss(model.apply, params, batch, keys, train=True)
        )(params)

    if accumulate == 1:
        result = microbatch_gradients(batch, keys)
    else:
        split = jax.tree.map(
            lambda x: x.reshape(accumulate, x.shape[0] // accumulate, *x.shape[1:]), (batch, keys)
        )
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            jax.eval_shape(microbatch_gradients, *jax.tree.map(lambda x: x[0], split)),
        )
        total, _ = jax.lax.scan(
            lambda total, part: (jax.tree.map(jnp.add, total, microbatch_gradients(*part)), None),
            zeros,
            split,
        )
        result = jax.tree.map(lambda x: x / accumulate, total)
    # Of one device, XLA's mean is a copy of all gradients: a fifth of a step's time on a CPU.
    return result if jax.lax.axis_size(AXIS) == 1 else jax.lax.pmean(result, AXIS)


def apply_gradients(
    optimizer: Optimizer, state: TrainState, gradients: Gradients, ema_limit: float
) -> TrainState:
    """Take an optimizer step and update the EMA.

    Args:
      optimizer: transformation wrapped by `sparsity.transforms.sparse_updates`. With a flat state
        it sees active weights only, so it must treat all weights alike.
      state: TrainState.
      gradients: dense gradients at `state.params`.
      ema_limit: decay of the EMA after its warm-up.

    Returns:
      TrainState of the next step.
    """
    indices, step = state.indices, state.step + 1
    params, masks = to_flat(state.params, indices), flat_masks(tree_masks(state.masks), indices)
    updates, opt_state = optimizer.update(
        to_flat(gradients, indices), state.opt_state, params, masks=masks
    )
    decay = ema_decay(step, ema_limit)
    return state._replace(
        step=step,
        params=optax.apply_updates(state.params, to_whole(updates, indices, state.params)),
        opt_state=opt_state,
        ema_params=update_ema(state.ema_params, optax.apply_updates(params, updates), decay),
    )


def make_train_step(
    model: Model,
    optimizer: Optimizer,
    *,
    ema_limit: float,
    accumulate: int = 1,
    network: CompactNetwork | None = None,
    skips: bool = False,
) -> Callable[[TrainState, Batch, PRNGKey], tuple[TrainState, Metrics]]:
    """Return `train_step(state, batch, key) -> (state, metrics)`.

    Args:
      model: Model.
      optimizer: see `apply_gradients`.
      ema_limit: decay of the EMA after its warm-up.
      accumulate: microbatches that the device's batch is split into.
      network: the compact network, if the states are compact.
      skips: whether a step whose loss or `grad_norm` is not finite changes nothing of the state
        but `step`. Unlike `optax.apply_if_finite`, which in the end accepts such gradients, this
        never does, holds the EMA too, and adds nothing to the state.

    Returns:
      Function of a TrainState, a device's batch [local batch, ...] and the key of all steps;
      metrics are the float32 scalars `STEP_METRICS`; `grad_norm` is that of active weights. With
      `skips` there is `SKIPPED` too, 1 of a skipped step and otherwise 0.
    """

    def train_step(state: TrainState, batch: Batch, key: PRNGKey) -> tuple[TrainState, Metrics]:
        keys = example_keys(key, state.step, len(jax.tree.leaves(batch)[0]))
        ours = compact_model(network, model, state.masks.indices) if network else model
        loss, gradients = mean_gradients(ours, accumulate, state.params, batch, keys)
        grad_norm = optax.tree.norm(apply_masks(gradients, tree_masks(state.masks)))
        after = apply_gradients(optimizer, state, gradients, ema_limit)
        metrics = dict(zip(STEP_METRICS, (loss, grad_norm), strict=True))
        if not skips:
            return after, metrics
        skipped = ~(jnp.isfinite(loss) & jnp.isfinite(grad_norm))
        after = _unless(skipped, after, state)._replace(step=after.step)
        return after, metrics | {SKIPPED: jnp.float32(skipped)}

    return train_step


def make_topology_update(
    model: Model,
    optimizer: Optimizer,
    method: Method,
    drop_fraction: Schedule,
    *,
    density: PyTree = None,
    progress: Schedule | None = None,
    accumulate: int = 1,
    trees: CompactTrees | None = None,
) -> Callable[[TrainState, Batch, UpdateKeys], tuple[TrainState, Metrics]]:
    """Return `topology_update(state, batch, (steps_key, topology_key)) -> (state, metrics)`.

    It reuses the batch and the keys of the step just taken, at the params after that step, and
    adds the gradients of earlier batches, if it gets any (see `make_gradient_sum`). If the method
    ignores gradients, none are computed.

    Args:
      model: Model.
      optimizer: the train step's.
      method: `sparsity.methods.Method`.
      drop_fraction: optax schedule over global steps.
      density: densities passed to `method.update`: floats in the structure of its sparsities.
      progress: of the run, passed to it too: from 0 to 1, over global steps.
      accumulate: microbatches, as in the train step.
      trees: CompactTrees, if the states are compact.

    Returns:
      Function of a TrainState, a device's batch and the two keys, and after these `SKIPPED` of the
      step just taken if it may have been skipped: then its update is too, since the gradient of
      the same batch at the same params is not finite; then the `Earlier` gradients. `SKIPPED` and
      these may be None or left out. Metrics are float32 scalars:
      `drop_fraction`; `replaced`, the newly active share of the active weights; and `ever_active`,
      the share of the weights that have been active at any time.
    """

    def topology_update(
        state: TrainState, batch: Batch, keys: UpdateKeys
    ) -> tuple[TrainState, Metrics]:
        steps_key, topology_key, skipped, earlier = (*keys, None, None)[:4]
        batch_keys = example_keys(steps_key, state.step - 1, len(jax.tree.leaves(batch)[0]))
        key, before, probe = _probe(method, trees, state, topology_key)
        _, gradients = mean_gradients(model, accumulate, probe, batch, batch_keys)
        if earlier is not None:
            total, count = earlier
            gradients = jax.tree.map(lambda x, y: (x + y) / (count + 1), gradients, total)
        fraction = drop_fraction(state.step)
        current = (state.params, state.masks, state.opt_state if trees else _held(state))
        updated = update_topology(
            method,
            optimizer,
            key,
            *current,
            gradients,
            fraction,
            step=state.step,
            density=density,
            progress=progress(state.step) if progress else None,
            trees=trees,
        )
        if skipped is not None:
            updated = _unless(skipped > 0, updated, current)
        params, masks, held = updated
        after = spread_masks(trees, masks) if trees else masks
        ever_active = jax.tree.map(jnp.bitwise_or, state.ever_active, pack_bits(after))
        metrics = {
            "drop_fraction": jnp.float32(fraction),
            "replaced": _replaced(before, after),
            "ever_active": _share(ever_active, after),
        }
        state = _with_ema(state, trees, params, masks, held)
        return state._replace(ever_active=ever_active), metrics

    return topology_update


def make_gradient_sum(
    model: Model, method: Method, *, accumulate: int = 1, trees: CompactTrees | None = None
) -> Callable[[TrainState, Batch, UpdateKeys], Gradients]:
    """Return `add_gradients(state, batch, (steps_key, topology_key, step, total)) -> total`.

    It adds the dense gradient of a batch that was trained on earlier to `total`: at the params that
    the update of this state takes its own gradient at, with the noise that the batch had in its
    step.

    Args:
      model: Model.
      method: `sparsity.methods.Method`.
      accumulate: microbatches, as in the train step.
      trees: CompactTrees, if the states are compact.

    Returns:
      Function of a TrainState, a device's batch [local batch, ...], and the two keys of a topology
      update, the step that the batch belongs to (int32) and gradients like params, of full shapes.
    """

    def add_gradients(state: TrainState, batch: Batch, keys: UpdateKeys) -> Gradients:
        steps_key, topology_key, step, total = keys
        batch_keys = example_keys(steps_key, step, len(jax.tree.leaves(batch)[0]))
        _, _, probe = _probe(method, trees, state, topology_key)
        _, gradients = mean_gradients(model, accumulate, probe, batch, batch_keys)
        return jax.tree.map(jnp.add, total, gradients)

    return add_gradients


def _probe(
    method: Method, trees: CompactTrees | None, state: TrainState, topology_key: PRNGKey
) -> tuple[PRNGKey, Masks, Params]:
    """Return the key of this update, the masks before it, and where its gradient is taken."""
    key = jax.random.fold_in(topology_key, state.step)
    masks = spread_masks(trees, state.masks) if trees else state.masks
    params = trees.expand(state.params, state.masks.indices) if trees else state.params
    return key, masks, method.probe(key, params, masks)


def _unless(skipped: Array, after: PyTree, before: PyTree) -> PyTree:
    """Return `after`, or `before` if the traced boolean `skipped` is true."""
    return jax.tree.map(lambda new, old: jnp.where(skipped, old, new), after, before)


def _held(state: TrainState) -> FlatState:
    return FlatState(state.opt_state, state.indices, state.ema_params, state.step)


def _with_ema(
    state: TrainState,
    trees: CompactTrees | None,
    params: Params,
    masks: Masks | CompactMasks,
    held: OptState,
) -> TrainState:
    """Return the state after a topology update, with its EMA moved like the optimizer state."""
    if trees is None:
        before, after = (flat_masks(m, held.indices) for m in (state.masks, masks))
        ours, ema = to_flat(params, held.indices), held.ema
        opt_state, indices = held.inner, held.indices
    else:
        before, after, ours = state.masks.masks, masks.masks, params
        ema = trees.move(state.ema_params, params, state.masks.indices, masks.indices)
        opt_state, indices = held, state.indices
    return state._replace(
        params=params,
        masks=masks,
        opt_state=opt_state,
        ema_params=move_ema(ema, ours, before, after),
        indices=indices,
    )


def _share(bits: PyTree, masks: Masks) -> Array:
    """Return the share of ones in the mask bits of the sparsified layers."""
    pairs = zip(jax.tree.leaves(bits), jax.tree.leaves(masks), strict=True)
    layers = [(layer, mask.size) for layer, mask in pairs if mask.ndim > 1]
    if not layers:
        return jnp.float32(1)
    active = sum(jnp.sum(jax.lax.population_count(x), dtype=jnp.float32) for x, _ in layers)
    return active / sum(size for _, size in layers)


def _replaced(before: Masks, after: Masks) -> Array:
    """Return the share of active weights (of sparsified layers) that were inactive before."""
    pairs = [
        (jnp.sum(new & ~old, dtype=jnp.float32), jnp.sum(new, dtype=jnp.float32))
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        if new.ndim > 1  # not the biases and scales of channels
    ]
    if not pairs:
        return jnp.float32(0)
    replaced, active = zip(*pairs, strict=True)
    return jnp.divide(sum(replaced), sum(active))
