"""Which runs a grid holds, and how small its dense baselines are."""

import jax
import numpy as np
import pytest

from configs import digits, vmnist_chirodiff
from sparsejax.configuration import resolve
from sparsejax.errors import ConfigError
from sparsejax.evaluation.baselines import planned_costs, small_dense
from sparsejax.evaluation.closing import run_costs
from sparsejax.evaluation.grids import grid
from sparsejax.families import build_model
from sparsejax.training.keys import run_keys
from sparsejax.training.optimizers import build_optimizer
from sparsejax.training.plan import build_plan
from sparsejax.training.state import create_state
from tests.training.tiny import tiny_config


def names(**axes):
    return [run.name for run in grid(tiny_config(), **axes)]


def test_a_grid_is_the_product_of_its_axes_without_repetitions():
    """What a method ignores makes no second run: 1 dense, 2 static, 8 rigl, 4 gradual per seed."""
    runs = grid(
        tiny_config(),
        methods=["dense", "static", "rigl", "gradual"],
        levels=[0.5, 0.9],
        drop_fractions=[0.5, 0.05],
        update_intervals=[5, 10],
        seeds=[3, 4],
    )
    assert len(runs) == len({run.name for run in runs}) == 30
    assert [run.config.seed for run in runs] == [3] * 15 + [4] * 15
    seen = {
        (run.method, run.level, s.drop_fraction, s.update_interval, run.config.seed)
        for run in runs
        for s in [run.config.sparsity]
        if run.method == "rigl"
    }
    assert len(seen) == 16
    assert all(
        run.config.sparsity.level == run.level and run.config.sparsity.method == run.method
        for run in runs
        if run.method != "dense"
    )


def test_the_same_run_has_the_same_name_in_every_grid():
    alone = names(methods=["rigl"], levels=[0.9], drop_fractions=[0.05], seeds=[1])
    assert alone == ["tiny-rigl-0.9-p0.05-dT5-1"]
    assert alone[0] in names(
        methods=["magran", "rigl"], levels=[0.5, 0.9], drop_fractions=[0.5, 0.05], seeds=[0, 1]
    )
    assert names(methods=["dense", "static"], levels=[0.9]) == ["tiny-dense-0", "tiny-static-0.9-0"]


@pytest.fixture
def no_narrowing(monkeypatch):
    """Small dense models as wide as the others, which spares their search."""

    def small_dense(config, match):
        assert config.sparsity.structure == "weight"
        return config

    monkeypatch.setattr("sparsejax.evaluation.grids.small_dense", small_dense)


@pytest.mark.usefixtures("no_narrowing")
def test_structures_are_an_axis_of_the_sparse_methods_alone():
    config = tiny_config(**{"sparsity.block_size": 8})
    axes = {"methods": ["dense", "small_dense", "static", "rigl"], "levels": [0.5]}
    runs = grid(config, **axes, structures=["weight", "block", "channel"])
    found = {run.name: run.config.sparsity.structure for run in runs}
    assert found == {
        "tiny-dense-0": "weight",
        "tiny-small_dense-0.5-0": "weight",
        "tiny-static-0.5-0": "weight",
        "tiny-static-block8-0.5-0": "block",
        "tiny-static-channel-0.5-0": "channel",
        "tiny-rigl-0.5-p0.5-dT5-0": "weight",
        "tiny-rigl-block8-0.5-p0.5-dT5-0": "block",
        "tiny-rigl-channel-0.5-p0.5-dT5-0": "channel",
    }
    assert [run.config.sparsity.block_size for run in runs if "block" in run.name] == [8, 8]


@pytest.mark.usefixtures("no_narrowing")
def test_runs_of_one_name_have_one_config_whatever_the_grids_own_structure():
    """So that grids of several structures and block sizes can share their results."""
    axes = {"methods": ["dense", "small_dense", "static"], "levels": [0.5]}
    grids = [
        grid(tiny_config(**changes), **axes, structures=structures)
        for changes, structures in (
            ({}, ()),
            ({"sparsity.block_size": 8}, ("block", "weight")),
            ({"sparsity.structure": "channel", "sparsity.block_size": 16}, ("weight", "block")),
        )
    ]
    (first, *others) = ({run.name: run.config.to_dict() for run in runs} for runs in grids)
    assert list(first) == ["tiny-dense-0", "tiny-small_dense-0.5-0", "tiny-static-0.5-0"]
    for other in others:
        assert {name: other[name] for name in first} == first
        assert len(other) == 4


