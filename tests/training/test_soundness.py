"""States are checked before they are saved: what fails is never written, and the run says why."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from sparsejax.sparsity import structure
from sparsejax.sparsity.compact_trees import compact_masks
from sparsejax.sparsity.masks import apply_masks, summarize
from sparsejax.sparsity.methods import METHODS, Method, get_method
from sparsejax.sparsity.transforms import sparse_updates
from sparsejax.training import checkpoints, loop
from sparsejax.training.keys import run_keys
from sparsejax.training.metrics_log import read_metrics
from sparsejax.training.runs import load_state
from sparsejax.training.soundness import make_check
from sparsejax.training.state import state_from
from tests.training.test_steps import first_state
from tests.training.tiny import small_config, write_run

OPTIMIZER = sparse_updates(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)))
# Every step is logged and saved.
RUN = {
    "log.every": 1,
    "log.tensorboard": False,
    "checkpoint.every": 1,
    "checkpoint.keep": 20,
}


@functools.cache
def made(kind):
    """A sound state of a small network, and its check: they are compiled once."""
    if kind != "compact":
        state = first_state(OPTIMIZER, is_flat=kind == "flat")
        return state, make_check(active_of(state.params, state.masks))
    params = {"kernel": jax.random.normal(jax.random.key(0), (16, 16)), "bias": jnp.ones(16)}
    sparsities, unit = {"kernel": 0.5, "bias": 0.0}, structure.block(4, fan_in=True)
    masks = get_method("rigl", unit).init(jax.random.key(1), params, sparsities)
    trees = unit.compact_trees(params, sparsities)
    ours = compact_masks(trees, masks)
    small = trees.shrink(params, ours.indices)
    state = state_from(small, ours.masks, OPTIMIZER)._replace(masks=ours)
    return state, make_check(active_of(params, masks), trees)


def active_of(params, masks):
    return {name: layer.active for name, layer in summarize(params, masks).layers.items()}


def changed(tree, change, where=0):
    """A tree whose leaf of this number is `change(leaf)`, in numpy."""
    leaves, treedef = jax.tree.flatten(tree)
    leaves[where] = jnp.asarray(change(np.array(leaves[where])))
    return jax.tree.unflatten(treedef, leaves)


def put(value):
    """Write a value to the first three entries."""

    def change(leaf):
        leaf.ravel()[:3] = value
        return leaf

    return change


def moments_of(state):
    return state.opt_state[1][0]


def with_moments(state, **moments):
    """The optimizer state with other moments."""
    clip, (adam, *rest) = state.opt_state
    return clip, (adam._replace(**moments), *rest)


@pytest.mark.parametrize("kind", ["whole", "flat", "compact"])
def test_a_sound_state_passes_and_numbers_that_are_not_finite_are_counted(kind):
    state, check = made(kind)
    check(state)
    for name, fault in (
        ("params", changed(state.params, put(np.nan))),
        ("ema_params", changed(state.ema_params, put(np.inf))),
        ("opt_state", with_moments(state, nu=changed(moments_of(state).nu, put(-np.inf)))),
    ):
        message = f"the state after step 0 isn't sound: 3 numbers of {name} are not finite"
        with pytest.raises(FloatingPointError, match=message):
            check(state._replace(**{name: fault}))


def test_numbers_of_inactive_weights_have_to_be_zero():
    state, check = made("whole")
    inactive = np.flatnonzero(~np.asarray(state.masks["in"]["kernel"]))[:2]

    def write(leaf):
        leaf.ravel()[inactive] = 1e-30
        return leaf

    for name, fault in (
        ("params", changed(state.params, write)),
        ("ema_params", changed(state.ema_params, write)),
        ("opt_state", with_moments(state, mu=changed(moments_of(state).mu, write))),
    ):
        with pytest.raises(FloatingPointError, match=": 2 numbers of inactive weights are not z"):
            check(state._replace(**{name: fault}))


def test_the_number_of_active_weights_has_to_be_that_of_the_start():
    state, check = made("whole")
    mask = np.asarray(state.masks["in"]["kernel"])
    active, inactive = np.flatnonzero(mask)[0], np.flatnonzero(~mask)[0]

    def with_mask(on, off):
        new = mask.copy()
        new.ravel()[on], new.ravel()[off] = True, False
        zeros = jax.tree.map(jnp.zeros_like, (state.params, state.ema_params))
        masks = state.masks | {"in": {"kernel": jnp.asarray(new)}}
        return state._replace(params=zeros[0], ema_params=zeros[1], masks=masks)

    check(with_mask([inactive], [active]))  # as many, elsewhere
    message = rf"in/kernel has {mask.sum() + 1} active weights, {mask.sum()} at the start, which"
    with pytest.raises(FloatingPointError, match=message):
        check(with_mask([inactive], []))
    make_check(None)(with_mask([inactive], []))  # of a method that changes density


def test_blocks_of_a_compact_state_are_counted_too():
    """A block that lies in two places at once."""
    state, check = made("compact")
    twice = changed(state.masks.indices, lambda leaf: np.repeat(leaf[:, :1], leaf.shape[1], 1), 1)
    assert twice["kernel"].shape == state.masks.indices["kernel"].shape
    with pytest.raises(FloatingPointError, match="kernel has 64 active weights, 128 at the start"):
        check(state._replace(masks=state.masks._replace(indices=twice)))


def test_a_checkpoint_that_is_not_finite_is_skipped_by_name(tmp_path, caplog):
    """As versions that did not check have saved it."""
    write_run(tmp_path, small_config(**RUN))
    _, state = load_state(tmp_path)
    broken = state._replace(step=np.int32(1), ema_params=changed(state.ema_params, put(np.nan)))
    with checkpoints.open_manager(tmp_path / "checkpoints") as manager:
        checkpoints.save(manager, broken, {"pending": []})
    assert checkpoints.list_steps(tmp_path / "checkpoints") == [0, 1]
    assert int(load_state(tmp_path)[1].step) == 0
    assert (
        "checkpoints/1 is damaged or of a different model: 3 of its numbers are not" in caplog.text
    )


def without_numbers(key, params, masks, gradients, fraction):
    """An update that returns NaN."""
    return jax.tree.map(lambda param: param * jnp.nan, params), masks


def without_one(key, params, masks, gradients, fraction):
    """An update that loses the first active weight of each layer."""

    def lose(mask):
        return mask.ravel().at[jnp.argmax(mask)].set(False).reshape(mask.shape)

    masks = jax.tree.map(lambda mask: lose(mask) if mask.ndim else mask, masks)
    return apply_masks(params, masks), masks


@pytest.mark.parametrize(
    ("update", "fault"),
    [
        (without_numbers, r"[\d,]+ numbers of params are not finite"),
        (without_one, r"\S+/kernel has [\d,]+ active weights, .* at the start, which only .*"),
    ],
)
def test_a_state_that_is_not_sound_is_never_saved(update, fault, tmp_path, monkeypatch):
    """Of a method of one's own, whose update of step 2 follows a finite loss."""
    monkeypatch.setitem(METHODS, "broken", Method("broken", update))
    config = small_config(**RUN | {"sparsity.method": "broken", "sparsity.update_interval": 2})
    good = tmp_path / "checkpoints" / "1"
    message = rf"^the state after step 2 isn't sound: {fault}; last good checkpoint: {good}$"
    with pytest.raises(FloatingPointError, match=message) as caught:
        loop.train(config, tmp_path)
    assert "\n" not in str(caught.value)
    assert checkpoints.list_steps(tmp_path / "checkpoints") == [1]


