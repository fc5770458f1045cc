"""Which arrays of an optimizer state belong to which parameter."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sparsejax.types import KeyPath, Leaf, OptState, Params, PyTree


def map_mirrors(
    function: Callable[..., Leaf], state: OptState, fresh: OptState, params: Params, other: PyTree
) -> OptState:
    """Apply `function(leaf, fresh, other)` to the arrays of a state that belong to a parameter.

    An array belongs to a parameter if its key path ends with the parameter's path and the shapes
    agree: the moments of adam, momentum, accumulated gradients of `MultiSteps`, whatever wraps
    them; so does a stack of such arrays (the memory of `lbfgs`).

    Args:
      function: function of an array of the state, the same array of `fresh`, and a leaf of `other`.
      state: optimizer state, of arrays or `jax.ShapeDtypeStruct`.
      fresh: state as returned by `init`; arrays that it lacks, such as later measurements of
        `optax.monitor`, are left unchanged.
      params: the parameters of the state; arrays or `jax.ShapeDtypeStruct`.
      other: pytree of the structure of `params`.

    Returns:
      State; arrays that belong to no parameter are unchanged.
    """
    structure: Any = jax.tree.structure(params)
    belonging = {
        path: (leaf, param.shape)
        for (path, param), leaf in zip(
            jax.tree_util.tree_leaves_with_path(params),
            structure.flatten_up_to(other),
            strict=True,
        )
    }
    longest = max(map(len, belonging), default=0)
    fresh_leaves = dict(jax.tree_util.tree_leaves_with_path(fresh))

    def apply(path: KeyPath, leaf: Leaf) -> Leaf:
        if path not in fresh_leaves:
            return leaf
        for length in range(min(longest, len(path)), -1, -1):
            found, shape = belonging.get(path[len(path) - length :], (None, None))
            if found is not None and np.shape(leaf)[max(np.ndim(leaf) - len(shape), 0) :] == shape:
                return function(leaf, fresh_leaves[path], found)
        return leaf

    return jax.tree_util.tree_map_with_path(apply, state)
