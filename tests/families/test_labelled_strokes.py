"""ChiroDiff with labels: batches, the loss, the lengths of samples, guidance, whole runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax
from sparsejax.configuration import resolve
from sparsejax.errors import ConfigError
from sparsejax.evaluation.closing import close_run
from sparsejax.evaluation.evaluate import evaluate_run, meter_of
from sparsejax.families import build_data
from sparsejax.families.stroke_sampling import lengths_by_label
from sparsejax.families.strokes import FAMILY
from sparsejax.models.chirodiff import BiGRUDenoiser, TransformerDenoiser
from sparsejax.training import loop, runs
from tests.families.test_strokes import tiny, write_scribbles
from tests.training.tiny import build

LABELLED = {"model.classes": 2, "sample.steps": 5}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Every other drawing is long, and has label 1."""
    path = tmp_path_factory.mktemp("labelled") / "scribbles.npz"
    write_scribbles(path, label=np.arange(60) % 2)
    return path


@pytest.fixture(scope="module")
def built(source):
    return build(resolve(tiny(source, **LABELLED)))


def test_batches_hold_the_labels_of_their_drawings(source, built):
    """The drawings are the unlabelled run's, bit by bit."""
    plain = build_data(resolve(tiny(source)))
    lengths, labels = (np.array(built[1].facts()[name]) for name in ("lengths", "labels"))
    assert lengths[labels == 0].max() < lengths[labels == 1].min()
    for batch, without in zip(built[1].batches(0, 5), plain.batches(0, 5), strict=True):
        label = batch.pop("label")
        jax.tree.map(np.testing.assert_array_equal, batch, without)
        assert label.tolist() == (batch["lengths"] > lengths[labels == 0].max()).tolist()
    assert sum(len(batch["label"]) for batch in built[1].held_out()) == 15


