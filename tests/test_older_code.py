"""Code that was written for earlier versions: the Python of a README of then, word for word."""

import contextlib
import io
import re
import subprocess
import sys

import jax
import numpy as np

LOAD_RUN = """\
from sparsejax.training import load_run

task, params, masks = load_run("runs/digits-rigl-0.75-0")  # the EMA weights
"""

OWN_LOOP = '''\
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
'''


def test_load_run_returns_a_model_params_and_masks(tiny_run, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits-rigl-0.75-0").symlink_to(tiny_run[0])
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(LOAD_RUN, names)
    params, masks = names["params"], names["masks"]
    assert jax.tree.structure(params) == jax.tree.structure(masks)
    for param, mask in zip(jax.tree.leaves(params), jax.tree.leaves(masks), strict=True):
        assert not np.asarray(param)[~np.broadcast_to(mask, param.shape)].any()
    x, t = np.zeros((2, 8, 8, 1), np.float32), np.zeros(2, np.int32)
    assert jax.eval_shape(names["task"].apply, params, x, t).shape == x.shape


def test_the_own_loop_learns_and_stays_sparse():
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(OWN_LOOP, {})
    assert float(out.getvalue().split()[1]) < 0.1
    assert re.search("weights=2176, active=436", out.getvalue())


def test_modules_of_sparsity_are_attributes_of_the_package():
    code = (
        "import sparsejax.sparsity as s; "
        "print(s.masks.random_masks, s.methods.METHODS, s.distributions.uniform, "
        "s.schedules.UpdateSchedule, s.transforms.packed, s.topology.prune)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
