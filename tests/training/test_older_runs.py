"""Runs that older versions began go on: free blocks as such, channels without absent biases."""

import json

import jax
import numpy as np
import pytest

from sparsejax.sparsity.blocks import block_of
from sparsejax.sparsity.masks import pack_bits, unpack_bits
from sparsejax.training import checkpoints, loop
from sparsejax.training.metrics_log import read_metrics
from sparsejax.training.runs import load_state
from tests.families.test_strokes import tiny, write_scribbles
from tests.training.tiny import forget_copies, tiny_config

SIZE = 16
RUN = {
    "steps": 6,
    "sparsity.level": 0.5,
    "sparsity.update_interval": 2,
    "sparsity.end": 6,
    "sparsity.drop_fraction": 0.5,
    "sparsity.drop_schedule": "constant",
    "checkpoint.every": 3,
    "optimizer.schedule": "constant",
    "log.every": 1,
    "sample.every": 0,
}
BLOCKS = {"sparsity.structure": "block", "sparsity.block_size": SIZE, "model.num_res_blocks": 1}


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def fan_ins(masks):
    """Of each layer with blocks, how many input blocks its output blocks have."""
    found = []
    for mask in map(np.asarray, jax.tree.leaves(masks)):
        if mask.ndim and block_of(mask.shape, SIZE):
            grid = mask.reshape(-1, *mask.shape[-2:])[0, ::SIZE, ::SIZE]
            assert (np.kron(grid, np.ones((SIZE, SIZE), bool)) == mask).all()
            found.append(set(grid.sum(0).tolist()))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("method", ["static", "rigl"])
def test_a_run_of_free_blocks_of_an_older_version_goes_on_with_free_blocks(
    method, tmp_path, caplog
):
    """As the uninterrupted run of today that asks for free blocks; Static-DM compact."""

    def train(workdir, **changes):
        changes = RUN | BLOCKS | {"sparsity.method": method} | changes
        assert loop.train(tiny_config(**changes), tmp_path / workdir)
        return load_state(tmp_path / workdir)[1]

    expected = train("free", **{"sparsity.fan_in": False})
    begun = train("older", **{"sparsity.fan_in": False, "steps": 3})
    forget_copies(tmp_path / "older")
    path = tmp_path / "older" / "config.json"
    saved = json.loads(path.read_text())
    assert saved["sparsity"].pop("fan_in") is False
    saved["sparsity"]["compiled"] = saved["sparsity"].pop("compact")
    path.write_text(json.dumps(saved))
    caplog.clear()
    with caplog.at_level("INFO", logger="sparsejax"):
        state = train("older")  # a config of today, which would have constant fan-in
    assert ("layers are trained without their inactive parts" in caplog.text) == (
        method == "static"
    )
    assert int(state.step) == 6
    assert any(len(counts) > 1 for counts in fan_ins(state.masks))
    assert_equal(state, expected)
    pairs = zip(*map(jax.tree.leaves, (state.masks, begun.masks)), strict=True)
    assert any((a != b).any() for a, b in pairs) == (method == "rigl")


def only_kernels(masks):
    return jax.tree.map(lambda mask: mask if mask.ndim > 1 else np.array(True), masks)


@pytest.mark.slow
def test_a_run_of_channels_whose_absent_biases_were_dense_goes_on_without_them(tmp_path, caplog):
    """Whatever they were: as if it had been zero and fresh, compact and with updates."""
    write_scribbles(tmp_path / "scribbles.npz")
    changes = RUN | {"sparsity.structure": "channel", "sparsity.method": "rigl"}

    def train(workdir, **more):
        assert loop.train(tiny(tmp_path / "scribbles.npz", **changes | more), tmp_path / workdir)
        return load_state(tmp_path / workdir)[1]

    state = train("today", steps=3)
    train("older", steps=3)

    def age(tree):
        """Biases as they stood there: dense, those of absent channels not zero."""
        return jax.tree.map(
            lambda x, mask: np.where(mask, x, 7).astype(x.dtype) if x.ndim == 1 else x,
            *(tree, state.masks),
        )

    def has_moments(node):
        return hasattr(node, "mu")

    older = state._replace(
        params=age(state.params),
        ema_params=age(state.ema_params),
        opt_state=jax.tree.map(
            lambda node: (
                node._replace(mu=age(node.mu), nu=age(node.nu)) if has_moments(node) else node
            ),
            state.opt_state,
            is_leaf=has_moments,
        ),
        masks=only_kernels(state.masks),
        ever_active=pack_bits(only_kernels(unpack_bits(state.ever_active, state.params))),
    )
    assert any(mask.ndim == 1 and not mask.all() for mask in jax.tree.leaves(state.masks))
    folder = tmp_path / "older" / "checkpoints"
    extra = checkpoints.read_extra(folder, 3)
    with checkpoints.open_manager(folder) as manager:
        manager.delete(3)
        checkpoints.save(manager, older, extra)
    caplog.clear()
    with caplog.at_level("INFO", logger="sparsejax"):
        got = train("older")
    assert "layers are trained without their inactive parts" in caplog.text
    assert_equal(got, train("today"))
    updates = [
        line for line in read_metrics(tmp_path / "older" / "metrics.jsonl") if "replaced" in line
    ]
    assert [line["step"] for line in updates] == [2, 4]
    assert updates[1]["replaced"] > 0
    for tree in (got.params, got.ema_params):
        for x, mask in zip(*map(jax.tree.leaves, (tree, got.masks)), strict=True):
            assert (np.asarray(x)[~np.broadcast_to(mask, x.shape)] == 0).all()
