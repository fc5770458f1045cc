"""Checkpoints from before the state had `indices` can be read, whole and flat ones."""

import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from sparsejax.sparsity.flat import static_counts
from sparsejax.sparsity.transforms import sparse_updates
from sparsejax.training import checkpoints
from sparsejax.training.state import ema_params_of, state_from
from tests.sparsity.strategies import random_like, random_tree

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
