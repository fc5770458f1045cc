"""A small net whose channels can be removed, for tests of channels."""

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.sparsity import structure

INPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(16, 5)), jnp.float32)

# A net with a recurrent look: the units of "b" lead into each other, and "out" reads two groups.
GROUPS = {
    "a": [
        structure.Member("a/kernel", 1, np.repeat(np.arange(4), 2), True),
        structure.Member("a/bias", 0, np.repeat(np.arange(4), 2), True),
        structure.Member(
            "out/kernel", 0, np.r_[np.repeat(np.arange(4), 2), -np.ones(6, int)], False
        ),
    ],
    "b": [
        structure.Member("b/kernel", 1, np.tile(np.arange(6), 1), True),
        structure.Member("inner/kernel", 1, np.arange(6), True),
        structure.Member("inner/kernel", 0, np.arange(6), False),
        structure.Member("out/kernel", 0, np.r_[-np.ones(8, int), np.arange(6)], False),
    ],
}
NET = {
    "a": {"kernel": (5, 8), "bias": (8,)},
    "b": {"kernel": (5, 6)},
    "inner": {"kernel": (6, 6)},
    "out": {"kernel": (14, 3), "bias": (3,)},
}


def init(key):
    """Fresh parameters, all different from zero, of the net of the groups."""
    return jax.tree.map(
        lambda shape: 1 + jax.random.uniform(jax.random.fold_in(key, len(shape) * shape[0]), shape),
        NET,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def forward(params, x=INPUTS):
    """The outputs of the net, [16, 3]."""
    b = jnp.tanh(x @ params["b"]["kernel"])
    b = jnp.tanh(b @ params["inner"]["kernel"])
    a = jnp.tanh(x @ params["a"]["kernel"] + params["a"]["bias"])
    return jnp.concatenate([a, b], -1) @ params["out"]["kernel"] + params["out"]["bias"]
