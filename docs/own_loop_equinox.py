"""Sparse training in a loop of your own: equinox, whose embeddings need a predicate."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from sparsejax import sparsity

x = jax.random.randint(jax.random.key(0), (256, 3), 0, 8)  # tokens
y = jnp.sin(x[:, 0]) + 0.1 * x[:, 1] * x[:, 2] - 1
key = jax.random.key(1)


class Net(eqx.Module):
    """A network with an embedding."""

    embed: eqx.nn.Embedding
    hidden: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.embed = eqx.nn.Embedding(8, 16, key=keys[0])
        self.hidden = eqx.nn.Linear(48, 64, key=keys[1])
        self.out = eqx.nn.Linear(64, 1, key=keys[2])

    def __call__(self, tokens):
        """Embed three tokens and return a number."""
        return self.out(jax.nn.relu(self.hidden(jax.vmap(self.embed)(tokens).ravel())))[0]


params, rest = eqx.partition(Net(key), eqx.is_inexact_array)  # arrays are trained, the rest stays


def loss(params):
    """Return the mean squared error."""
    return jnp.mean((jax.vmap(eqx.combine(params, rest))(x) - y) ** 2)


def is_sparsifiable(path, leaf):
    """Leave the embedding dense: its array is called `weight`, as those of Linear are."""
    return sparsity.is_sparsifiable(path, leaf) and "embed" not in jax.tree_util.keystr(path)


sparsities = sparsity.erdos_renyi_kernel(params, 0.8, is_sparsifiable=is_sparsifiable)
masks = sparsity.random_masks(key, params, sparsities)
params = sparsity.apply_masks(params, masks)
# Moments of active weights alone; or, for those of all: sparsity.sparse_updates(optax.adamw(1e-2))
optimizer = sparsity.packed(optax.adamw(1e-2), masks)
state = optimizer.init(params)
rigl = sparsity.get_method("rigl")
update_topology = jax.jit(functools.partial(sparsity.update_topology, rigl, optimizer))
schedule = sparsity.UpdateSchedule(update_interval=20, begin=20, end=300)
drop_fraction = optax.cosine_decay_schedule(0.5, decay_steps=300)
gradient = jax.jit(jax.grad(loss))


@jax.jit
def train_step(params, masks, state):
    """Take an optimizer step; inactive weights stay zero."""
    updates, state = optimizer.update(gradient(params), state, params, masks=masks)
    return optax.apply_updates(params, updates), state


for step in range(1, 401):
    params, state = train_step(params, masks, state)
    if schedule.is_due(step):
        key = jax.random.fold_in(key, step)
        params, masks, state = update_topology(
            key, params, masks, state, gradient(params), drop_fraction(step)
        )
counts = sparsity.summarize(params, masks, is_sparsifiable=is_sparsifiable)
print(f"loss {loss(params):.4f}", counts.sparsifiable)
