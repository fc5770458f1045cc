"""Compact networks: the same numbers as the masked network, from less."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.compact.states import without_inactive
from sparsejax.configuration import resolve
from sparsejax.families import build_model
from sparsejax.sparsity.masks import apply_masks
from sparsejax.training import loop
from sparsejax.training.plan import build_plan, compact_network
from sparsejax.training.runs import load_state
from tests.training.tiny import tiny_config

STRUCTURES = {
    "block": {"sparsity.structure": "block", "sparsity.block_size": 16, "sparsity.fan_in": False},
    "channel": {"sparsity.structure": "channel"},
}


def masked_model(config):
    """A Model, and params and masks as training makes them, no weight of a kernel zero."""
    config = resolve(config)
    model = build_model(config)
    params = jax.eval_shape(model.init, jax.random.key(0))
    leaves, treedef = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    params = treedef.unflatten([0.1 * rng.standard_normal(x.shape, np.float32) for x in leaves])
    plan = build_plan(config, model)
    draw = jax.jit(lambda key: plan.method.init(key, params, plan.sparsities))
    masks = jax.device_get(draw(jax.random.key(1)))
    return config, model, jax.device_get(apply_masks(params, masks)), masks


# Of free blocks, layers alone are compared by test_layers.
@pytest.mark.parametrize("structure", [pytest.param("block", marks=pytest.mark.slow), "channel"])
def test_the_unet_without_inactive_parts_computes_the_same(structure):
    config, model, params, masks = masked_model(tiny_config(**STRUCTURES[structure]))
    x = jax.random.normal(jax.random.key(2), (3, 8, 8, 1))
    t = jnp.array([0, 10, 999])
    network = build_plan(config, model).compact(masks)
    small_model, small = without_inactive(network, model, params, masks)
    masked = jax.jit(model.apply)
    expected = masked(params, x, t)
    got = jax.jit(small_model.apply)(small, x, t)
    assert jnp.abs(expected).max() > 0.1
    # Biases and scales of absent channels don't matter.
    others = jax.tree.map(lambda p: np.where((p == 0) & (p.ndim < 2), 1, p), params)
    np.testing.assert_allclose(masked(others, x, t), expected, atol=1e-6)
    np.testing.assert_allclose(got, expected, atol=1e-5)

    # Back and forth, as params are when a run is saved and resumed.
    @jax.jit
    def back_and_forth(params, masks):
        indices = network.trees.indices(masks)
        return network.trees.expand(network.trees.shrink(params, indices), indices)

    whole = back_and_forth(params, masks)
    jax.tree.map(np.testing.assert_array_equal, whole, params)


def test_masks_say_how_a_network_is_compact():
    """Indices are data where every output block has as many blocks, and constants elsewhere."""
    changes = {"sparsity.structure": "block", "sparsity.block_size": 16}
    config = resolve(tiny_config(**changes))
    model = build_model(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0))

    def masks(grids):
        def mask(leaf):
            if len(leaf.shape) != 4 or leaf.shape[-2:] != (32, 32):
                return np.True_
            grid = np.kron(np.array(next(grids), bool), np.ones((16, 16), bool))
            return np.broadcast_to(grid, leaf.shape)

        return jax.tree.map(mask, shapes)

    even, uneven = [[1, 0], [0, 1]], [[1, 1], [0, 1]]
    fan_in = compact_network(config.sparsity, model, masks(itertools.repeat(even)))
    free = compact_network(config.sparsity, model, masks(itertools.cycle([even, uneven])))
    assert fan_in.layers == free.layers != ()
    found = fan_in.trees.indices(masks(itertools.repeat(even)))
    assert [x.tolist() for x in jax.tree.leaves(found) if x.ndim] == [[[0], [1]]] * len(free.layers)
    assert free.trees.indices(masks(itertools.cycle([even, uneven]))) == ()
    dense = jax.tree.map(lambda leaf: np.True_, shapes)
    assert compact_network(config.sparsity, model, dense) is None


def trained(workdir, **changes):
    changes = STRUCTURES["block"] | {"sparsity.method": "static", "steps": 10} | changes
    config = tiny_config(**changes, **{"optimizer.schedule": "constant", "sparsity.end": 5})
    assert loop.train(config, workdir)
    return load_state(workdir)[1]


@pytest.mark.slow
def test_a_static_run_trains_and_resumes_the_same_without_inactive_parts(tmp_path, caplog):
    """The checkpoints have params, EMA and moments of full shape, as those of a masked run."""
    expected = trained(tmp_path / "masked", **{"sparsity.compact": False})
    with caplog.at_level("INFO", logger="sparsejax"):
        trained(tmp_path / "compiled", steps=5)
        got = trained(tmp_path / "compiled")
    assert "layers are trained without their inactive parts" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, got.masks, expected.masks)
    jax.tree.map(np.testing.assert_array_equal, got.ever_active, expected.ever_active)
    for tree in ("params", "ema_params", "opt_state"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4),
            getattr(got, tree),
            getattr(expected, tree),
        )
    for param, mask in zip(*map(jax.tree.leaves, (got.params, got.masks)), strict=True):
        assert (np.asarray(param)[~np.broadcast_to(mask, param.shape)] == 0).all()
