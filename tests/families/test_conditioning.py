"""Networks with labels: data, label dropout, guidance, and the order of samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binomtest

from sparsejax.configuration import resolve
from sparsejax.errors import ConfigError
from sparsejax.families import build_data, build_model
from sparsejax.families.conditioning import drop_labels, in_turn
from sparsejax.models.unet import UNet
from tests.training.tiny import tiny_config

LABELLED = {"model.classes": 10}
FLOW = {"diffusion.process": "flow", "sample.sampler": "euler", "sample.clip": None}


def model_of(**changes):
    return build_model(resolve(tiny_config(**LABELLED | changes)))


def by_label(params, x, t, labels, train=False, rngs=None):
    """Predict a constant for each label: none is 10."""
    return jnp.broadcast_to(labels[:, None, None, None] * params, x.shape)


def test_batches_hold_the_labels_of_their_images():
    """The images are the unlabelled run's, bit by bit; each has the label of the same pixels."""
    config = tiny_config(**LABELLED)
    data, plain = build_data(resolve(config)), build_data(resolve(tiny_config()))
    images, labels = data.labelled()
    of_pixels = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for batch, without in zip(data.batches(0, 3), plain.batches(0, 3), strict=True):
        np.testing.assert_array_equal(batch["image"], without["image"])
        assert without.keys() == {"image"}
        pixels = np.round((batch["image"] + 1) * 127.5).astype(np.uint8)
        assert [of_pixels[p.tobytes()] for p in pixels] == batch["label"].tolist()
        assert batch["label"].dtype == np.int32


def test_labels_are_left_out_at_their_rate_by_each_examples_own_key():
    keys, labels = jax.random.split(jax.random.key(0), 2000), jnp.arange(2000) % 10
    left = drop_labels(labels, keys, 0.3, 10)
    gone = np.asarray(left == 10)
    assert binomtest(int(gone.sum()), 2000, 0.3).pvalue > 0.01
    np.testing.assert_array_equal(np.asarray(left)[~gone], np.asarray(labels)[~gone])
    part = drop_labels(labels[500:510], keys[500:510], 0.3, 10)
    np.testing.assert_array_equal(part, left[500:510])
    np.testing.assert_array_equal(drop_labels(labels, keys, 0.0, 10), labels)


def test_the_loss_sees_labels_and_leaves_them_out_in_training_only():
    seen = []

    def spy(params, x, t, labels, *, train, rngs):
        seen.append(np.asarray(labels))
        return x

    batch = {"image": jnp.zeros((64, 8, 8, 1)), "label": jnp.arange(64) % 10}
    keys = jax.random.split(jax.random.key(1), 64)
    for rate, train in ((0.5, True), (0.5, False), (0.0, True)):
        model = model_of(**{"model.label_dropout": rate})
        model.loss(spy, None, batch, keys, train=train)
    assert 10 < (seen[0] == 10).sum() < 54
    np.testing.assert_array_equal(seen[1], batch["label"])
    np.testing.assert_array_equal(seen[2], batch["label"])


def test_time_and_noise_are_those_of_an_unconditional_run():
    """So runs with and without labels differ in nothing else."""
    inputs = {}

    def spy(params, x, t, *labels, train, rngs):
        inputs[len(labels)] = (np.asarray(x), np.asarray(t))
        return x

    batch = {"image": jnp.ones((4, 8, 8, 1)), "label": jnp.arange(4)}
    keys = jax.random.split(jax.random.key(1), 4)
    model_of().loss(spy, None, batch, keys, train=True)
    build_model(resolve(tiny_config())).loss(spy, None, batch, keys, train=True)
    jax.tree.map(np.testing.assert_array_equal, inputs[0], inputs[1])


def test_samples_have_all_labels_in_turn_or_the_one_that_is_asked_for():
    """A flow whose velocity is a constant moves by it: one Euler step shows the label."""
    steps = FLOW | {"sample.steps": 1}
    x_T = model_of(**steps).sample(by_label, 0.0, (), jax.random.key(0), 12)  # noqa: N806
    moved = model_of(**steps).sample(by_label, 1.0, (), jax.random.key(0), 12)
    np.testing.assert_allclose((x_T - moved)[:, 0, 0, 0], np.arange(12) % 10, atol=1e-5)
    part = model_of(**steps).sample(by_label, 1.0, (), jax.random.key(0), 3, start=9)
    np.testing.assert_allclose(part, moved[9:], atol=1e-5)
    one = model_of(**steps, **{"sample.label": 7}).sample(by_label, 1.0, (), jax.random.key(0), 12)
    np.testing.assert_allclose((x_T - one)[:, 0, 0, 0], 7, atol=1e-5)


@pytest.mark.parametrize(
    ("interval", "guided", "passes"), [((), 4, 8), ((0.4, 0.8), 2, 6), ((0.9, 1.0), 1, 5)]
)
def test_guidance_weighs_what_labels_change_inside_its_interval(interval, guided, passes):
    """Times of four Euler steps are 1, .75, .5, .25; a velocity without a label is 10."""
    changes = FLOW | {
        "sample.steps": 4,
        "sample.guidance": 3.0,
        "sample.guidance_interval": interval,
    }
    model = model_of(**changes)
    start, end = (model.sample(by_label, p, (), jax.random.key(0), 10) for p in (0.0, 1.0))
    label = np.arange(10)
    by_guided, by_plain = 10 + 3 * (label - 10), label
    expected = (guided * by_guided + (4 - guided) * by_plain) / 4
    np.testing.assert_allclose((start - end)[:, 0, 0, 0], expected, atol=1e-4)
    assert model.passes_per_sample == passes


