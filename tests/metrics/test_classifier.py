"""The classifier's recipe is fixed: a version, what it trains, and what is kept under its name."""

import jax
import numpy as np

from sparsejax.metrics import classifier
from sparsejax.metrics.classifier import Classifier, load_classifier, train_classifier
from sparsejax.rendering.pixels import to_unit_range

# Steps, batch and, of a classifier of 4 classes after 5 steps on `patterns`, the sum of features
# and the logits of the first two images. A recipe that differs takes a new version, added here.
RECORDED = {
    "recipe-1": (
        (600, 128),
        (10.56495, 7.88133),
        ((0.54075, -0.19242, -0.08728, -0.26888), (-0.07885, 0.41155, -0.08368, 0.04391)),
    )
}


def patterns():
    n = np.arange(40)[:, None, None, None]
    squares = np.arange(36).reshape(1, 6, 6, 1) ** 2
    return ((37 * n + squares * (1 + n % 4)) % 256).astype(np.uint8), np.arange(40) % 4


def test_a_version_stands_for_one_recipe():
    sizes, features, logits = RECORDED[classifier.RECIPE]
    assert sizes == (classifier.STEPS, classifier.BATCH)
    model, (images, labels) = Classifier(4), patterns()
    params = train_classifier(model, images, labels, steps=5)
    ours = model.apply({"params": params}, to_unit_range(images[:2]))
    np.testing.assert_allclose(ours[0].sum(axis=1), features, rtol=1e-4)
    np.testing.assert_allclose(ours[1], logits, rtol=0, atol=1e-4)


def test_a_classifier_is_kept_under_recipe_and_data(monkeypatch, tmp_path):
    """Other data, other labels, another recipe: each a file of its own; the same: trained once."""
    monkeypatch.setenv("SPARSEJAX_CACHE", str(tmp_path))
    trained = []

    def train(model, images, labels):
        trained.append(len(images))
        shapes = jax.eval_shape(model.init, jax.random.key(0), to_unit_range(images[:1]))
        return jax.tree.map(lambda x: np.full(x.shape, len(trained), x.dtype), shapes["params"])

    monkeypatch.setattr(classifier, "train_classifier", train)
    images, labels = patterns()

    def load(images=images, labels=labels):
        return load_classifier("patterns", images, labels)[1]["Dense_1"]["kernel"][0, 0]

    assert (load(), load()) == (1, 1)
    assert load(images=images[::-1]) == 2
    assert load(labels=labels[::-1]) == 3
    assert load(images=images.reshape(40, 4, 9, 1)) == 4
    monkeypatch.setattr(classifier, "RECIPE", "recipe-next")
    assert (load(), load()) == (5, 5)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == len(trained) == 5
    assert sum(name.startswith("classifier-patterns-recipe-1-") for name in names) == 4
