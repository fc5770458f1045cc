"""The training state and its initialization."""

import logging
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.families import Model
from sparsejax.sparsity.flat import active_indices, to_flat, whole_indices
from sparsejax.sparsity.masks import apply_masks, pack_bits
from sparsejax.sparsity.transforms import FlatTransformation
from sparsejax.training.keys import RunKeys
from sparsejax.training.plan import Plan
from sparsejax.types import Array, Masks, NumpyArray, Optimizer, OptState, Params, PRNGKey, PyTree

logger = logging.getLogger(__name__)


class TrainState(NamedTuple):
    """Everything that a training step reads and writes.

    Attributes:
      step: optimizer steps taken, int32 scalar.
      params: parameters, exactly zero wherever the mask is False; a compact tree in the training of
        a compact network (see `compact.states`), and so are the optimizer state and the EMA.
      masks: the mask pytree (see `sparsejax.sparsity`); CompactMasks of compact trees.
      opt_state: state of the optimizer; fresh wherever the mask is False. Whole, or flat: for
        active weights only.
      ema_params: exponential moving average of params, zero wherever the mask is False; whole or
        flat as `opt_state` is. `ema_params_of` returns it whole.
      indices: positions of the entries of flat layers (see `sparsity.flat`); 0-d True for each
        layer of a state that is whole.
      ever_active: the weights that have been active at any time, as mask bits (`masks.pack_bits`):
        what the run has explored (in-time over-parameterization, Liu et al. 2021). Of full shape in
        any case.
    """

    step: Array
    params: Params
    masks: Masks
    opt_state: OptState
    ema_params: Params
    indices: PyTree
    ever_active: PyTree


def create_state(
    keys: RunKeys,
    model: Model,
    plan: Plan,
    optimizer: Optimizer,
    weights: tuple[Params, Masks | None] | None = None,
) -> TrainState:
    """Return the state before the first step: masks drawn, params masked, EMA equal to params.

    Args:
      keys: of the run.
      model: Model.
      plan: its Plan.
      optimizer: the optax transformation of the train step.
      weights: params and masks to start from; without masks, those are drawn (default: all of it
        is).

    Returns:
      TrainState on the default device; its optimizer state and EMA are flat where the plan says.
    """
    create = jax.jit(_creation(model, plan, optimizer), compiler_options=_options_to_run_once())
    state = create(keys.init, keys.masks)
    if weights is None:
        return state
    params, masks = weights
    masks = state.masks if masks is None else masks
    return state_from(params, masks, optimizer, plan.flat_counts)


def _options_to_run_once() -> dict[str, int] | None:
    """Return XLA's options for a program that runs once; what XLA_FLAGS says comes first.

    On a CPU, LLVM takes longer for its full optimization than it can ever save.
    """
    level = "xla_backend_optimization_level"
    if jax.default_backend() != "cpu" or level in os.environ.get("XLA_FLAGS", ""):
        return None
    return {level: 1}


def abstract_state(model: Model, plan: Plan, optimizer: Optimizer) -> TrainState:
    """Return the shapes of what `create_state` returns, without computing anything.

    Args:
      model: Model.
      plan: its Plan.
      optimizer: the optax transformation of the train step.

    Returns:
      TrainState of `jax.ShapeDtypeStruct`.
    """
    key = jax.random.key(0)
    return jax.eval_shape(_creation(model, plan, optimizer), key, key)


def _creation(
    model: Model, plan: Plan, optimizer: Optimizer
) -> Callable[[PRNGKey, PRNGKey], TrainState]:
    """Return `create(init_key, masks_key)`, which makes the first state."""

    def create(init_key: PRNGKey, masks_key: PRNGKey) -> TrainState:
        params = model.init(init_key)
        masks = plan.method.init(masks_key, params, plan.sparsities)
        return state_from(params, masks, optimizer, plan.flat_counts)

    return create


def state_from(
    params: Params, masks: Masks, optimizer: Optimizer, counts: PyTree | None = None
) -> TrainState:
    """Return the state of step 0 with these params (masked here) and masks.

    Args:
      params: pytree of arrays.
      masks: masks of `params`.
      optimizer: made by `sparsity.transforms.sparse_updates`.
      counts: `sparsity.flat.static_counts` of the masks for a state whose moments and EMA are
        flat; whole by default.

    Returns:
      TrainState.

    Raises:
      ValueError: `optimizer` is packed, or concrete masks have other counts.
    """
    if isinstance(optimizer, FlatTransformation):
        raise ValueError("optimizer is packed; accepted: sparse_updates, with counts= for flat")
    params = apply_masks(params, masks)
    ever_active = jax.tree.map(jnp.copy, pack_bits(masks))
    indices = whole_indices(params) if counts is None else active_indices(masks, counts)
    ours = to_flat(params, indices)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        masks=masks,
        opt_state=optimizer.init(ours),
        ema_params=jax.tree.map(jnp.copy, ours),
        indices=indices,
        ever_active=ever_active,
    )


def ema_params_of(state: TrainState) -> Params:
    """Return the EMA of the parameters, whole.

    Args:
      state: TrainState.

    Returns:
      Pytree of the shapes of `state.params`; of host arrays where the state is flat.
    """

    def put(index: Array, leaf: Array, param: Array) -> Array | NumpyArray:
        if index.ndim == 0:
            return leaf
        # In numpy: the state may be spread over several processes, and nothing has to compile.
        full = np.zeros(param.size, leaf.dtype)
        full[np.asarray(index)] = np.asarray(leaf)
        return full.reshape(param.shape)

    return jax.tree.map(put, state.indices, state.ema_params, state.params)
