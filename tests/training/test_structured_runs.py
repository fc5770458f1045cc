"""Runs of blocks and channels: what rows, tables and sparse files say of them is what they have."""

import itertools
import math

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors import safe_open

from sparsejax.__main__ import run
from sparsejax.evaluation.closing import print_summary
from sparsejax.evaluation.costs import measured, run_costs
from sparsejax.sparsity.masks import path_name
from sparsejax.training import load_run, load_sparse_run, save_sparse_run
from sparsejax.training.check import check
from sparsejax.training.plan import build_plan
from sparsejax.training.runs import read_config
from tests.training.tiny import tiny_config, tiny_flags, write_run

CHANGES = {
    "block": {"sparsity.structure": "block", "sparsity.block_size": (4, 16)},
    "channel": {"sparsity.structure": "channel"},
}
LEVEL = 0.77  # which neither whole blocks nor whole channels give


@pytest.fixture(scope="module", params=[pytest.param("block", marks=pytest.mark.slow), "channel"])
def saved(request, tmp_path_factory):
    """A workdir, and the changes of its config."""
    changes = CHANGES[request.param] | {"sparsity.level": LEVEL, "model.num_res_blocks": 1}
    workdir = tmp_path_factory.mktemp(request.param) / "run"
    write_run(workdir, tiny_config(**changes))
    return workdir, changes


def checkpoint_of(workdir):
    """Weights and masks of a checkpoint, read by orbax alone, by name."""
    with ocp.CheckpointManager((workdir / "checkpoints").resolve()) as manager:
        state = manager.restore(0, args=ocp.args.Composite(state=ocp.args.StandardRestore()))
    trees = (state["state"][name] for name in ("ema_params", "masks"))
    return [
        {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in trees
    ]


@pytest.mark.usefixtures("own_logging")
def test_rows_tables_and_checks_say_what_sparsity_was_requested_and_what_masks_have(saved, capsys):
    """Against the masks in the checkpoint, counted by numpy."""
    workdir, changes = saved
    weights, masks = checkpoint_of(workdir)
    kernels = [name for name, x in weights.items() if x.ndim > 1]
    active = {
        name: int(np.broadcast_to(masks[name], weights[name].shape).sum()) for name in kernels
    }
    actual = 1 - sum(active.values()) / sum(weights[name].size for name in kernels)
    assert abs(actual - LEVEL) > 1e-4

    config, (model, *trees) = read_config(workdir), load_run(workdir)
    row = run_costs(config, model, build_plan(config, model), *trees)
    assert row["sparsity"] == LEVEL
    assert row["actual_sparsity"] == pytest.approx(actual, abs=1e-12)
    print_summary(row | measured([]) | {"sampling_seconds": 1.0}, workdir)
    line = next(x for x in capsys.readouterr().out.splitlines() if "requested" in x)
    assert f"actual S, of {LEVEL} requested" in line
    assert f" {actual:.4f} " in line

    found = check(tiny_config(**changes), workdir)
    assert 1 - found.counts.sparsifiable.density == pytest.approx(actual, abs=1e-12)
    assert {layer.name: layer.actual for layer in found.layers} == pytest.approx(
        {name: 1 - active[name] / weights[name].size for name in kernels}, abs=1e-12
    )
    flags = [flag.replace("(4, 16)", "4x16") for flag in tiny_flags(**changes)]
    run("train", ["--check", f"--workdir={workdir}", *flags])
    assert f"{LEVEL} requested, {actual:.4f} actual" in capsys.readouterr().out


@pytest.mark.parametrize("ema", [True, False])
def test_a_sparse_file_gives_back_every_bit_and_has_one_for_each_block(saved, ema, tmp_path):
    workdir, _ = saved
    file = tmp_path / "model.safetensors"
    save_sparse_run(workdir, file, ema=ema)
    _, *expected = load_run(workdir, ema=ema)
    _, *got = load_sparse_run(file)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for ours, theirs in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert ours.tobytes() == np.asarray(theirs).tobytes()

    _, masks = checkpoint_of(workdir)
    has_blocks = read_config(workdir).sparsity.structure == "block"
    with safe_open(file, framework="numpy") as opened:
        sizes = {
            name: opened.get_slice(f"mask/{name}").get_shape()
            for name, m in masks.items()
            if m.ndim
        }
        for name, mask in masks.items():
            if not mask.ndim:
                continue
            inputs, outputs = mask.shape[-2:] if mask.ndim > 1 else (1, 1)
            if has_blocks and inputs % 4 == 0 and outputs % 16 == 0:
                grid = [
                    mask[..., i, j].all()
                    for i, j in itertools.product(range(0, inputs, 4), range(0, outputs, 16))
                ]
                bits = np.unpackbits(opened.get_tensor(f"mask/{name}"), count=len(grid))
                np.testing.assert_array_equal(bits, grid)
                assert sizes[name] == [math.ceil(len(grid) / 8)]
            else:
                assert sizes[name] == [math.ceil(mask.size / 8)]
