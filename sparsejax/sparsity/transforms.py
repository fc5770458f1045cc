"""optax transformations that leave inactive weights as if they weren't there."""

import jax
import jax.numpy as jnp
import optax

from sparsejax.sparsity.masks import apply_masks


def sparse_updates(inner):
    """Wrap an optimizer so that inactive weights get no update and keep fresh state.

    Masks the gradients that go in (so a global norm sees active weights only) and the
    updates that come out (decoupled weight decay and sign updates included), then resets the
    state of inactive weights. Caveat: wrap last, outside of every other transformation, or
    what lies outside can move inactive weights again.

    Args:
      inner: any optax transformation.

    Returns:
      `optax.GradientTransformationExtraArgs` whose `update` takes the masks by keyword:
      `update(gradients, state, params, masks=masks)`. Its state is that of `inner`.

    Example:
      >>> params = {"kernel": jnp.array([[1.0, 0.0]])}
      >>> masks = {"kernel": jnp.array([[True, False]])}
      >>> optimizer = sparse_updates(optax.adamw(0.1))
      >>> state = optimizer.init(params)
      >>> gradients = {"kernel": jnp.array([[1.0, 1.0]])}
      >>> updates, state = optimizer.update(gradients, state, params, masks=masks)
      >>> updates["kernel"].round(1).tolist()
      [[-0.10000000149011612, 0.0]]
    """
    inner = optax.with_extra_args_support(inner)

    def update(gradients, state, params, *, masks, **extra_args):
        gradients = apply_masks(gradients, masks)
        updates, state = inner.update(gradients, state, params, **extra_args)
        return apply_masks(updates, masks), reset_inactive(inner, state, params, masks)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def reset_inactive(inner, state, params, masks):
    """Give inactive weights the optimizer state that `inner.init(params)` gives them.

    A state array belongs to a parameter if its key path ends with the parameter's path and
    the shapes agree: the moments of adam, momentum, accumulated gradients of `MultiSteps`,
    whatever wraps them. Statistics of other shapes (adafactor's rows and columns) stay as
    they are. Call it after a topology update, before the next step.

    Args:
      inner: the optax transformation, wrapped by `sparse_updates` or not.
      state: its state.
      params: pytree of arrays.
      masks: masks of `params`.

    Returns:
      State of the same structure.
    """
    masks_of = {
        path: (mask, param.shape)
        for (path, param), mask in zip(
            jax.tree_util.tree_flatten_with_path(params)[0],
            jax.tree.structure(params).flatten_up_to(masks),
            strict=True,
        )
    }
    longest = max(map(len, masks_of), default=0)

    def reset(path, leaf, fresh):
        for length in range(min(longest, len(path)), -1, -1):
            mask, shape = masks_of.get(path[len(path) - length :], (None, None))
            if mask is not None and jnp.shape(leaf) == shape:
                return leaf if mask.ndim == 0 else jnp.where(mask, leaf, fresh)
        return leaf

    return jax.tree_util.tree_map_with_path(reset, state, inner.init(params))
