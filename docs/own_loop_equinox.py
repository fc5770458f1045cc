"""The sparsity functions in a loop of your own: equinox, whose embeddings need a predicate."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from sparsejax.sparsity import distributions, masks, methods, schedules, transforms

x = jax.random.randint(jax.random.key(0), (256, 3), 0, 8)  # tokens
y = jnp.sin(x[:, 0]) + 0.1 * x[:, 1] * x[:, 2] - 1
rigl, is_due = methods.get_method("rigl"), schedules.UpdateSchedule(20, 20, 300).is_due
drop_fraction = optax.cosine_decay_schedule(0.5, 300)

class Net(eqx.Module):
    embed: eqx.nn.Embedding
    hidden: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.embed = eqx.nn.Embedding(8, 16, key=keys[0])
        self.hidden = eqx.nn.Linear(48, 64, key=keys[1])
        self.out = eqx.nn.Linear(64, 1, key=keys[2])

    def __call__(self, tokens):
        return self.out(jax.nn.relu(self.hidden(jax.vmap(self.embed)(tokens).ravel())))[0]

# Arrays are trained, all else stays as it is.
params, rest = eqx.partition(Net(jax.random.key(1)), eqx.is_inexact_array)
loss = lambda params: jnp.mean((jax.vmap(eqx.combine(params, rest))(x) - y) ** 2)

def is_sparsifiable(path, leaf):
    """Embedding.weight has the name of Linear.weight, so the path tells which is which."""
    return masks.is_sparsifiable(path, leaf) and "embed" not in masks.path_name(path)

sparsities = distributions.erdos_renyi_kernel(params, 0.8, is_sparsifiable=is_sparsifiable)
first_mask = masks.random_masks(jax.random.key(2), params, sparsities)

def train(optimizer, params, mask):
    @jax.jit
    def train_step(params, mask, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params, masks=mask)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def change_topology(key, params, mask, state, fraction):
        params, mask = rigl.update(key, params, mask, jax.grad(loss)(params), fraction)
        return params, mask, transforms.reset_inactive(optimizer, state, params, mask)

    params, key = masks.apply_masks(params, mask), jax.random.key(3)
    state = optimizer.init(params)
    for step in range(1, 401):
        params, state = train_step(params, mask, state)
        if is_due(step):
            key = jax.random.fold_in(key, step)
            params, mask, state = change_topology(key, params, mask, state, drop_fraction(step))
    return params, mask, state

for name, optimizer in {
    "sparse_updates": transforms.sparse_updates(optax.adamw(1e-2)),
    "packed": transforms.packed(optax.adamw(1e-2), first_mask),  # moments of active weights alone
}.items():
    trained, mask, state = train(optimizer, params, first_mask)
    counts = masks.summarize(trained, mask, is_sparsifiable=is_sparsifiable)
    print(f"{name}: loss {loss(trained):.4f}", counts.sparsifiable)
