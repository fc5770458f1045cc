"""The topology update of a training loop: one call between two optimizer steps."""

from sparsejax.sparsity.compact_trees import CompactTrees, compact_masks, spread_masks
from sparsejax.sparsity.flat import is_flat
from sparsejax.sparsity.masks import apply_masks
from sparsejax.sparsity.methods import Method
from sparsejax.sparsity.transforms import FlatState, move_state, reset_inactive
from sparsejax.types import (
    ArrayLike,
    Gradients,
    Masks,
    Optimizer,
    OptState,
    Params,
    PRNGKey,
    Sparsities,
)


def update_topology(
    method: Method,
    optimizer: Optimizer,
    key: PRNGKey,
    params: Params,
    masks: Masks,
    opt_state: OptState,
    gradients: Gradients,
    fraction: ArrayLike,
    *,
    step: ArrayLike | None = None,
    density: Sparsities | None = None,
    progress: ArrayLike | None = None,
    trees: CompactTrees | None = None,
) -> tuple[Params, Masks, OptState]:
    """Prune and regrow, and return parameters and optimizer state ready for the next step.

    Call it after an optimizer step, inside or outside of `jax.jit`. If you keep an EMA of the
    parameters, mask it with `apply_masks(ema, masks)`.

    Args:
      method: Method, from `get_method`.
      optimizer: the optax transformation of the train step, wrapped by `sparse_updates` or
        `packed`.
      key: PRNG key of this update.
      params: pytree of arrays, zero where the mask is False.
      masks: masks of `params`.
      opt_state: state of `optimizer`.
      gradients: dense gradients of the loss at `method.probe(key, params, masks)`, which is
        `params` unless channels move. If `method.uses_gradients` is False, any pytree of this
        structure, such as `params`.
      fraction: drop fraction in [0, 1], Python or traced scalar.
      step: number of optimizer steps taken, for methods that use it.
      density: requested density per layer, for methods that change it: floats in the structure
        of `params`.
      progress: 0 at the first update of a run, 1 at its last, for methods that use it.
      trees: CompactTrees, if `params`, `masks` (CompactMasks) and `opt_state` are compact; the
        gradients have full shapes in any case.

    Returns:
      Tuple `(params, masks, opt_state)`: params exactly zero where the new mask is False; optimizer
      state fresh where it is False and where weights were regrown, and moved to the active weights
      if it is flat.

    Raises:
      ValueError: the method changes density, and the optimizer state is flat.

    Examples:
      >>> import jax, optax
      >>> import jax.numpy as jnp
      >>> from sparsejax import sparsity
      >>> params = {"kernel": jnp.array([[1.0, -3.0, 0.0, 0.0]])}
      >>> masks = {"kernel": jnp.array([[True, True, False, False]])}
      >>> gradients = {"kernel": jnp.array([[0.5, 0.5, 2.0, 1.0]])}
      >>> optimizer = sparsity.sparse_updates(optax.sgd(0.1, momentum=0.9))
      >>> state = optimizer.init(params)
      >>> _, state = optimizer.update(gradients, state, params, masks=masks)
      >>> rigl, key = sparsity.get_method("rigl"), jax.random.key(0)
      >>> params, masks, state = sparsity.update_topology(
      ...     rigl, optimizer, key, params, masks, state, gradients, fraction=0.5
      ... )
      >>> masks["kernel"].tolist(), params["kernel"].tolist()
      ([[False, True, True, False]], [[0.0, -3.0, 0.0, 0.0]])
      >>> state[0].trace["kernel"].tolist()
      [[0.0, 0.5, 0.0, 0.0]]
    """
    if method.changes_density and isinstance(opt_state, FlatState) and is_flat(opt_state.indices):
        raise ValueError(
            f"method {method.name!r} changes density, so optimizer state can't be flat; "
            "accepted: sparse_updates"
        )

    def update(params: Params, masks: Masks) -> tuple[Params, Masks]:
        params, masks = method.update(
            key,
            params,
            masks,
            gradients,
            fraction,
            step=step,
            density=density,
            progress=progress,
        )
        return apply_masks(params, masks), masks

    if trees is None:
        params, masks = update(params, masks)
        return params, masks, reset_inactive(optimizer, opt_state, params, masks)
    whole, full_masks = update(trees.expand(params, masks.indices), spread_masks(trees, masks))
    after = compact_masks(trees, full_masks)
    after = after._replace(lost=masks.lost + after.lost)
    params = trees.shrink(whole, after.indices)
    return params, after, move_state(optimizer, opt_state, trees, masks, after, params)
