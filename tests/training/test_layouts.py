"""Older checkpoints can be read: before `indices`, and before all masks of channels."""

import functools
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from sparsejax.configuration import resolve, to_json
from sparsejax.families import build_model
from sparsejax.sparse_files import save_sparse
from sparsejax.sparsity import channels, get_method, structure
from sparsejax.sparsity.flat import active_indices, static_counts
from sparsejax.sparsity.masks import apply_masks, pack_bits, unpack_bits
from sparsejax.sparsity.transforms import sparse_updates
from sparsejax.training import checkpoints, load_run, load_sparse_run, runs
from sparsejax.training.layouts import complete_state
from sparsejax.training.optimizers import build_optimizer
from sparsejax.training.plan import build_plan
from sparsejax.training.state import ema_params_of, state_from
from tests.sparsity.channel_net import GROUPS, init
from tests.sparsity.strategies import random_like, random_tree
from tests.training.tiny import tiny_config

SHAPES = {"conv": {"kernel": (3, 3, 2, 4), "bias": (4,)}, "kernel": (8, 9)}


class PackedState(NamedTuple):
    """As it stood in older checkpoints."""

    inner: tuple
    indices: dict
    ema: dict
    count: np.ndarray


def example_of(is_flat, is_dense=False):
    """A state in which every array has numbers of its own."""
    params = random_tree(SHAPES, 0)
    masks = jax.tree.map(
        lambda p: p > 0 if p.ndim > 1 and not is_dense else jnp.array(True), params
    )
    counts = static_counts(masks) if is_flat else None
    state = state_from(params, masks, sparse_updates(optax.adam(0.1)), counts)
    adam = state.opt_state[0]
    adam = adam._replace(count=jnp.int32(7), mu=random_like(adam.mu, 1), nu=random_like(adam.nu, 2))
    return state._replace(
        step=jnp.int32(7),
        opt_state=(adam, *state.opt_state[1:]),
        ema_params=random_like(state.ema_params, 3),
    )


def older_layout(state, is_flat):
    tree = state._asdict()
    indices = tree.pop("indices")
    if is_flat:
        held = PackedState(state.opt_state, indices, state.ema_params, jnp.int32(7))
        tree |= {"opt_state": held, "ema_params": ()}
    return tree


def write(folder, tree):
    """As older versions did: the checksums are of the tree as it is."""
    tree = jax.tree.map(np.asarray, jax.device_get(tree))
    checksums = [zlib.crc32(leaf.tobytes()) for leaf in jax.tree.leaves(tree)]
    extra = {"pending": [[7, {"loss": 0.5}]], "checksums": checksums}
    with ocp.CheckpointManager(folder) as manager:
        args = ocp.args.Composite(state=ocp.args.StandardSave(tree), extra=ocp.args.JsonSave(extra))
        manager.save(7, args=args)


