"""Random parameter trees, masks and scores for property tests."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from sparsejax.sparsity import distributions, masks

# A fixed set of shapes: every new shape costs a compilation.
TREE_SHAPES = (
    {"conv": {"kernel": (3, 3, 4, 6), "bias": (6,)}, "out": {"kernel": (6, 5)}},
    {"a": {"kernel": (7, 3), "scale": (3,)}, "b": [{"kernel": (2, 11)}, {"kernel": (1, 1)}]},
    {"kernel": (9, 8), "a": {"kernel": (8, 9)}},
)
DTYPES = ("float32", "bfloat16", "float16")
KINDS = tuple(zip(TREE_SHAPES, DTYPES, strict=True))


def random_tree(shapes, seed, dtype="float32"):
    """Normal arrays of the shapes of a tree of tuples."""
    leaves, treedef = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    rng = np.random.default_rng(seed)
    return treedef.unflatten(
        [jnp.asarray(rng.normal(size=shape), jnp.dtype(dtype)) for shape in leaves]
    )


@st.composite
def sparse_models(draw):
    """Masked params and their masks, of random shape, dtype, sparsity and distribution."""
    shapes, dtype = draw(st.sampled_from(KINDS))
    params = random_tree(shapes, draw(st.integers(0, 2**20)), dtype)
    name = draw(st.sampled_from(sorted(distributions.DISTRIBUTIONS)))
    level = draw(st.sampled_from([0.1, 0.5, 0.75, 0.9, 0.99]))
    sparsities = distributions.get_distribution(name)(params, level)
    drawn = numpy_masks(draw(st.integers(0, 2**20)), params, sparsities)
    return masks.apply_masks(params, drawn), drawn


def numpy_masks(seed, params, sparsities):
    """Masks with as many active weights as `random_masks` draws; nothing has to compile."""
    rng = np.random.default_rng(seed)

    def mask(param, sparsity):
        if not sparsity:
            return jnp.asarray(True)
        active = rng.permutation(param.size) < masks.target_active(param.size, sparsity)
        return jnp.asarray(active.reshape(param.shape))

    return jax.tree.map(mask, params, sparsities)


def random_like(params, seed):
    """Normal arrays of the shapes and dtypes of a tree."""
    leaves, treedef = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return treedef.unflatten([jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in leaves])


def active_counts(masks):
    """Number of True entries of every leaf."""
    return [int(jnp.sum(mask)) for mask in jax.tree.leaves(masks)]
