"""The sparsity functions in a loop of your own: flax nnx and its `nnx.Optimizer`."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from sparsejax.sparsity import distributions, masks, methods, schedules, transforms

x = jax.random.normal(jax.random.key(0), (256, 16))
y = jnp.sin(3 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]
rigl, is_due = methods.get_method("rigl"), schedules.UpdateSchedule(20, 20, 300).is_due
drop_fraction = optax.cosine_decay_schedule(0.5, 300)
loss = lambda model: jnp.mean((model(x) - y) ** 2)

class Net(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.out = nnx.Linear(16, 128, rngs=rngs), nnx.Linear(128, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(jax.nn.relu(self.hidden(x)))

@nnx.jit
def train_step(model, optimizer, mask):
    optimizer.update(model, nnx.grad(loss)(model), masks=mask)

@nnx.jit
def change_topology(key, model, optimizer, mask, fraction):
    params, gradients = nnx.as_pure((nnx.state(model, nnx.Param), nnx.grad(loss)(model)))
    params, mask = rigl.update(key, params, mask, gradients, fraction)
    state = nnx.as_pure(optimizer.opt_state)
    state = transforms.reset_inactive(optimizer.tx, state, params, mask)
    nnx.update(model, params)
    nnx.update(optimizer.opt_state, nnx.state(state))  # the variables of the optimizer stay
    return mask

def train(wrap):
    model, key = Net(nnx.Rngs(0)), jax.random.key(1)
    params = nnx.state(model, nnx.Param)
    mask = masks.random_masks(key, params, distributions.erdos_renyi_kernel(params, 0.8))
    nnx.update(model, masks.apply_masks(params, mask))
    optimizer = nnx.Optimizer(model, wrap(optax.adamw(1e-2), mask), wrt=nnx.Param)
    mask = nnx.as_pure(mask)
    for step in range(1, 401):
        train_step(model, optimizer, mask)
        if is_due(step):
            key = jax.random.fold_in(key, step)
            mask = change_topology(key, model, optimizer, mask, drop_fraction(step))
    return model, optimizer, mask

for name, wrap in {
    "sparse_updates": lambda inner, mask: transforms.sparse_updates(inner),
    "packed": transforms.packed,  # moments of active weights alone
}.items():
    model, optimizer, mask = train(wrap)
    counts = masks.summarize(nnx.as_pure(nnx.state(model, nnx.Param)), mask)
    print(f"{name}: loss {loss(model):.4f}", counts.sparsifiable)