def test_the_structure_is_the_configs_own_where_none_is_given():
    config = tiny_config(**{"sparsity.structure": "block", "sparsity.block_size": 16})
    runs = grid(config, methods=["dense", "static"], levels=[0.5])
    assert [run.name for run in runs] == ["tiny-dense-0", "tiny-static-block16-0.5-0"]
    assert runs[1].config.sparsity.block_size == 16


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"methods": ["rigl"], "levels": [0.5], "structures": ["row"]}, "structure is 'row'; acc"),
        ({"methods": ["prune"], "levels": [0.5]}, "'prune'; accepted: dense, static"),
        ({"methods": ["rigl"], "levels": [1.0]}, "config.sparsity.level is 1.0"),
        ({"methods": ["rigl"], "levels": [0.5], "drop_fractions": [2.0]}, "drop_fraction is 2.0"),
        ({"methods": ["rigl"], "levels": [0.5], "update_intervals": [0]}, "update_interval is 0"),
    ],
)
def test_a_grid_that_cannot_run_is_refused_before_it_begins(axes, message):
    with pytest.raises(ConfigError, match=message):
        grid(tiny_config(), **axes)


def test_planned_costs_are_those_of_the_model_that_is_built():
    config = resolve(tiny_config())
    model = build_model(config)
    plan = build_plan(config, model)
    state = create_state(run_keys(0), model, plan, build_optimizer(config))
    built = run_costs(config, model, plan, state.params, state.masks)
    planned = planned_costs(config)
    assert planned["parameters"] == built["active_parameters"]
    assert planned["flops"] == pytest.approx(built["forward_flops"], rel=1e-6)


@pytest.mark.slow
def test_small_dense_is_the_nearest_width():
    """Against the widths around it that the network accepts."""
    config, match = resolve(digits.get_config("sweep,static,0.75")), "parameters"
    target = planned_costs(config)[match]
    small = resolve(small_dense(config, match))
    assert small.sparsity.method == "dense"
    ours = abs(planned_costs(small)[match] - target)
    assert ours < 0.35 * target
    for width, groups in ((14, 7), (16, 8), (20, 5)):
        other = digits.get_config("sweep,dense")
        other.model.update(model_channels=width, num_head_channels=width, norm_groups=groups)
        assert ours <= abs(planned_costs(resolve(other))[match] - target)


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "narrowest"), [(0, 2), (1, 4)])
def test_small_dense_keeps_two_frequencies_where_they_are_shifted(shift, narrowest):
    """Of one, the time embedding would be nan."""
    narrow = {"model_channels": 8, "num_head_channels": 8, "norm_groups": 2, "norm_eps": 1e-6}
    changes = {f"model.{key}": value for key, value in narrow.items()}
    changes |= {"model.freq_shift": shift, "sparsity.level": 0.98}
    small = resolve(small_dense(resolve(tiny_config(**changes)), "parameters"))
    assert small.model.model_channels == narrowest
    assert (small.model.freq_shift, small.model.norm_eps) == (shift, 1e-6)


@pytest.mark.slow
def test_small_dense_of_strokes_comes_within_half_a_step(tmp_path):
    config = vmnist_chirodiff.get_config("short,static,0.75")
    path = tmp_path / "set.npz"
    rows = np.stack([np.arange(12), np.arange(12) % 3, np.arange(12) % 12 == 11], 1)
    np.savez(
        path,
        points=np.tile(rows, (6, 1)).astype(np.int16),
        offsets=12 * np.arange(7),
        label=np.arange(6),
        split=[0, 0, 0, 0, 1, 1],
    )
    config.task.source = str(path)
    # Width 48 is nearest; costs grow by its square, a step of width is 1/24 of them.
    config = resolve(config)
    target = planned_costs(config)
    for match in ("parameters", "flops"):
        small = resolve(small_dense(config, match))
        assert planned_costs(small)[match] == pytest.approx(target[match], rel=1 / 48)
        jax.eval_shape(build_model(small).init, jax.random.key(0))
