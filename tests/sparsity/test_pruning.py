"""Dense-to-sparse baselines: how much is left after each update, and which weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.sparsity import methods, structure, topology
from sparsejax.sparsity.blocks import fan_in_sparsities
from sparsejax.sparsity.distributions import global_magnitude, uniform
from sparsejax.sparsity.masks import target_active
from sparsejax.sparsity.schedules import UpdateSchedule
from tests.sparsity.channel_net import GROUPS, init

PARAMS = {
    "in": {"kernel": np.random.default_rng(0).normal(size=(24, 40)), "bias": np.ones(40)},
    "out": {"kernel": np.random.default_rng(1).normal(size=(3, 3, 16, 8))},
}
PARAMS = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), PARAMS)
KEY = jax.random.key(0)


def updates_of(method, params, sparsities, progresses):
    """The masks after each update of a run, and the params."""
    masks = method.init(KEY, params, sparsities)
    density = jax.tree.map(lambda s: 1 - s, sparsities)
    update = jax.jit(functools.partial(method.update, density=density))
    for progress in progresses:
        params, masks = update(KEY, params, masks, params, 0.0, progress=progress)
        yield params, masks


def active(masks, path):
    return int(masks[path]["kernel"].sum())


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.95])
def test_gradual_pruning_follows_the_cubic_of_its_authors(sparsity):
    """Zhu and Gupta (2017), equation 1, with s_i = 0; exact at both ends."""
    progresses = np.linspace(0, 1, 7)
    sparsities = uniform(PARAMS, sparsity)
    steps = updates_of(methods.get_method("gradual"), PARAMS, sparsities, progresses)
    for progress, (_, masks) in zip(progresses, steps, strict=True):
        for path, size in (("in", 960), ("out", 1152)):
            goal = size - sparsity * size * (1 - (1 - progress) ** 3)
            assert 0 <= active(masks, path) - round(goal, 6) < 2  # two numbers are rounded down
    assert active(masks, "in") == target_active(960, sparsity)
    assert masks["in"]["bias"].ndim == 0


def test_the_weights_that_stay_are_the_largest_of_those_that_were_left():
    ((_, mask),) = updates_of(methods.get_method("gradual"), PARAMS, uniform(PARAMS, 0.8), [0.4])
    kernel = np.abs(PARAMS["in"]["kernel"])
    kept = np.asarray(mask["in"]["kernel"])
    assert kernel[kept].min() > kernel[~kept].max()


def test_a_pruned_weight_never_returns():
    progresses, before = np.linspace(0, 1, 5), None
    steps = updates_of(methods.get_method("gradual"), PARAMS, uniform(PARAMS, 0.9), progresses)
    for params, masks in steps:
        kernel, mask = params["in"]["kernel"], masks["in"]["kernel"]
        np.testing.assert_array_equal(np.asarray(kernel) != 0, np.asarray(mask))
        assert before is None or not (np.asarray(mask) & ~before).any()
        before = np.asarray(mask)


def test_one_shot_pruning_is_done_after_the_first_update():
    steps = updates_of(methods.get_method("one_shot"), PARAMS, uniform(PARAMS, 0.75), [0.0, 0.5])
    (_, first), (_, second) = steps
    assert active(first, "in") == target_active(960, 0.75)
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("fan_in", [False, True])
def test_blocks_are_pruned_whole(fan_in):
    sparsities = uniform(PARAMS, 0.75)
    if fan_in:
        sparsities = fan_in_sparsities(PARAMS, sparsities, 8)
    blocks = structure.block(8, fan_in)
    *_, (_, masks) = updates_of(
        methods.get_method("gradual", blocks), PARAMS, sparsities, [0.0, 0.5, 1.0]
    )
    grid = np.asarray(masks["in"]["kernel"]).reshape(3, 8, 5, 8)
    units = grid.any((1, 3))
    np.testing.assert_array_equal(units, grid.all((1, 3)))
    drawn = methods.get_method("static", blocks).init(KEY, PARAMS, sparsities)
    assert active(masks, "in") == active(drawn, "in")
    assert active(masks, "out") == active(drawn, "out")
    if fan_in:
        assert len(set(units.sum(0).tolist())) == 1


def test_magnitudes_of_all_layers_are_ranked_together():
    """Here one layer has weights a third as large, so most of what goes is there."""
    params = PARAMS | {"out": {"kernel": PARAMS["out"]["kernel"] / 3}}
    overall = structure.WEIGHT._replace(keep=topology.keep_overall)
    method, sparsities = methods.get_method("gradual", overall), global_magnitude(params, 0.75)
    *_, (pruned, masks) = updates_of(method, params, sparsities, [0.0, 0.5, 1.0])
    kernels = [np.abs(params[path]["kernel"]).ravel() for path in ("in", "out")]
    threshold = np.sort(np.concatenate(kernels))[-528]  # a quarter of 960 + 1152
    for path, kernel in zip(("in", "out"), kernels, strict=True):
        np.testing.assert_array_equal(masks[path]["kernel"].ravel(), kernel >= threshold)
        np.testing.assert_array_equal(pruned[path]["kernel"] != 0, masks[path]["kernel"])
    assert active(masks, "in") > 3 * active(masks, "out")


def test_channels_are_pruned_whole():
    params = init(jax.random.key(1))
    channels = structure.channel(GROUPS, init)
    shares = dict.fromkeys(GROUPS, 0.5)
    *_, (pruned, masks) = updates_of(
        methods.get_method("gradual", channels), params, shares, [0.0, 1.0]
    )
    scores, units = channels.pool(params), channels.unit_masks(masks)
    for name, unit in units.items():
        unit, score = np.asarray(unit), np.asarray(scores[name])
        assert unit.sum() == target_active(unit.size, 0.5)
        assert score[unit].min() >= score[~unit].max()
    expected = jax.tree.map(lambda p, mask: np.where(mask, p, 0), params, masks)
    jax.tree.map(np.testing.assert_array_equal, pruned, expected)


def test_progress_goes_from_the_first_to_the_last_update():
    for begin, end, includes in ((100, 700, False), (0, 601, False), (50, 600, True)):
        schedule = UpdateSchedule(100, begin, end, includes)
        due = [step for step in range(1, 1001) if schedule.is_due(step)]
        assert [float(schedule.progress(due[i])) for i in (0, -1)] == [0, 1]
        np.testing.assert_allclose(schedule.progress(jnp.int32(300)), 0.4, rtol=1e-6)
    assert UpdateSchedule(100, 100, 150).progress(100) == 1  # a single update prunes it all


def test_densities_are_needed():
    method = methods.get_method("gradual")
    with pytest.raises(ValueError, match="density of gradual is None; accepted: floats"):
        method.update(KEY, PARAMS, method.init(KEY, PARAMS, uniform(PARAMS, 0.5)), PARAMS, 0.0)
