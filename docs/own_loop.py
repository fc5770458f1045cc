"""Sparse training in a loop of your own: plain jax.jit, an optax optimizer, a small network."""

import functools

import jax
import jax.numpy as jnp
import optax

from sparsejax import sparsity

x = jax.random.normal(jax.random.key(0), (256, 16))
y = jnp.sin(3 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]
key = jax.random.key(1)
params = {"hidden": jax.random.normal(key, (16, 128)) / 4, "out": jnp.zeros((128, 1))}

masks = sparsity.random_masks(key, params, sparsity.erdos_renyi_kernel(params, 0.8))
params = sparsity.apply_masks(params, masks)
optimizer = sparsity.sparse_updates(optax.adamw(1e-2))
state = optimizer.init(params)
rigl = sparsity.get_method("rigl")
update_topology = jax.jit(functools.partial(sparsity.update_topology, rigl, optimizer))
schedule = sparsity.UpdateSchedule(update_interval=20, begin=20, end=300)
drop_fraction = optax.cosine_decay_schedule(0.5, decay_steps=300)


def loss(params):
    """Return the mean squared error of a network with one hidden layer."""
    return jnp.mean((jax.nn.relu(x @ params["hidden"]) @ params["out"] - y) ** 2)


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
print(f"loss {loss(params):.4f}", sparsity.summarize(params, masks).total)
