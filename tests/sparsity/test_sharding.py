"""Masks lie where the parameters lie: on the four devices of a mesh, in one process of its own."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.training.tiny import with_devices

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = """
import json, jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from sparsejax.sparsity import distributions, masks, methods, structure, transforms

mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
specs = {"rows": P("d", None), "columns": P(None, "d"), "bias": P(), "replicated": P()}
shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
shapes = {"rows": (8, 6), "columns": (6, 8), "bias": (6,), "replicated": (4, 4)}
here = {name: jax.random.normal(jax.random.key(len(name)), s) for name, s in shapes.items()}
there = jax.device_put(here, shardings)
sparsities = distributions.uniform(there, 0.5)
key = jax.random.key(0)
found = {}

def lies_as(name, tree, like=there):
    found[name] = [
        k for k, leaf in tree.items() if leaf.ndim and not leaf.sharding.is_equivalent_to(
            like[k].sharding, leaf.ndim)]

def same(name, ours, expected):
    found[name] = [k for k in ours if not np.array_equal(ours[k], expected[k])]

drawn, expected = (masks.random_masks(key, p, sparsities) for p in (there, here))
lies_as("random_masks", drawn)
same("random_masks values", drawn, expected)
for kind in (structure.WEIGHT, structure.block(2)):
    rigl = methods.get_method("rigl", kind)
    before, alone = (rigl.init(key, p, sparsities) for p in (there, here))
    lies_as(f"init of {kind.name}", before)
    same(f"init of {kind.name} values", before, alone)
rigl = methods.get_method("rigl")
params, small = masks.apply_masks(there, drawn), masks.apply_masks(here, expected)
lies_as("apply_masks", params)
update = jax.jit(rigl.update)
moved, after = update(key, params, drawn, there, 0.5)
_, after_here = update(key, small, expected, here, 0.5)
lies_as("rigl", after)
same("rigl values", after, after_here)
optimizer = transforms.sparse_updates(optax.adam(0.1))
state = jax.jit(transforms.reset_inactive, static_argnums=0)(
    optimizer, optimizer.init(moved), moved, after)
lies_as("moments", state[0].mu)
optimizer = transforms.packed(optax.adam(0.1), drawn)
state = optimizer.init(params)
found["packed"] = [k for k, m in state.inner[0].mu.items() if not m.sharding.is_fully_replicated]
layers = {"rows": jax.device_put(here["rows"], jax.devices()[1]),
          "columns": jax.device_put(here["columns"], jax.devices()[2]), "bias": here["bias"]}
apart = masks.random_masks(key, layers, {k: sparsities[k] for k in layers})
lies_as("devices of their own", apart, layers)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
    environment = os.environ | {"XLA_FLAGS": with_devices(4)}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "what",
    ["random_masks", "init of weight", "init of block", "apply_masks", "rigl", "moments"],
)
def test_masks_and_moments_are_sharded_as_params_are(found, what):
    assert found[what] == []


@pytest.mark.parametrize("what", ["random_masks", "init of weight", "init of block", "rigl"])
def test_sharding_changes_no_mask(found, what):
    assert found[f"{what} values"] == []


def test_layers_on_devices_of_their_own_have_their_masks_there(found):
    assert found["devices of their own"] == []


def test_packed_state_comes_out_replicated(found):
    """As its docstring says."""
    assert found["packed"] == []
