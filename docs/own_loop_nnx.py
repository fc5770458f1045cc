"""Sparse training in a loop of your own: flax nnx and its `nnx.Optimizer`."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from sparsejax import sparsity

x = jax.random.normal(jax.random.key(0), (256, 16))
y = jnp.sin(3 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]
key = jax.random.key(1)


class Net(nnx.Module):
    """A network with one hidden layer."""

    def __init__(self, rngs):
        self.hidden, self.out = nnx.Linear(16, 128, rngs=rngs), nnx.Linear(128, 1, rngs=rngs)

    def __call__(self, x):
        """Return the output, [batch, 1]."""
        return self.out(jax.nn.relu(self.hidden(x)))


def loss(model):
    """Return the mean squared error."""
    return jnp.mean((model(x) - y) ** 2)


model = Net(nnx.Rngs(0))
params = nnx.as_pure(nnx.state(model, nnx.Param))
masks = sparsity.random_masks(key, params, sparsity.erdos_renyi_kernel(params, 0.8))
nnx.update(model, sparsity.apply_masks(params, masks))
# Moments of active weights alone; or, for those of all: sparsity.sparse_updates(optax.adamw(1e-2))
transformation = sparsity.packed(optax.adamw(1e-2), masks)
optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
rigl = sparsity.get_method("rigl")
schedule = sparsity.UpdateSchedule(update_interval=20, begin=20, end=300)
drop_fraction = optax.cosine_decay_schedule(0.5, decay_steps=300)


@nnx.jit
def train_step(model, optimizer, masks):
    """Take an optimizer step; inactive weights stay zero."""
    optimizer.update(model, nnx.grad(loss)(model), masks=masks)


@nnx.jit
def update_topology(key, model, optimizer, masks, fraction):
    """Drop the smallest weights, grow where the dense gradient is largest; return the masks."""
    gradients = nnx.grad(loss)(model)
    params, state, gradients = nnx.as_pure(
        (nnx.state(model, nnx.Param), optimizer.opt_state, gradients)
    )
    params, masks, state = sparsity.update_topology(
        rigl, optimizer.tx, key, params, masks, state, gradients, fraction
    )
    nnx.update(model, params)
    nnx.update(optimizer.opt_state, nnx.state(state))  # the variables of the optimizer stay
    return masks


for step in range(1, 401):
    train_step(model, optimizer, masks)
    if schedule.is_due(step):
        key = jax.random.fold_in(key, step)
        masks = update_topology(key, model, optimizer, masks, drop_fraction(step))
counts = sparsity.summarize(nnx.as_pure(nnx.state(model, nnx.Param)), masks)
print(f"loss {loss(model):.4f}", counts.sparsifiable)