def shapes_of(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


@pytest.mark.parametrize(("is_flat", "is_dense"), [(False, False), (True, False), (True, True)])
def test_older_checkpoints_are_read_as_todays(tmp_path, is_flat, is_dense):
    """Equal in every leaf; a dense run could ask for flat state, too."""
    state = example_of(is_flat, is_dense)
    write(tmp_path / "older", older_layout(state, is_flat))
    with checkpoints.open_manager(tmp_path / "today") as manager:
        checkpoints.save(manager, state, {"pending": [[7, {"loss": 0.5}]]})
    for folder in ("older", "today"):
        restored, extra = checkpoints.restore_newest(tmp_path / folder, shapes_of(state))
        assert jax.tree.structure(restored) == jax.tree.structure(state)
        jax.tree.map(np.testing.assert_array_equal, restored, state)
        assert extra == {"pending": [[7, {"loss": 0.5}]]}
    whole = ema_params_of(restored)
    for ema, mask, held in zip(
        *map(jax.tree.leaves, (whole, state.masks, state.ema_params)), strict=True
    ):
        assert ema.dtype == np.float32
        if is_flat and mask.ndim:
            np.testing.assert_array_equal(np.asarray(ema)[np.asarray(mask)], held)
            assert (np.asarray(ema)[~np.asarray(mask)] == 0).all()
        else:
            np.testing.assert_array_equal(ema, held)


def only_kernels(masks):
    """Masks as older versions made them: biases and scales of channels were dense."""
    return jax.tree.map(lambda mask: mask if mask.ndim > 1 else jnp.array(True), masks)


def complete(params, masks):
    whole = channels.complete(GROUPS, masks, params)
    return (params, masks) if whole is masks else (apply_masks(params, whole), whole)


@pytest.mark.parametrize("is_flat", [False, True])
def test_a_state_whose_channels_had_dense_biases_loses_those_of_absent_ones(is_flat):
    """Params and EMA are zero there and moments fresh; all else is as it was."""
    params, optimizer = random_like(init(jax.random.key(0)), 0), sparse_updates(optax.adagrad(0.1))
    method = get_method("static", structure.channel(GROUPS, init))
    draw = jax.jit(lambda seed: method.init(jax.random.key(seed), params, {"a": 0.5, "b": 0.5}))
    masks, before = draw(1), draw(2)
    older = only_kernels(masks)
    counts = static_counts(older) if is_flat else None
    state = jax.jit(lambda masks: state_from(params, masks, optimizer, counts))(older)
    sums = jax.tree.map(jnp.abs, random_like(state.opt_state[0].sum_of_squares, 1))
    state = state._replace(
        opt_state=(state.opt_state[0]._replace(sum_of_squares=sums), *state.opt_state[1:]),
        ema_params=random_like(state.ema_params, 2),
        ever_active=jax.tree.map(jnp.bitwise_or, *map(pack_bits, (older, only_kernels(before)))),
    )
    state = jax.device_get(state)
    got = complete_state(state, complete, optimizer)
    jax.tree.map(np.testing.assert_array_equal, got.masks, masks)
    jax.tree.map(np.testing.assert_array_equal, got.params, apply_masks(params, masks))
    ever = unpack_bits(got.ever_active, params)["a"]["bias"]
    np.testing.assert_array_equal(ever, masks["a"]["bias"] | before["a"]["bias"])
    np.testing.assert_array_equal(
        got.ever_active["inner"]["kernel"], state.ever_active["inner"]["kernel"]
    )
    bias = np.asarray(masks["a"]["bias"])
    assert bias.sum() == 4
    was = (state.opt_state[0].sum_of_squares, state.ema_params)
    now = (got.opt_state[0].sum_of_squares, got.ema_params)
    for fresh, old, new in zip((np.float32(0.1), 0), was, now, strict=True):
        expected = old["a"]["bias"][bias] if is_flat else np.where(bias, old["a"]["bias"], fresh)
        np.testing.assert_array_equal(new["a"]["bias"], expected)
        np.testing.assert_array_equal(new["out"]["bias"], old["out"]["bias"])
    if is_flat:
        assert got.indices["a"]["bias"].tolist() == np.flatnonzero(bias).tolist()
        jax.tree.map(np.testing.assert_array_equal, got.indices, active_indices(masks))
        assert (ema_params_of(got)["a"]["bias"][~bias] == 0).all()
    assert complete_state(got, complete, optimizer) is got


@pytest.mark.slow
def test_older_runs_and_sparse_files_with_channels_are_read_as_todays(tmp_path):
    config = resolve(tiny_config(**{"sparsity.structure": "channel", "sparsity.level": 0.5}))
    model = build_model(config)
    plan, optimizer = build_plan(config, model), build_optimizer(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)
    draw = jax.jit(lambda key: plan.method.init(key, shapes, plan.sparsities))
    masks = jax.device_get(draw(jax.random.key(1)))
    older = only_kernels(masks)
    state = jax.jit(functools.partial(state_from, optimizer=optimizer))(params, older)
    runs.save_config(tmp_path / "run", config)
    with checkpoints.open_manager(tmp_path / "run" / "checkpoints") as manager:
        checkpoints.save(manager, state, {"pending": []})
    file = tmp_path / "model.safetensors"
    save_sparse(file, jax.device_get(state.params), older, {"config": to_json(config)})
    expected = jax.tree.map(lambda param, mask: np.where(mask, param, 0), params, masks)
    assert any(mask.ndim == 1 and not mask.all() for mask in jax.tree.leaves(masks))
    for _, ours, our_masks in (load_run(tmp_path / "run"), load_sparse_run(file)):
        jax.tree.map(np.testing.assert_array_equal, (ours, our_masks), (expected, masks))
