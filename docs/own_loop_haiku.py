"""Sparse training in a loop of your own: haiku, whose embeddings and offsets stay dense."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from sparsejax import sparsity

x = jax.random.randint(jax.random.key(0), (256, 3), 0, 8)  # tokens
y = jnp.sin(x[:, 0]) + 0.1 * x[:, 1] * x[:, 2] - 1
key = jax.random.key(1)


@hk.without_apply_rng
@hk.transform
def net(tokens):
    """Embed three tokens and return a number, [batch]."""
    hidden = hk.Linear(64)(hk.Flatten()(hk.Embed(8, 16)(tokens)))
    hidden = hk.LayerNorm(-1, create_scale=True, create_offset=True)(jax.nn.relu(hidden))
    return hk.Linear(1)(hidden)[:, 0]


def loss(params):
    """Return the mean squared error."""
    return jnp.mean((net.apply(params, x) - y) ** 2)


params = net.init(key, x)
masks = sparsity.random_masks(key, params, sparsity.erdos_renyi_kernel(params, 0.8))
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
print(f"loss {loss(params):.4f}", sparsity.summarize(params, masks).sparsifiable)
