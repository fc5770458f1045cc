"""Structures from the config: what is refused, what is logged, how runs are called."""

import functools
import re

import jax
import pytest

from sparsejax import schema, values
from sparsejax.configuration import default_config, resolve, set_sparsity
from sparsejax.errors import ConfigError
from sparsejax.families import build_model
from sparsejax.sparsity.masks import is_sparsifiable, summarize
from sparsejax.training.block_sizes import check_block_size
from sparsejax.training.plan import build_plan, check_updates
from sparsejax.training.runs import default_workdir
from tests.training.tiny import small_config, tiny_config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"structure": "tube"}, "config.sparsity.structure is 'tube'; accepted: weight, block"),
        ({"block_size": 0}, "config.sparsity.block_size is 0; accepted: 1 to 65536"),
        (
            {"structure": "block", "block_size": 7, "fan_in": False},
            "config.sparsity.block_size is 7; accepted: a size that divides",
        ),
        (
            {"structure": "channel", "custom": (("qkv", 0.5),)},
            r"config.sparsity.custom is \(\('qkv', 0.5\),\); accepted: \(\) with channels",
        ),
        (
            {"distribution": "global_magnitude"},
            "config.sparsity.distribution is 'global_magnitude'; accepted: the others; this one is",
        ),
        (
            {"distribution": "global_magnitude", "method": "gradual", "custom": (("qkv", 0.5),)},
            r"config.sparsity.custom is .* \[custom is .*; accepted: \(\) with global_magnitude\]",
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


def test_only_the_overall_sparsity_is_asked_for_where_magnitudes_are_ranked_together():
    """The layer whose weights are large keeps more of them than the others."""
    changes = {"method": "gradual", "distribution": "global_magnitude", "level": 0.75}
    config = resolve(small_config(**{f"sparsity.{key}": v for key, v in changes.items()}))
    model = build_model(config)
    plan = build_plan(config, model)
    params = jax.jit(model.init)(jax.random.key(0))
    large = "Dense_0"
    params[large] = jax.tree.map(lambda leaf: 10 * leaf, params[large])
    masks = plan.method.init(jax.random.key(0), params, plan.sparsities)
    density = jax.tree.map(lambda s: 1 - s, plan.sparsities)
    update = jax.jit(functools.partial(plan.method.update, density=density, progress=1.0))
    counts = summarize(params, update(jax.random.key(0), params, masks, params, 0.0)[1])
    assert counts.sparsifiable.density == pytest.approx(0.25, abs=1e-3)
    density = {name: layer.density for name, layer in counts.layers.items() if "kernel" in name}
    assert density.pop(f"{large}/kernel") > 2 * max(density.values())
    assert plan.requested == {}


def test_a_network_without_groups_of_channels_is_refused():
    config = resolve(tiny_config(**{"sparsity.structure": "channel"}))
    model = build_model(config)._replace(units=lambda params: {})
    with pytest.raises(ConfigError, match="'channel'; accepted: weight, block"):
        build_plan(config, model)


def test_what_a_structure_leaves_out_is_logged(caplog):
    with caplog.at_level("INFO", logger="sparsejax"):
        changes = {"structure": "block", "block_size": 16, "fan_in": False}
        config = resolve(tiny_config(**{f"sparsity.{key}": v for key, v in changes.items()}))
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
    config.sparsity.fan_in = False  # as no run does by itself
    assert str(default_workdir(config)) == "runs/experiment-static-block32free-0.9-0"
    config.sparsity.fan_in = None
    set_sparsity(config, "block16x64")
    assert config.sparsity.block_size == (16, 64)
    assert str(default_workdir(config)) == "runs/experiment-static-block16x64-0.9-0"
    for word in ("block16x", "blockx64", "block16x64x2"):
        with pytest.raises(ConfigError, match="block16x64"):
            set_sparsity(default_config(), word)
    set_sparsity(config, "channel,rigl")
    assert str(default_workdir(config)) == "runs/experiment-rigl-channel-0.9-0"
    config.sparsity.method = "dense"
    assert str(default_workdir(config)) == "runs/experiment-dense-0"
    with pytest.raises(ConfigError, match="block32"):
        set_sparsity(config, "blocks")


@pytest.mark.parametrize(
    ("method", "structure", "compact", "expected"),
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
    method, structure, compact, expected
):
    changes = {"method": method, "structure": structure, "compact": compact, "fan_in": False}
    config = resolve(tiny_config(**{f"sparsity.{key}": value for key, value in changes.items()}))
    assert build_plan(config, build_model(config)).trains_compact is expected


def plan_of(**changes):
    changes = {"structure": "block", "distribution": "uniform"} | changes
    config = resolve(tiny_config(**{f"sparsity.{key}": value for key, value in changes.items()}))
    return build_plan(config, build_model(config))


@pytest.mark.parametrize(
    ("size", "level", "message"),
    [
        (
            64,
            0.75,
            r"block_size is 64; accepted: (\d+x?\d*), or fan_in False \[\d+% of",
        ),
        ((32, 32), 0.75, r"is \(32, 32\); accepted: (\d+x\d+), or .* \[the density .*% off"),
    ],
)
def test_a_size_that_gives_another_density_is_refused_with_one_that_works(size, level, message):
    with pytest.raises(ConfigError) as error:
        plan_of(block_size=size, level=level)
    found = re.search(message, str(error.value))
    assert found, error.value
    plan_of(block_size=values.parse(schema.SIZE, found[1]), level=level)


@pytest.mark.parametrize(("rows", "is_fine"), [(49, False), (50, False), (51, True)])
def test_a_density_may_be_two_percent_off(rows, is_fine):
    """A quarter of 49, 50, 51 input blocks: 2.04, 4.0 and 1.96 % from the nearest whole number."""
    layers = {"kernel": jax.ShapeDtypeStruct((8 * rows, 8), jax.numpy.float32)}
    if is_fine:
        check_block_size(layers, {"kernel": 0.75}, 8)
        return
    with pytest.raises(
        ConfigError, match=r"block_size is 8; .* of the model would be [24]\.0% off"
    ):
        check_block_size(layers, {"kernel": 0.75}, 8)


@pytest.mark.parametrize(("width", "is_fine"), [(42, True), (43, False)])
def test_five_percent_of_the_weights_may_lie_outside_of_blocks(width, is_fine):
    """42 x 10 and 43 x 10 of the weights of both layers: 4.99 and 5.10 %."""
    shapes = {"a": {"kernel": (80, 100)}, "b": {"kernel": (width, 10)}}
    layers = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jax.numpy.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    sparsities = jax.tree.map(lambda _: 0.75, layers)
    if is_fine:
        check_block_size(layers, sparsities, 4)
        return
    with pytest.raises(ConfigError, match="block_size is 4; .*5% of the weights lie in layers"):
        check_block_size(layers, sparsities, 4)


def test_fan_ins_come_as_near_to_the_requested_density_as_is_promised():
    plan = plan_of(block_size=(4, 16), level=0.75)
    params = jax.eval_shape(build_model(resolve(tiny_config())).init, jax.random.key(0))
    drawn = plan.method.init(jax.random.key(0), params, plan.sparsities)
    assert summarize(params, drawn).sparsifiable.density == pytest.approx(0.25, rel=0.02)
    names = jax.tree_util.tree_leaves_with_path(plan.requested)
    assert {s for path, s in names if is_sparsifiable(path, params_at(params, path))} == {0.75}
    for (path, mask), s in zip(
        jax.tree_util.tree_leaves_with_path(drawn), jax.tree.leaves(plan.sparsities), strict=True
    ):
        if mask.ndim and mask.shape[-2] % 4 == 0 and mask.shape[-1] % 16 == 0:
            grid = mask.reshape(-1, *mask.shape[-2:])[0, ::4, ::16]
            assert set(grid.sum(0).tolist()) == {round((1 - s) * len(grid))}, path


def params_at(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("gradual", {"begin": 10, "end": 80}, "gradual ends its pruning at step 70, so 40 steps"),
        (
            "gradual",
            {"begin": 10, "end": 41},
            "gradual prunes after the last step, so nothing is f",
        ),
        ("gradual", {"begin": 10, "end": 40}, None),
        ("one_shot", {}, None),
        ("rigl", {"begin": 50, "end": 80}, "no topology update is due in 40 steps: begin 50, end"),
        ("rigl", {"begin": 10, "end": 80}, None),
        ("static", {"begin": 50}, None),
    ],
)
def test_too_few_updates_for_a_method_are_told(method, changes, message, caplog):
    changes = {f"sparsity.{key}": value for key, value in changes.items()}
    changes |= {"sparsity.method": method, "sparsity.update_interval": 10, "steps": 40}
    config = resolve(tiny_config(**changes))
    check_updates(config, build_plan(config, build_model(config)))
    assert [line[: len(message or "")] for line in caplog.messages] == [message] * bool(message)


@pytest.mark.parametrize("method", ["gradual", "one_shot"])
def test_what_would_never_be_pruned_is_refused(method):
    changes = {"sparsity.method": method, "sparsity.update_interval": 100, "steps": 40}
    config = resolve(tiny_config(**changes | {"sparsity.begin": None, "sparsity.end": None}))
    with pytest.raises(
        ConfigError, match="update_interval is 100; accepted: a smaller one: no top"
    ):
        check_updates(config, build_plan(config, build_model(config)))
