"""The train step and the topology update on a small linear task, where everything is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsejax import parallel
from sparsejax.configuration import resolve
from sparsejax.families import Model, denoising
from sparsejax.families.objectives import objective_of
from sparsejax.models.layers import Dropout
from sparsejax.models.unet import UNet
from sparsejax.parallel import data_parallel, shard_batch
from sparsejax.sparsity import distributions, flat, masks, topology
from sparsejax.sparsity.methods import Method, get_method
from sparsejax.sparsity.transforms import packed, sparse_updates
from sparsejax.training import steps
from sparsejax.training.ema import ema_decay, update_ema
from sparsejax.training.keys import named_key
from sparsejax.training.state import ema_params_of, state_from
from tests.training.tiny import tiny_config

WIDTH = 8
KEY = named_key(0, "steps")


def apply(params, x):
    return jnp.tanh(x @ params["in"]["kernel"]) @ params["out"]["kernel"] + params["out"]["bias"]


def loss(apply, params, batch, keys, train):
    """Denoising of Gaussian points; the noise comes from each example's own key."""
    assert train, "gradients are those of training, dropout included"
    noise = jax.vmap(lambda key: jax.random.normal(key, (WIDTH,)))(keys)
    return jnp.mean((apply(params, batch["x"] + noise) - noise) ** 2)


def init(key):
    first, second = jax.random.split(key)
    return {
        "in": {"kernel": jax.random.normal(first, (WIDTH, 16)) / 3},
        "out": {"kernel": jax.random.normal(second, (16, WIDTH)) / 4, "bias": jnp.zeros(WIDTH)},
    }


MODEL = Model(None, init, apply, loss, *[None] * (len(Model._fields) - 4))


def batch_of(step, size=12):
    return {"x": np.random.default_rng(step).normal(size=(size, WIDTH)).astype(np.float32)}


def first_state(optimizer, level=0.5, seed=0, is_flat=False):
    params = init(jax.random.key(seed))
    sparsities = distributions.uniform(params, level)
    drawn = masks.random_masks(jax.random.key(seed), params, sparsities)
    return state_from(params, drawn, optimizer, flat.static_counts(drawn) if is_flat else None)


def numpy_noise(step, size):
    keys = [jax.random.fold_in(jax.random.fold_in(KEY, step), i) for i in range(size)]
    return np.stack([np.asarray(jax.random.normal(key, (WIDTH,))) for key in keys])


def test_a_train_step_equals_one_written_by_hand():
    """Plain SGD with masked gradients, the noise of each example drawn by its global index."""
    optimizer = sparse_updates(optax.sgd(0.1))
    state = first_state(optimizer)
    step = data_parallel(steps.make_train_step(MODEL, optimizer, ema_limit=0.9))
    new, metrics = step(state, shard_batch(batch_of(0)), KEY)

    x, noise = batch_of(0)["x"], numpy_noise(0, 12)

    def by_hand(params):
        return jnp.mean((apply(params, x + noise) - noise) ** 2)

    value, gradients = jax.value_and_grad(by_hand)(state.params)
    gradients = masks.apply_masks(gradients, state.masks)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, gradients)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradients), rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(new.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert int(new.step) == 1
    decay = 2 / 11
    for ema, old, now in zip(
        *map(jax.tree.leaves, (new.ema_params, state.ema_params, new.params)), strict=True
    ):
        np.testing.assert_allclose(ema, decay * old + (1 - decay) * now, rtol=1e-5, atol=1e-7)


def test_microbatches_change_nothing_but_memory():
    optimizer = sparse_updates(optax.adam(0.01))
    results = []
    for accumulate in (1, 3):
        step = data_parallel(
            steps.make_train_step(MODEL, optimizer, ema_limit=0.9, accumulate=accumulate)
        )
        update = data_parallel(
            steps.make_topology_update(
                MODEL, optimizer, get_method("rigl"), lambda step: 0.4, accumulate=accumulate
            )
        )
        state, metrics = step(first_state(optimizer), shard_batch(batch_of(0)), KEY)
        state, changes = update(state, shard_batch(batch_of(0)), (KEY, jax.random.key(9)))
        results.append((state, metrics, changes))
    for whole, parts in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(whole, parts, rtol=1e-4, atol=1e-6)


def test_devices_and_microbatches_change_nothing_about_dropout():
    """The loss with half the features dropped, its batch whole, over two devices, in two parts."""

    def apply(params, x, t, *, train, rngs):
        assert train
        return params * Dropout(0.5).apply({}, x, rngs["dropout"])

    objective = objective_of(resolve(tiny_config(**{"diffusion.steps": 100})))
    loss = functools.partial(denoising.denoising_loss, objective, "image", UNet())
    model = MODEL._replace(apply=apply, loss=loss)
    x = np.random.default_rng(0).normal(size=(8, 4, 4, 1)).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=2)
    def run(parts, key, accumulate):
        def of_device(x):
            keys = steps.example_keys(key, 3, len(x))
            params = jnp.float32(0.7)
            return steps.mean_gradients(model, accumulate, params, {"image": x}, keys)

        return jax.vmap(of_device, axis_name=parallel.AXIS)(parts)

    def loss_over(devices, accumulate=1, seed=0):
        """Over an axis of devices, which need not be there."""

        parts = x.reshape(devices, -1, *x.shape[1:])
        return np.stack(run(parts, named_key(seed, "steps"), accumulate))

    whole = loss_over(1)
    np.testing.assert_allclose(loss_over(2), np.repeat(whole, 2, axis=1), rtol=1e-5)
    np.testing.assert_allclose(loss_over(2, accumulate=2)[:, :1], whole, rtol=1e-5)
    assert abs(loss_over(1, seed=1) / whole - 1).min() > 1e-3


