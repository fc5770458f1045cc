"""`train --check`: what a run would be, and whatever is wrong with it, without a step."""

import jax
import pytest

from sparsejax.__main__ import run
from sparsejax.errors import ConfigError
from sparsejax.sparsity.masks import summarize
from sparsejax.training import load_run, loop
from sparsejax.training.check import check
from sparsejax.training.metrics_log import read_metrics
from sparsejax.training.runs import load_state
from tests.training.tiny import tiny_config, tiny_flags


def test_what_is_found_is_what_the_run_has(tiny_run, tmp_path):
    found = check(tiny_config(), tmp_path / "run")
    _, state = load_state(tiny_run[0])
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state._replace(step=())))
    assert sum(found.state_bytes.values()) == nbytes
    summary = summarize(*load_run(tiny_run[0])[1:])
    assert found.counts.total == summary.total
    for layer in found.layers:
        assert layer.actual == pytest.approx(1 - summary.layers[layer.name].density)
        assert layer.requested == pytest.approx(layer.actual, abs=1 / layer.weights)
    assert sum(layer.requested * layer.weights for layer in found.layers) == pytest.approx(
        0.75 * summary.sparsifiable.weights, rel=1e-3
    )
    lines = read_metrics(tiny_run[0] / "metrics.jsonl")
    assert found.updates == len([line for line in lines if "replaced" in line])
    assert found.data == ("digits", {"train": 1797})
    assert (found.done, found.batch_per_device) == (0, 8 // jax.device_count())
    assert list(tmp_path.iterdir()) == []


def test_static_blocks_train_the_state_of_the_compact_network(tmp_path):
    changes = {"sparsity.method": "static", "sparsity.structure": "block"}
    changes |= {"sparsity.block_size": 8, "model.num_res_blocks": 1}
    found = check(tiny_config(**changes), tmp_path)
    active, weights = found.counts.total.active, found.counts.total.weights
    assert 4 * active <= found.state_bytes["params"] < 4 * (active + 0.1 * weights)
    assert found.updates == 0


@pytest.mark.usefixtures("own_logging")
def test_the_tables_name_it_all_and_the_workdir_stays_as_it_is(tiny_run, capsys):
    def files():
        paths = [path for path in tiny_run[0].rglob("*") if path.is_file()]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}

    before = files()
    run("train", ["--check", f"--workdir={tiny_run[0]}", *tiny_flags()])
    printed = capsys.readouterr().out
    for text in (
        "rigl, S = 0.75",
        "0.75 requested, 0.7",
        "digits: 1,797 of train",
        "40, 40 of them done",
        "1 x cpu",
    ):
        assert text in printed
    assert "│ input_blocks_1_0/in_layers_2/kernel " in printed
    assert printed.endswith("Nothing was trained or written to its folder.\n")
    assert files() == before


@pytest.mark.usefixtures("own_logging")
def test_masks_of_a_method_that_prunes_are_those_of_the_beginning(tmp_path, capsys):
    flags = tiny_flags(**{"sparsity.method": "gradual", "sparsity.level": 0.5})
    run("train", ["--check", f"--workdir={tmp_path / 'run'}", *flags])
    printed = capsys.readouterr().out
    assert "0.5 requested, 0.0000 at first" in printed
    assert "of them active at first" in printed
    assert "S at first" in printed
    assert "actual" not in printed


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 0},
        {"batch_size": 4000},
        {"sparsity.custom": (("nothing", 0.5),)},
        {"sparsity.structure": "block", "sparsity.block_size": 31},
        {"task.split": "nowhere"},
        {"task.reference_split": "nowhere"},
        {"model.in_channels": 3, "model.out_channels": 3},
        {"sample.steps": 1001},
        {"checkpoint.init_from": "nowhere"},
        {"steps": 30},
        {"seed": 1},
    ],
    ids=str,
)
def test_errors_are_those_of_a_run(changes, tiny_run, tmp_path):
    workdir = tiny_run[0] if {"steps", "seed"} & set(changes) else tmp_path / "run"
    said = []
    for start in (check, loop.train):
        with pytest.raises(ConfigError) as error:
            start(tiny_config(**changes), workdir)
        said.append(str(error.value))
    assert said[0] == said[1]
    assert list(tmp_path.iterdir()) == []
