"""Features from a small classifier trained on a dataset's own labels, by a fixed recipe.

For data where Inception features mean little. The distance made from them is named after
them, `FD[classifier:digits]`: it compares with itself alone, never with an FID.
"""

import hashlib
import inspect

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np
import optax

from sparsejax.metrics.cache import load_or_compute
from sparsejax.rendering.pixels import to_unit_range
from sparsejax.seeds import check_seed

FEATURES = 64
_STEPS, _BATCH = 600, 128


class Classifier(nn.Module):
    """Two convolutions and two dense layers; returns features [batch, 64] and logits."""

    classes: int

    @nn.compact
    def __call__(self, x):
        """Classify x [batch, height, width, channels] in [-1, 1]."""
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = nn.relu(nn.Conv(64, (3, 3), strides=2)(x))
        features = nn.relu(nn.Dense(FEATURES)(x.reshape(x.shape[0], -1)))
        return features, nn.Dense(self.classes)(features)


def load_classifier(name, images, labels):
    """Return a classifier of labelled images, trained the first time.

    The trained weights are kept in the cache folder, under a hash of data and recipe.

    Args:
      name: of the data, for the file that is kept.
      images: [count, height, width, channels] uint8.
      labels: [count] int.

    Returns:
      Tuple of the Classifier and its params.
    """
    model = Classifier(int(labels.max()) + 1)
    recipe = inspect.getsource(Classifier) + inspect.getsource(train_classifier)
    digest = hashlib.sha256(recipe.encode() + f"{FEATURES} {_STEPS} {_BATCH}".encode())
    digest.update(images.tobytes() + labels.tobytes())

    def train():
        params = jax.device_get(train_classifier(model, images, labels))
        return flax.traverse_util.flatten_dict(params, sep="/")

    arrays = load_or_compute(f"classifier-{name}-{digest.hexdigest()[:16]}", train)
    return model, flax.traverse_util.unflatten_dict(arrays, sep="/")


def train_classifier(model, images, labels, seed=0):
    """Train by the fixed recipe: 600 steps of Adam at 1e-3, batches of 128.

    Args:
      model: Classifier.
      images: [count, height, width, channels] uint8.
      labels: [count] int.
      seed: of initial weights and batches.

    Returns:
      params.
    """
    optimizer = optax.adam(1e-3)
    params = model.init(jax.random.key(check_seed(seed)), to_unit_range(images[:1]))["params"]

    @jax.jit
    def step(params, state, images, labels):
        def loss(params):
            _, logits = model.apply({"params": params}, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state, rng = optimizer.init(params), np.random.default_rng(seed)
    for _ in range(_STEPS):
        batch = rng.integers(len(images), size=_BATCH)
        params, state = step(params, state, to_unit_range(images[batch]), labels[batch])
    return params
