"""Runs of compact networks are those of masked ones: equal masks, the same numbers."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from sparsejax.training import loop
from sparsejax.training.metrics_log import read_metrics
from sparsejax.training.runs import load_state
from tests.families.test_strokes import tiny, write_scribbles
from tests.training.tiny import tiny_config, tiny_flags, with_devices

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEAD = tiny_config().model.num_head_channels
# Five updates, the last one before step 60; clipped gradients of two microbatches.
RUN = {
    "steps": 60,
    "sparsity.level": 0.5,
    "sparsity.update_interval": 10,
    "sparsity.end": 55,
    "sparsity.drop_fraction": 0.4,
    "sparsity.drop_schedule": "constant",
    "checkpoint.every": 30,
    "optimizer.schedule": "constant",  # so that a run of half the steps is half of it
    "optimizer.accumulate": 2,
    "optimizer.clip_norm": 0.5,
    "log.every": 10,
    "sample.every": 0,
}
SHORT = {"steps": 30, "optimizer.accumulate": 1}
BLOCKS = {"sparsity.structure": "block", "sparsity.block_size": (8, 16)}
CHANNELS = {"sparsity.structure": "channel"}
SMALL = {"model.num_res_blocks": 1}
CONFIGS = {
    "blocks": lambda source: tiny_config(**(RUN | BLOCKS | SMALL)),
    "channels": lambda source: tiny_config(**(RUN | CHANNELS | SMALL)),
    "gru": lambda source: tiny(source, **(RUN | CHANNELS)),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("scribbles") / "scribbles.npz"
    write_scribbles(path)
    return path


def trained(config, workdir, **changes):
    """The state at the end of a run, and its metrics."""
    config.update_from_flattened_dict(changes)
    assert loop.train(config, workdir)
    return load_state(workdir)[1], read_metrics(workdir / "metrics.jsonl")


def without_key_bias(tree):
    """No softmax depends on its key bias: the gradient is rounding noise, which Adam scales up."""

    def leaf(path, x):
        is_bias = jax.tree_util.keystr(path, simple=True, separator="/").endswith("qkv/bias")
        return np.asarray(x).reshape(-1, 3, HEAD)[:, (0, 2)] if is_bias else x

    return jax.tree_util.tree_map_with_path(leaf, tree)


def deviations(one, other):
    """Absolute differences of two trees where they aren't zero; without biases that are noise."""
    pairs = zip(*(jax.tree.leaves(without_key_bias(tree)) for tree in (one, other)), strict=True)
    pairs = [(np.ravel(a).astype(float), np.ravel(b).astype(float)) for a, b in pairs]
    return np.concatenate([np.abs(a - b)[(a != 0) | (b != 0)] for a, b in pairs])


def assert_same_run(one, other):
    """Equal masks; equal numbers, as far as float32 determines them.

    Adam divides gradients by the root of their second moment. Where the first gradients of a new
    weight are smaller than their rounding errors, it thus moves by up to the learning rate, up or
    down. Begun with weights an ulp away, the masked run differs in EMA and params by 5e-8 to 4e-7
    (root mean square), but by 1.4e-5 to 9.6e-5 in the one weight that differs most. So one weight
    in 10,000 may differ by more than 1e-5.
    """
    (state, metrics), (other_state, other_metrics) = one, other
    for name in ("masks", "ever_active"):
        trees = getattr(state, name), getattr(other_state, name)
        jax.tree.map(np.testing.assert_array_equal, *trees)
    for name in ("ema_params", "params"):
        found = deviations(getattr(state, name), getattr(other_state, name))
        assert np.quantile(found, 0.9999) <= 1e-5, name
        assert np.sqrt(np.mean(found**2)) <= 1e-6, name
        assert found.max() <= 1e-4, name
    assert deviations(state.opt_state, other_state.opt_state).max() <= 1e-6
    assert len(metrics) == len(other_metrics)
    for line, other_line in zip(metrics, other_metrics, strict=True):
        for key in line.keys() & {"step", "loss", "drop_fraction", "replaced", "ever_active"}:
            np.testing.assert_allclose(line[key], other_line[key], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rigl", "magran"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_compact_run_is_the_masked_one_and_resumes_as_either(
    kind, method, source, tmp_path, caplog
):
    def run(workdir, **changes):
        changes = {"sparsity.method": method} | changes
        return trained(CONFIGS[kind](source), tmp_path / workdir, **changes)

    masked = run("masked", **{"sparsity.compact": False})
    assert sum(line.get("replaced", 0) > 0 for line in masked[1]) >= 3
    with caplog.at_level("INFO", logger="sparsejax"):
        assert_same_run(run("compact"), masked)
    assert "layers are trained without their inactive parts" in caplog.text
    if method == "magran":
        return
    # Begun one way, finished the other.
    for first, then in ((True, False), (False, True)):
        name = f"begun {'compact' if first else 'masked'}"
        run(name, steps=30, **{"sparsity.compact": first})
        assert_same_run(run(name, **{"sparsity.compact": then}), masked)


@pytest.mark.slow
def test_four_devices_train_a_compact_network_as_one(tmp_path):
    changes = RUN | BLOCKS | SHORT | {"sparsity.block_size": "8x16"}
    one = trained(tiny_config(**(RUN | BLOCKS | SHORT)), tmp_path / "one")
    command = [sys.executable, "train.py", f"--workdir={tmp_path / 'four'}", *tiny_flags(**changes)]
    environment = os.environ | {"XLA_FLAGS": with_devices(4)}
    assert subprocess.run(command, cwd=ROOT, env=environment).returncode == 0
    assert_same_run((load_state(tmp_path / "four")[1], []), (one[0], []))


@pytest.mark.slow
def test_topology_updates_compile_nothing_after_the_second(tmp_path, caplog):
    config = tiny_config(**(RUN | BLOCKS))
    with jax.log_compiles(), caplog.at_level("WARNING", logger="jax"):
        assert loop.train(config, tmp_path)
    messages = [record.getMessage() for record in caplog.records]
    compiled = [message for message in messages if "Finished XLA compilation" in message]
    # What pmap runs: the copies to all devices, the train step, the topology update.
    assert sum("jit(_fun)" in message for message in compiled) == 3
