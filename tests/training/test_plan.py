"""Structures from the config: what is refused, what is logged, how runs are called."""

import pytest

from sparsejax.configuration import default_config, resolve, set_sparsity
from sparsejax.errors import ConfigError
from sparsejax.families import build_model
from sparsejax.training.plan import build_plan
from sparsejax.training.runs import default_workdir
from tests.training.tiny import tiny_config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"structure": "tube"}, "config.sparsity.structure is 'tube'; accepted: weight, block"),
        ({"block_size": 0}, "config.sparsity.block_size is 0; accepted: 1 or more"),
        (
            {"structure": "block", "block_size": 7},
            "config.sparsity.block_size is 7; accepted: a size that divides",
        ),
        (
            {"structure": "channel", "custom": (("qkv", 0.5),)},
            r"config.sparsity.custom is \(\('qkv', 0.5\),\); accepted: \(\) with channels",
        ),
    ],
)
def test_structures_that_cannot_work_are_refused(changes, message):
    def build():
        config = resolve(tiny_config(**{f"sparsity.{key}": v for key, v in changes.items()}))
        model = build_model(config)
        build_plan(config, model)

    with pytest.raises(ConfigError, match=message):
        build()


def test_a_network_without_groups_of_channels_is_refused():
    config = resolve(tiny_config(**{"sparsity.structure": "channel"}))
    model = build_model(config)._replace(units=lambda params: {})
    with pytest.raises(ConfigError, match="'channel'; accepted: weight, block"):
        build_plan(config, model)


def test_what_a_structure_leaves_out_is_logged(caplog):
    with caplog.at_level("INFO", logger="sparsejax"):
        config = resolve(tiny_config(**{"sparsity.structure": "block", "sparsity.block_size": 16}))
        build_plan(config, build_model(config)).log()
    assert "2 layers move single weights: channels aren't multiples of 16" in caplog.text
    assert "input_blocks_0_0/kernel" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", logger="sparsejax"):
        config = resolve(tiny_config(**{"sparsity.structure": "channel"}))
        build_plan(config, build_model(config)).log()
    assert "stay dense: they belong to no group of channels" in caplog.text
    assert "ignores sparsity.distribution" in caplog.text


def test_words_choose_a_structure_and_name_its_workdir():
    config = default_config()
    set_sparsity(config, "static,0.9,block32")
    assert (config.sparsity.structure, config.sparsity.block_size) == ("block", 32)
    assert str(default_workdir(config)) == "runs/experiment-static-block32-0.9-0"
    set_sparsity(config, "channel,rigl")
    assert str(default_workdir(config)) == "runs/experiment-rigl-channel-0.9-0"
    config.sparsity.method = "dense"
    assert str(default_workdir(config)) == "runs/experiment-dense-0"
    with pytest.raises(ConfigError, match="block32"):
        set_sparsity(config, "blocks")


@pytest.mark.parametrize(
    ("method", "structure", "compiled", "expected"),
    [
        ("static", "block", True, True),
        ("static", "channel", True, True),
        ("static", "channel", False, False),
        ("static", "weight", True, False),
        ("rigl", "block", True, False),
        ("dense", "block", True, False),
    ],
)
def test_runs_whose_structure_never_changes_are_trained_compact(
    method, structure, compiled, expected
):
    changes = {"method": method, "structure": structure, "compiled": compiled}
    config = resolve(tiny_config(**{f"sparsity.{key}": value for key, value in changes.items()}))
    assert build_plan(config, build_model(config)).trains_compact is expected