def test_time_and_noise_are_those_of_an_unlabelled_run(source, built):
    seen = {}

    def spy(params, x, t, lengths, times, *labels, train):
        seen[len(labels)] = (x, t, *labels)
        return x

    batch = next(built[1].batches(0, 1))
    keys = jax.random.split(jax.random.key(1), 8)
    plain = build(resolve(tiny(source)))[0]
    for model in (built[0], plain):
        model.loss(spy, None, batch, keys, train=False)
    for ours, theirs in zip(seen[1][:2], seen[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(seen[1][2], batch["label"])
    model = build(resolve(tiny(source, **LABELLED | {"model.label_dropout": 1.0})))[0]
    model.loss(spy, None, batch, keys, train=True)
    assert (seen[1][2] == 2).all()


def of_label(params, x, t, lengths, times, labels, train=False, rngs=None):
    """Predict a constant for each label: no label is 2."""
    return jnp.broadcast_to(params * labels[:, None, None], x.shape)


def sampled(source, **changes):
    model = build(resolve(tiny(source, **LABELLED | changes)))[0]
    sample = jax.jit(model.sample, static_argnums=(0, 4))
    return model, np.asarray(sample(of_label, 0.01, model.frozen(), jax.random.key(0), 64))


def test_samples_are_as_long_as_drawings_of_their_label(source, built):
    model, drawn = sampled(source)
    lengths, labels = (np.array(built[1].facts()[name]) for name in ("lengths", "labels"))
    ours = (drawn[..., 2] < 2).sum(1) - 1
    assert model.labels(jnp.arange(64)).tolist() == [0, 1] * 32
    for label in (0, 1):
        known = set(lengths[labels == label])
        assert len(known & set(ours[label::2])) > 1
        assert set(ours[label::2]) <= known
    _, ones = sampled(source, **{"sample.label": 1})
    assert set((ones[..., 2] < 2).sum(1) - 1) <= set(lengths[labels == 1])
    np.testing.assert_array_equal(ones[1::2], drawn[1::2])


def test_a_label_without_drawings_has_the_lengths_of_all():
    found = lengths_by_label(np.array([50, 10, 51, 11]), np.array([2, 0, 2, 0]), 4)
    assert found["lengths"].tolist() == [10, 11, 50, 51]
    assert found["spans"].tolist() == [[0, 2], [0, 4], [2, 4], [0, 4]]


def test_guidance_weighs_what_a_label_changes(source):
    """The prediction is a label's number, so no label + 3 (label - no label) is another number."""
    model, guided = sampled(source, **{"sample.label": 1, "sample.guidance": 3.0})
    assert model.passes_per_sample == 2 * 21
    plain = build(resolve(tiny(source, **LABELLED | {"sample.label": 1})))[0]

    def weighed(params, x, t, lengths, times, labels):
        return of_label(params, x, t, lengths, times, 2 + 3 * (labels - 2))

    arguments = (weighed, 0.01, plain.frozen(), jax.random.key(0), 64)
    expected = jax.jit(plain.sample, static_argnums=(0, 4))(*arguments)
    np.testing.assert_allclose(guided, expected, atol=1e-5)
    changes = {"sample.guidance": 3.0, "sample.guidance_interval": (0.0, 0.5)}
    assert build(resolve(tiny(source, **LABELLED | changes)))[0].passes_per_sample == 21 + 11


@pytest.mark.parametrize("module", [BiGRUDenoiser, TransformerDenoiser])
def test_a_network_tells_labels_apart_and_no_label_adds_nothing(module):
    network = module(layers=1, hidden=8, steps=20, classes=3)
    points = jax.random.normal(jax.random.key(0), (4, 6, 3))
    t, lengths = jnp.full(4, 5), jnp.full(4, 6)
    inputs = (points[:1].repeat(4, 0), t, lengths, None)
    variables = network.init(jax.random.key(1), *inputs)
    ours = network.apply(variables, *inputs, jnp.arange(4))
    assert len(np.unique(np.asarray(ours[:, 0, 0]))) == 4
    without = network.apply(variables, *inputs)
    np.testing.assert_array_equal(without, without[:1].repeat(4, 0))
    np.testing.assert_array_equal(ours[3], without[3])
    variables["params"]["label_emb"]["embedding"] *= 2
    np.testing.assert_array_equal(network.apply(variables, *inputs), without)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.classes": 3},
            "config.model.classes is 3; accepted: 0 or 2, the classes of",
        ),
        ({"model.classes": 2, "sample.label": 2}, "config.sample.label is 2; accepted: None, or 0"),
        (
            {"sample.guidance": 2.0},
            "config.sample.guidance is 2.0; accepted: 1.0 with",
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused(source, changes, message):
    def prepare():
        build(resolve(tiny(source, **changes)))[1].prepare()

    with pytest.raises(ConfigError, match=message):
        prepare()


def test_drawings_with_a_negative_label_have_none(tmp_path):
    write_scribbles(tmp_path / "some.npz", label=np.arange(60) % 3 - 1)
    with pytest.raises(ConfigError, match=r"model.classes is 2; accepted: 0: \w+ has none"):
        build(resolve(tiny(tmp_path / "some.npz", **LABELLED)))[1].prepare()


def test_facts_without_labels_are_refused(source):
    config = resolve(tiny(source, **LABELLED))
    FAMILY.check_facts(config, {"lengths": [3, 4], "labels": [0, 1]})
    for labels in ({}, {"labels": [0]}, {"labels": [0, 2]}, {"labels": [0, 0.5]}):
        with pytest.raises(ValueError, match="labels"):
            FAMILY.check_facts(config, {"lengths": [3, 4]} | labels)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "structure"),
    [("birnn", "weight"), ("birnn", "channel"), ("transformer", "weight")],
)
def test_a_labelled_run_is_trained_sampled_and_evaluated(source, tmp_path, kind, structure):
    changes = {"task.kind": kind, "sparsity.structure": structure, "sample.guidance": 2.0}
    config = tiny(source, **LABELLED | changes)
    assert loop.train(config, tmp_path)
    close_run(tmp_path)
    runs.save_sparse_run(tmp_path, tmp_path / "model.safetensors")
    sources = tmp_path / "model.safetensors", tmp_path
    drawn, whole = (sparsejax.load(x, label=1).sample(jax.random.key(0), 4) for x in sources)
    np.testing.assert_allclose(drawn, whole, atol=1e-5)
    if (kind, structure) != ("birnn", "weight"):  # a classifier trains for two minutes
        return
    meter = meter_of(runs.read_config(tmp_path), count=20, metrics=["fd"])
    measures = evaluate_run(tmp_path, meter, batch=10)["measures"]
    assert any(name.startswith("accuracy[") for name in measures)
