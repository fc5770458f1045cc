"""Transformers, labels, other objectives and pruning, with all that is done with a run.

Each case trains a tiny run, stopped halfway and resumed; exports it, as published weights and as
a sparse file, which are read back; and evaluates it. The suite has one case; the product, which
closes and samples each run as well, is slow.
"""

import itertools
import json

import jax
import numpy as np
import pytest

from sparsejax.commands import export, sample
from sparsejax.evaluation.closing import close_run
from sparsejax.evaluation.evaluate import evaluate_run, meter_of
from sparsejax.models.published import load_unet
from sparsejax.models.published_dit import load_dit
from sparsejax.training import load_run, loop
from sparsejax.training.runs import load_state, read_config
from sparsejax.training.trained import load
from tests.models.test_convert import assert_same_trees
from tests.training.tiny import tiny_config

DIT = {"in_channels": 1, "hidden_size": 16, "depth": 1, "num_heads": 2, "freq_shift": 1}
UNET = {"in_channels": 1, "out_channels": 1, "model_channels": 8, "num_res_blocks": 1}
UNET |= {"attention_resolutions": (), "channel_mult": (1,), "norm_groups": 4}
UNET |= {"num_head_channels": 8}
NETWORKS = {"unet": UNET, "dit": DIT}
PROCESSES = {
    "eps": {},
    "v": {"diffusion.predicts": "v", "sample.sampler": "dpmpp_2m", "sample.spacing": "karras"},
    "flow": {"diffusion.process": "flow", "sample.sampler": "euler"},
    "edm": {"diffusion.process": "edm", "sample.sampler": "heun"},
}
METHODS = ("rigl", "magran", "static", "gradual", "one_shot")
STRUCTURES = {
    "weight": {},
    "block": {"sparsity.structure": "block", "sparsity.block_size": (2, 8)},
    "channel": {"sparsity.structure": "channel"},
}
CASES = list(itertools.product(NETWORKS, PROCESSES, (False, True), METHODS, STRUCTURES))
IN_SUITE = ("dit", "flow", True, "rigl", "channel")


def config_of(network, process, labelled, method, structure):
    run = {"task.kind": network, "steps": 8, "checkpoint.every": 4, "sparsity.method": method}
    run |= {"sparsity.level": 0.5, "sparsity.update_interval": 2, "sample.steps": 3}
    run |= {"log.every": 4, "optimizer.warmup_steps": 1, "task.split": "train[:200]"}
    run |= {"optimizer.schedule": "constant", "sparsity.end": 7}
    config = tiny_config(**run | PROCESSES[process] | STRUCTURES[structure])
    with config.unlocked():
        config.model = NETWORKS[network] | {"dtype": "float32"}
        if labelled:
            config.model.classes = 10
            config.sample.guidance = 2.0
    return config


def check(case, tmp_path, *, closed=True):
    workdir = tmp_path / "run"
    config = config_of(*case)
    half = config.copy_and_resolve_references()
    half.steps = 4
    assert loop.train(half, workdir)
    assert loop.train(config, workdir)
    if closed:
        close_run(workdir)
        assert json.loads((workdir / "summary.json").read_text())["steps"] == 8
    config, (model, params, masks) = read_config(workdir), load_run(workdir)

    export.main(["--workdir", str(workdir), "--output", str(tmp_path / "out")])
    file, read = {"unet": ("unet", load_unet), "dit": ("dit", load_dit)}[case[0]]
    assert_same_trees(read(tmp_path / "out" / f"{file}.safetensors", model=model.network), params)
    export.main(["--workdir", str(workdir), "--output", str(tmp_path / "out"), "--sparse"])
    run = load(tmp_path / "out" / "model.safetensors")
    assert_same_trees(run.params, params)
    if closed:
        drawn = run.sample(jax.random.key(0), 4)
        np.testing.assert_allclose(load(workdir).sample(jax.random.key(0), 4), drawn, atol=1e-5)
        flags = ["--run", str(workdir), "--count", "4", "--output", str(tmp_path / "samples")]
        sample.main([*flags, *(["--label", "3", "--guidance", "1"] if case[2] else [])])

    row = evaluate_run(workdir, meter_of(config, count=20, metrics=["fd"]), batch=10)
    assert ("accuracy[classifier:digits]@20" in row["measures"]) == case[2]
    state = load_state(workdir)[1]
    assert int(state.step) == 8
    jax.tree.map(np.testing.assert_array_equal, state.masks, masks)


def test_a_run_is_resumed_exported_sampled_and_evaluated(tmp_path):
    check(IN_SUITE, tmp_path, closed=False)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(24))
def test_every_choice_goes_with_every_other(part, tmp_path):
    for i, case in enumerate(CASES[part::24]):
        check(case, tmp_path / str(i))
