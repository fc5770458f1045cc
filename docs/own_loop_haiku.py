"""The sparsity functions in a loop of your own: haiku, whose embeddings and offsets stay dense."""

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from sparsejax.sparsity import distributions, masks, methods, schedules, transforms

x = jax.random.randint(jax.random.key(0), (256, 3), 0, 8)  # tokens
y = jnp.sin(x[:, 0]) + 0.1 * x[:, 1] * x[:, 2] - 1
rigl, is_due = methods.get_method("rigl"), schedules.UpdateSchedule(20, 20, 300).is_due
drop_fraction = optax.cosine_decay_schedule(0.5, 300)

@hk.without_apply_rng
@hk.transform
def net(tokens):
    hidden = hk.Linear(64)(hk.Flatten()(hk.Embed(8, 16)(tokens)))
    hidden = hk.LayerNorm(-1, create_scale=True, create_offset=True)(jax.nn.relu(hidden))
    return hk.Linear(1)(hidden)[:, 0]

params = net.init(jax.random.key(1), x)
loss = lambda params: jnp.mean((net.apply(params, x) - y) ** 2)
sparsities = distributions.erdos_renyi_kernel(params, 0.8)
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
    counts = masks.summarize(trained, mask)
    print(f"{name}: loss {loss(trained):.4f}", counts.sparsifiable)
