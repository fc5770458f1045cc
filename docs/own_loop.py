"""The sparsity functions in a loop of your own: plain jax.jit, an optax optimizer, a small net."""

import jax
import jax.numpy as jnp
import optax

from sparsejax.sparsity import distributions, masks, methods, schedules, transforms

x = jax.random.normal(jax.random.key(0), (256, 16))
y = jnp.sin(3 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]
key = jax.random.key(1)
params = {"hidden": jax.random.normal(key, (16, 128)) / 4, "out": jnp.zeros((128, 1))}

sparsities = distributions.erdos_renyi_kernel(params, 0.8)
mask = masks.random_masks(key, params, sparsities)
params = masks.apply_masks(params, mask)
rigl, is_due = methods.get_method("rigl"), schedules.UpdateSchedule(20, 20, 300).is_due
drop_fraction = optax.cosine_decay_schedule(0.5, 300)
optimizer = transforms.sparse_updates(optax.adamw(1e-2))
state = optimizer.init(params)
loss = lambda p: jnp.mean((jax.nn.relu(x @ p["hidden"]) @ p["out"] - y) ** 2)

@jax.jit
def train_step(params, mask, state):
    updates, state = optimizer.update(jax.grad(loss)(params), state, params, masks=mask)
    return optax.apply_updates(params, updates), state

@jax.jit
def change_topology(key, params, mask, state, fraction):
    params, mask = rigl.update(key, params, mask, jax.grad(loss)(params), fraction)
    return params, mask, transforms.reset_inactive(optimizer, state, params, mask)

for step in range(1, 401):
    params, state = train_step(params, mask, state)
    if is_due(step):
        key = jax.random.fold_in(key, step)
        params, mask, state = change_topology(key, params, mask, state, drop_fraction(step))
print(f"loss {loss(params):.4f}", masks.summarize(params, mask).total)