def test_guidance_intervals_are_times_of_the_process():
    """t / T in steps, and sigma of EDM; 25 of 50 evenly spread steps lie in half of the times."""
    half = {"sample.guidance": 2.0, "sample.guidance_interval": (0.5, 1.0), "sample.steps": 50}
    assert model_of(**half).passes_per_sample == 50 + 25
    edm = {"diffusion.process": "edm", "sample.sampler": "heun"}
    model = model_of(**half | edm | {"sample.steps": 18, "sample.guidance_interval": (0.2, 2.0)})
    ramp = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 18) ** 7
    visited = np.append(ramp, ramp[1:])
    assert model.passes_per_sample == 35 + ((visited >= 0.2) & (visited <= 2)).sum()


def test_no_label_adds_nothing_to_a_unets_embedding():
    shape = {"model_channels": 8, "num_res_blocks": 1, "channel_mult": (1,), "norm_groups": 4}
    shape |= {"attention_resolutions": (), "num_head_channels": 8}
    x, t = jnp.ones((3, 8, 8, 3)), jnp.array([1, 5, 9])
    labelled, plain = UNet(**shape, classes=4), UNet(**shape)
    params = jax.jit(labelled.init)(jax.random.key(0), x, t)["params"]
    params = jax.tree.map(lambda p: jax.random.normal(jax.random.key(1), p.shape) / 5, params)
    rest = {name: tree for name, tree in params.items() if name != "label_emb"}
    without = jax.jit(plain.apply)({"params": rest}, x, t)
    run = jax.jit(labelled.apply)
    found = run({"params": params}, x, t, jnp.full(3, 4))
    np.testing.assert_allclose(found, without, rtol=1e-5, atol=1e-6)
    apart = run({"params": params}, x, t, jnp.array([0, 4, 1]))
    assert np.abs(apart - without).max(axis=(1, 2, 3)).round(3).astype(bool).tolist() == [1, 0, 1]
    table = params["label_emb"]["embedding"]
    assert table.shape == (4, 32)


def test_real_examples_are_shown_in_the_order_of_the_samples_labels():
    data = build_data(resolve(tiny_config(**LABELLED)))
    images, labels = data.labelled()
    of_pixels = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    shown = np.round((data.shown(24) + 1) * 127.5).astype(np.uint8)
    assert [of_pixels[image.tobytes()] for image in shown] == [i % 10 for i in range(24)]
    assert build_data(resolve(tiny_config())).shown is None
    np.testing.assert_array_equal(in_turn(np.array([1, 0, 1]), 2, 6), [1, 0, 1, 2, 1, 0])
    np.testing.assert_array_equal(in_turn(np.array([1, 1, 1]), 2, 2), [0, 1])


def test_a_grid_has_a_column_for_each_label():
    samples = np.zeros((20, 8, 8, 1), np.float32)
    wide, square = (model_of(**c).render(samples) for c in ({}, {"sample.label": 2}))
    assert wide.shape[1] / wide.shape[0] > 4
    assert square.shape[1] / square.shape[0] < 1.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample.label": 1}, "sample.label is 1; accepted: None with model.classes 0"),
        ({"sample.guidance": 2.0}, "sample.guidance is 2.0; accepted: 1.0 with model.classes 0"),
        (LABELLED | {"sample.label": 10}, "sample.label is 10; accepted: None, or 0 to 9"),
        (
            LABELLED | {"sample.guidance_interval": (0.5, 0.2)},
            r"guidance_interval is \(0.5, 0.2\); accepted: \(\), or two numbers, 0 <= from < to",
        ),
    ],
)
def test_keys_that_do_not_fit_the_labels_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        build_model(resolve(tiny_config(**changes)))


def test_a_network_knows_as_many_labels_as_the_data_have(tmp_path):
    with pytest.raises(ConfigError, match="classes is 9; accepted: 0 or 10, the classes of digits"):
        build_data(resolve(tiny_config(**{"model.classes": 9}))).prepare()
    images = np.zeros((40, 8, 8), np.uint8)
    np.savez(tmp_path / "set.npz", images=images)
    source = {"task.dataset": "files", "task.source": str(tmp_path / "set.npz")}
    with pytest.raises(ConfigError, match="classes is 2; accepted: 0: set has none"):
        build_data(resolve(tiny_config(**source, **{"model.classes": 2}))).sizes()
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(40) % 3)
    data = build_data(resolve(tiny_config(**source, **{"model.classes": 3})))
    assert next(data.batches(0, 1))["label"].max() == 2
    # Labels that only the reference set has are some, too.
    labels = np.arange(40) // 8
    np.savez(tmp_path / "set.npz", images=images, labels=labels, split=labels // 3)
    splits = {"task.split": "train", "task.reference_split": "validation"}
    data = build_data(resolve(tiny_config(**source, **splits, **{"model.classes": 3})))
    with pytest.raises(ConfigError, match="classes is 3; accepted: 0 or 5, the classes of set"):
        data.sizes()
    held_out = np.concatenate([batch["label"] for batch in data.held_out()])  # of an older run
    assert set(held_out) == {3}, "a label that isn't known is none"