def test_topology_update_uses_the_dense_gradient_of_the_same_batch_at_the_new_params():
    optimizer = sparse_updates(optax.chain(optax.clip_by_global_norm(1e-3), optax.adam(0.01)))
    step = data_parallel(steps.make_train_step(MODEL, optimizer, ema_limit=0.9))
    update = data_parallel(
        steps.make_topology_update(MODEL, optimizer, get_method("rigl"), lambda step: 0.2 * step)
    )
    state = first_state(optimizer)
    for i in range(2):
        state, _ = step(state, shard_batch(batch_of(i)), KEY)
    new, changes = update(state, shard_batch(batch_of(1)), (KEY, jax.random.key(9)))

    x, noise = batch_of(1)["x"], numpy_noise(1, 12)
    gradients = jax.grad(lambda p: jnp.mean((apply(p, x + noise) - noise) ** 2))(state.params)
    scores = jax.tree.map(jnp.abs, gradients)
    expected = jax.jit(topology.rewire)(state.params, state.masks, scores, 0.4)
    replaced = active = 0
    for ours, theirs, before in zip(
        *map(jax.tree.leaves, (new.masks, expected, state.masks)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
        if before.ndim:
            replaced, active = replaced + (ours & ~before).sum(), active + ours.sum()
    assert replaced > 0
    np.testing.assert_allclose(changes["replaced"], replaced / active)
    np.testing.assert_allclose(changes["drop_fraction"], 0.4)


def test_a_gradient_of_several_batches_is_their_mean_at_the_new_params():
    """Each batch with the noise of its own step."""
    optimizer, method, topology_key = sparse_updates(optax.adam(0.01)), get_method("rigl"), KEY
    step = data_parallel(steps.make_train_step(MODEL, optimizer, ema_limit=0.9))
    update = data_parallel(steps.make_topology_update(MODEL, optimizer, method, lambda step: 0.4))
    add_gradients = data_parallel(steps.make_gradient_sum(MODEL, method))
    state, total = (
        first_state(optimizer),
        jax.tree.map(jnp.zeros_like, first_state(optimizer).params),
    )
    for i in range(3):
        state, _ = step(state, shard_batch(batch_of(i)), KEY)
    for i in range(2):
        total = add_gradients(state, shard_batch(batch_of(i)), (KEY, topology_key, i, total))
    keys = KEY, topology_key, None
    new, _ = update(state, shard_batch(batch_of(2)), (*keys, (total, 2)))
    alone, _ = update(state, shard_batch(batch_of(2)), keys)

    def mean_loss(params):
        pairs = [(batch_of(i)["x"], numpy_noise(i, 12)) for i in range(3)]
        each = [jnp.mean((apply(params, x + noise) - noise) ** 2) for x, noise in pairs]
        return sum(each) / 3

    scores = jax.tree.map(jnp.abs, jax.grad(mean_loss)(state.params))
    expected = jax.jit(topology.rewire)(state.params, state.masks, scores, 0.4)
    jax.tree.map(np.testing.assert_array_equal, new.masks, expected)
    pairs = zip(jax.tree.leaves(new.masks), jax.tree.leaves(alone.masks), strict=True)
    assert any((ours != theirs).any() for ours, theirs in pairs), "one batch chooses others"


@pytest.mark.parametrize("name", ["rigl", "magran"])
def test_ema_and_moments_of_grown_weights_are_zero_after_updates(name):
    """Invariants 2 and 3 in the training state, over ten steps with five updates."""
    optimizer = sparse_updates(optax.adam(0.05))
    step = data_parallel(steps.make_train_step(MODEL, optimizer, ema_limit=0.9), donate_state=True)
    update = data_parallel(
        steps.make_topology_update(MODEL, optimizer, get_method(name), lambda step: 0.5)
    )
    state = first_state(optimizer, level=0.7)
    seen = [np.asarray(state.masks["in"]["kernel"])]
    for i in range(10):
        batch = shard_batch(batch_of(i))
        state, _ = step(state, batch, KEY)
        if i % 2:
            before = jax.device_get(state)
            state, changes = update(state, batch, (KEY, jax.random.key(9)))
            seen.append(np.asarray(state.masks["in"]["kernel"]))
            assert state.ever_active["in"]["kernel"].dtype == np.uint8
            ever = masks.unpack_bits(state.ever_active, state.params)
            np.testing.assert_array_equal(ever["in"]["kernel"], np.any(seen, axis=0))
            grown = np.asarray(state.masks["in"]["kernel"] & ~before.masks["in"]["kernel"])
            assert grown.any()
            for tree in (state.params, state.ema_params, state.opt_state[0].mu):
                assert (np.asarray(tree["in"]["kernel"])[grown] == 0).all()
        for tree in (state.params, state.ema_params, state.opt_state[0].mu, state.opt_state[0].nu):
            for leaf, mask in zip(jax.tree.leaves(tree), jax.tree.leaves(state.masks), strict=True):
                assert (np.asarray(leaf)[~np.broadcast_to(mask, leaf.shape)] == 0).all()
    ever = [np.asarray(ever[layer]["kernel"]).ravel() for layer in ("in", "out")]
    np.testing.assert_allclose(changes["ever_active"], np.concatenate(ever).mean())


def test_flat_state_trains_as_whole_state():
    """Ten steps and five updates of RigL: equal masks, and params but for the last bit."""
    optimizer, results = sparse_updates(optax.sgd(0.3, momentum=0.9)), []
    for is_flat in (False, True):
        step = data_parallel(
            steps.make_train_step(MODEL, optimizer, ema_limit=0.5), donate_state=True
        )
        update = data_parallel(
            steps.make_topology_update(MODEL, optimizer, get_method("rigl"), lambda step: 0.5),
            donate_state=True,
        )
        state, history = first_state(optimizer, level=0.7, is_flat=is_flat), []
        for i in range(10):
            state, metrics = step(state, shard_batch(batch_of(i)), KEY)
            if i % 2:
                keys = (KEY, jax.random.key(9))
                state, changes = update(state, shard_batch(batch_of(i)), keys)
                metrics |= changes
            shown = metrics, state.params, ema_params_of(state), state.masks, state.ever_active
            history.append(jax.device_get(shown))
        results.append(history)
    for masked, ours in zip(*map(jax.tree.leaves, results), strict=True):
        if masked.dtype == np.float32:
            np.testing.assert_allclose(ours, masked, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(ours, masked)
    for tree in (state.ema_params, state.opt_state[0].trace, state.indices):
        sizes = {name: tree[name]["kernel"].shape for name in ("in", "out")}
        active = {name: (int(state.masks[name]["kernel"].sum()),) for name in ("in", "out")}
        assert sizes == active
    np.testing.assert_array_equal(
        state.indices["in"]["kernel"], np.flatnonzero(state.masks["in"]["kernel"])
    )


def test_flat_state_is_asked_for_by_counts_and_not_by_a_packed_optimizer():
    mask = first_state(sparse_updates(optax.sgd(0.1))).masks
    with pytest.raises(ValueError, match="^optimizer is packed; accepted: sparse_updates, with"):
        first_state(packed(optax.sgd(0.1), mask))


@pytest.mark.parametrize("is_flat", [False, True])
def test_ema_begins_where_a_newly_active_weight_does(is_flat):
    """A method whose new weights aren't zero, as the fresh weights of a channel."""

    def move_in(key, params, mask, gradients, fraction):
        mask = mask | {"in": {"kernel": jnp.roll(mask["in"]["kernel"], 1)}}
        new = jnp.where(mask["in"]["kernel"], params["in"]["kernel"], 0)
        new = jnp.where(mask["in"]["kernel"] & (new == 0), 7.0, new)
        return params | {"in": {"kernel": new}}, mask

    optimizer = sparse_updates(optax.sgd(0.1))
    step = data_parallel(steps.make_train_step(MODEL, optimizer, ema_limit=0.9))
    method = Method("shifted", move_in)
    update = data_parallel(steps.make_topology_update(MODEL, optimizer, method, lambda step: 0.5))
    before, _ = step(first_state(optimizer, is_flat=is_flat), shard_batch(batch_of(0)), KEY)
    after, _ = update(before, shard_batch(batch_of(0)), (KEY, KEY))
    old, new = (np.asarray(state.masks["in"]["kernel"]) for state in (before, after))
    ema_before, ema = (ema_params_of(state)["in"]["kernel"] for state in (before, after))
    assert (new & ~old).any()
    assert (new & old).any()
    assert (np.asarray(ema)[new & ~old] == 7).all()
    assert (np.asarray(ema)[~new] == 0).all()
    np.testing.assert_array_equal(np.asarray(ema)[new & old], np.asarray(ema_before)[new & old])


def test_magran_computes_no_gradient():
    """What the method ignores isn't computed: no tanh is differentiated, no batch is read."""
    optimizer = sparse_updates(optax.sgd(0.1))
    state = first_state(optimizer)
    args = (state, shard_batch(batch_of(0)), (KEY, KEY))
    products = {}
    for name in ("rigl", "magran"):
        update = steps.make_topology_update(MODEL, optimizer, get_method(name), lambda step: 0.5)
        text = data_parallel(update).lower(*args).compile().as_text()
        products[name] = text.count(" dot(") + text.count("tanh")
    assert products["rigl"] > 0
    assert products["magran"] == 0


def test_units_larger_than_a_weight_need_no_change_outside_the_method():
    """A RigL of 2x2 blocks, built from the public functions, in the unchanged update function."""

    def pool(x):
        return x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2).mean(axis=(1, 3))

    def spread(mask):
        return mask if mask.ndim == 0 else mask.repeat(2, axis=0).repeat(2, axis=1)

    def pool_tree(tree, mask):
        return jax.tree.map(lambda x, m: pool(jnp.abs(x)) if m.ndim else x, tree, mask)

    def init_blocks(key, params, sparsities):
        small = jax.tree.map(lambda p: jax.eval_shape(pool, p) if len(p.shape) == 2 else p, params)
        return jax.tree.map(spread, masks.random_masks(key, small, sparsities))

    def update_blocks(key, params, mask, gradients, fraction):
        units = jax.tree.map(lambda m: pool(m) > 0 if m.ndim else m, mask)
        units = topology.rewire(
            pool_tree(params, mask), units, pool_tree(gradients, mask), fraction
        )
        mask = jax.tree.map(spread, units)
        return masks.apply_masks(params, mask), mask

    blocks = Method("rigl_blocks", update_blocks, init_blocks)
    optimizer = sparse_updates(optax.adam(0.01))
    params = init(jax.random.key(0))
    before = blocks.init(jax.random.key(1), params, distributions.uniform(params, 0.5))
    state = state_from(params, before, optimizer)
    step = data_parallel(steps.make_train_step(MODEL, optimizer, ema_limit=0.9))
    update = data_parallel(steps.make_topology_update(MODEL, optimizer, blocks, lambda step: 0.5))
    state, _ = step(state, shard_batch(batch_of(0)), KEY)
    state, _ = update(state, shard_batch(batch_of(0)), (KEY, KEY))
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state.masks), strict=True):
        assert new.sum() == old.sum()
        if new.ndim:
            assert (new != old).any()
            np.testing.assert_array_equal(new, spread(pool(new) == 1))


def test_ema_equals_the_reference(golden):
    arrays = golden("e_litema.npz")
    ema = jnp.asarray(arrays["init_weight"])
    for i, (params, expected) in enumerate(
        zip(arrays["params_weight"], arrays["ema_weight"], strict=True), 1
    ):
        decay = ema_decay(i, 0.9999)
        np.testing.assert_allclose(decay, arrays["effective_decay"][i - 1], rtol=1e-6)
        ema = update_ema(ema, jnp.asarray(params), decay)
        np.testing.assert_allclose(ema, expected, rtol=1e-5, atol=1e-7)