def poisoned(monkeypatch, *steps):
    """The batches of these steps hold a NaN."""
    set_up = loop.set_up

    def set_up_poisoned(*arguments):
        run = set_up(*arguments)

        def batches(start, stop):
            for step, batch in enumerate(run.data.batches(start, stop), start + 1):
                image = np.array(batch["image"], np.float32)
                image[0, 0, 0, 0] = np.nan if step in steps else image[0, 0, 0, 0]
                yield batch | {"image": image}

        return run._replace(data=run.data._replace(batches=batches))

    monkeypatch.setattr(loop, "set_up", set_up_poisoned)


def test_a_loss_that_is_not_finite_ends_the_run_with_what_is_needed_to_look_at_it(
    tmp_path, monkeypatch
):
    """The checkpoint of the step before is named, although it is still being written then."""
    poisoned(monkeypatch, 3)
    key = jax.random.fold_in(run_keys(small_config().seed).steps, 2)
    with pytest.raises(FloatingPointError) as caught:
        loop.train(small_config(**RUN), tmp_path)
    assert str(caught.value) == (
        "loss is nan, grad_norm is nan at step 3; the batch is that of step index 2, its key "
        f"{jax.random.key_data(key).tolist()}; config.optimizer.skip_nonfinite is 0; "
        f"last good checkpoint: {tmp_path / 'checkpoints' / '2'}"
    )
    assert checkpoints.list_steps(tmp_path / "checkpoints") == [1, 2]


def restored(workdir, step):
    """The arrays of a checkpoint, by path."""
    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        parts = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))
    leaves = jax.tree_util.tree_leaves_with_path(parts["state"])
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.mark.slow
def test_steps_that_are_not_finite_are_skipped_up_to_a_number(tmp_path, monkeypatch):
    """Steps 3 and 5, of which the second has a topology update: nothing changes but the step.

    The number counts the whole run: one that ended, and goes on with the same number, ends again.
    """
    poisoned(monkeypatch, 3, 5)
    run = RUN | {"steps": 12, "sparsity.end": 11}
    one, two = (small_config(**run | {"optimizer.skip_nonfinite": number}) for number in (1, 2))
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="at step 5; .* 1 such steps .* is 1; ") as end:
            loop.train(one, tmp_path)
        assert str(end.value).endswith(str(tmp_path / "checkpoints" / "4"))
    assert loop.train(two, tmp_path)
    for before, after, differ in ((2, 3, False), (3, 4, True), (4, 5, False), (9, 10, True)):
        old, new = restored(tmp_path, before), restored(tmp_path, after)
        unequal = [name for name in old if not np.array_equal(old[name], new[name])]
        assert old["['step']"] + 1 == new["['step']"] == after
        assert (unequal == ["['step']"]) != differ
        assert any("['masks']" in name for name in unequal) == (after == 10)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    means = [line for line in lines if "interval_seconds" in line]
    assert [line.get("skipped") for line in means] == [0, 0, 1, 0, 1, *[0] * 7]
    assert [line["step"] for line in means if "loss" not in line] == [3, 5]
    assert np.isfinite([value for line in lines for value in line.values()]).all()
    replaced = {line["step"]: line["replaced"] for line in lines if "replaced" in line}
    assert {step: share > 0 for step, share in replaced.items()} == {5: False, 10: True}
