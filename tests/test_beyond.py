"""Transformers, labels, other objectives and pruning, with all that is done with a run.

A run is stopped halfway and resumed; exported, as published weights and as a sparse file, which are
read back; evaluated; and a sweep trains and measures the same on two devices. In five cases each
choice meets each of these. Slow tests have 20 cases in which each two choices meet, and all 240.
"""

import itertools
import json

import jax
import numpy as np
import pytest

from sparsejax.commands import export, sample
from sparsejax.evaluation.closing import close_run
from sparsejax.evaluation.comparison import evaluate_runs
from sparsejax.evaluation.evaluate import evaluate_run, meter_of
from sparsejax.evaluation.grids import Run
from sparsejax.evaluation.sweep import sweep
from sparsejax.models.published import load_unet
from sparsejax.models.published_dit import load_dit
from sparsejax.training import load_run, loop
from sparsejax.training.runs import load_state, read_config
from sparsejax.training.trained import load
from tests.models.test_convert import assert_same_trees
from tests.training.tiny import tiny_config, with_devices

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
CHOICES = (tuple(NETWORKS), tuple(PROCESSES), (False, True), METHODS, tuple(STRUCTURES))


def combine(count, every):
    """Return cases: each choice's value changes with every so many cases."""
    both = list(zip(CHOICES, every, strict=True))
    return [tuple(values[i // n % len(values)] for values, n in both) for i in range(count)]


EACH = combine(5, (1, 1, 2, 1, 1))
PAIRWISE = combine(20, (3, 1, 4, 1, 1))
EVALUATION = {"count": 20, "metrics": ["fd"]}
ACCURACY = "accuracy[classifier:digits]@20"


def config_of(network, process, labelled, method, structure):
    run = {"task.kind": network, "steps": 8, "checkpoint.every": 4, "sparsity.method": method}
    run |= {"sparsity.level": 0.5, "sparsity.update_interval": 2, "sparsity.begin": 2}
    run |= {"log.every": 4, "optimizer.warmup_steps": 1, "task.split": "train[:200]"}
    run |= {"optimizer.schedule": "constant", "sparsity.end": 7, "sample.steps": 3}
    config = tiny_config(**run | PROCESSES[process] | STRUCTURES[structure])
    with config.unlocked():
        config.model = NETWORKS[network] | {"dtype": "float32"}
        if labelled:
            config.model.classes = 10
            config.sample.guidance = 2.0
    return config


def train(case, workdir):
    """Train a run, stopped halfway and resumed."""
    config = config_of(*case)
    half = config.copy_and_resolve_references()
    half.steps = 4
    assert loop.train(half, workdir)
    assert loop.train(config, workdir)
    _, _, masks = load_run(workdir)
    state = load_state(workdir)[1]
    assert int(state.step) == 8
    jax.tree.map(np.testing.assert_array_equal, state.masks, masks)


def check_exports(case, workdir, folder):
    """Export a run, as published weights and as a sparse file, and read both back."""
    model, params, _ = load_run(workdir)
    export.main(["--workdir", str(workdir), "--output", str(folder)])
    file, read = {"unet": ("unet", load_unet), "dit": ("dit", load_dit)}[case[0]]
    assert_same_trees(read(folder / f"{file}.safetensors", model=model.network), params)
    export.main(["--workdir", str(workdir), "--output", str(folder), "--sparse"])
    assert_same_trees(load(folder / "model.safetensors").params, params)


def check_evaluation(case, workdir):
    row = evaluate_run(workdir, meter_of(read_config(workdir), **EVALUATION), batch=10)
    assert (ACCURACY in row["measures"]) == case[2]
    assert len(row.get("by_label", {})) == 20 * case[2]  # accuracy and distance of ten labels
    assert not any("of label" in name for name in row["measures"])
    if case[2]:
        less = load(workdir, guidance_interval=(0.0, 0.5)).model.passes_per_sample
        assert less < load(workdir).model.passes_per_sample


def check_sweep(case, workdir, folder, monkeypatch):
    """Train and measure the same as in a workdir by a sweep, on two devices."""
    monkeypatch.setenv("XLA_FLAGS", with_devices(2))
    run = Run("two", case[3], 0.5, config_of(*case))
    assert sweep([run], folder / "swept", folder, batch=10, **EVALUATION) == {}
    (line,) = (folder / "swept" / "results.jsonl").read_text().splitlines()
    assert (ACCURACY in json.loads(line)["measures"]) == case[2]
    one, two = (load_state(path)[1] for path in (workdir, folder / "two"))
    jax.tree.map(np.testing.assert_array_equal, one.masks, two.masks)
    for state in (one, two):
        # Weights of slow frequencies have equal gradients: RigL chooses among them by rounding.
        state.params.pop("t_embedder", None)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), one.params, two.params)


@pytest.mark.slow
def test_runs_with_and_without_labels_are_compared_in_any_order(tmp_path):
    for name, labelled in (("plain", False), ("labelled", True)):
        assert loop.train(config_of("unet", "flow", labelled, "static", "weight"), tmp_path / name)
    found = [
        evaluate_runs([tmp_path / name for name in names], tmp_path / "out", **EVALUATION)
        for names in (("plain", "labelled"), ("labelled", "plain"))
    ]
    (plain, labelled), (labelled_first, plain_last) = found
    assert labelled["measures"] == labelled_first["measures"]
    assert labelled["by_label"] == labelled_first["by_label"]
    assert "intra FD[classifier:digits]@20" in labelled["measures"]
    assert plain["measures"] == plain_last["measures"]


@pytest.mark.parametrize(("count", "cases"), [(1, EACH), (2, PAIRWISE)])
def test_choices_meet(count, cases):
    for places in itertools.combinations(range(len(CHOICES)), count):
        expected = set(itertools.product(*(CHOICES[place] for place in places)))
        assert {tuple(case[place] for place in places) for case in cases} == expected


def name_of(case):
    return "-".join(map(str, case))


@pytest.mark.parametrize("case", EACH, ids=name_of)
def test_all_is_done_with_each_choice(case, tmp_path, monkeypatch):
    train(case, tmp_path / "run")
    check_exports(case, tmp_path / "run", tmp_path / "out")
    check_evaluation(case, tmp_path / "run")
    check_sweep(case, tmp_path / "run", tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("case", list(itertools.product(*CHOICES)), ids=name_of)
def test_all_choices_go_together(case, tmp_path):
    train(case, tmp_path / "run")
    check_exports(case, tmp_path / "run", tmp_path / "out")
    check_evaluation(case, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("case", PAIRWISE, ids=name_of)
def test_runs_are_closed_and_sampled_and_two_devices_train_as_one(case, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    train(case, workdir)
    check_exports(case, workdir, tmp_path / "out")
    close_run(workdir)
    assert json.loads((workdir / "summary.json").read_text())["steps"] == 8
    drawn = load(tmp_path / "out" / "model.safetensors").sample(jax.random.key(0), 4)
    np.testing.assert_allclose(load(workdir).sample(jax.random.key(0), 4), drawn, atol=1e-5)
    flags = ["--run", str(workdir), "--count", "4", "--output", str(tmp_path / "samples")]
    sample.main([*flags, *(["--label", "3", "--guidance", "1"] if case[2] else [])])

    check_sweep(case, workdir, tmp_path, monkeypatch)
