"""Features from a small classifier that a fixed recipe trains on a dataset's own labels.

For data on which Inception features mean little. The name of the distance contains theirs,
`FD[classifier:digits]`: it is comparable only with itself, never with an FID.
"""

import hashlib

import flax.linen as nn
import jax
import numpy as np
import optax
from rich.console import Console
from rich.progress import track

from sparsejax.metrics.cache import load_or_compute
from sparsejax.nested import flatten, nest
from sparsejax.rendering.pixels import to_unit_range
from sparsejax.seeds import check_seed
from sparsejax.types import Array, NumpyArray, Params

# Part of the name of every classifier in the cache. A change to the trained weights (network,
# optimizer, steps, batches) needs a new version, so that numbers of two recipes are never compared.
RECIPE = "recipe-1"
FEATURES, STEPS, BATCH = 64, 600, 128


class Classifier(nn.Module):
    """Two convolutions and two dense layers; returns features [batch, 64] and logits."""

    classes: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Classify x [batch, height, width, channels] in [-1, 1]."""
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = nn.relu(nn.Conv(64, (3, 3), strides=2)(x))
        features = nn.relu(nn.Dense(FEATURES)(x.reshape(x.shape[0], -1)))
        return features, nn.Dense(self.classes)(features)


def load_classifier(name: str, images: NumpyArray, labels: NumpyArray) -> tuple[Classifier, Params]:
    """Return a classifier of labelled images, training it the first time.

    The trained weights are cached under the version of the recipe and a hash of the data.

    Args:
      name: name of the data, for the cached file.
      images: [count, height, width, channels] uint8.
      labels: [count] int.

    Returns:
      Tuple of the Classifier and its params.
    """
    model = Classifier(int(labels.max()) + 1)
    digest = hashlib.sha256(f"{images.shape} {labels.dtype}".encode())
    digest.update(images.tobytes() + labels.tobytes())

    def train() -> dict[str, NumpyArray]:
        params = jax.device_get(train_classifier(model, images, labels))
        return flatten(params)

    params = jax.eval_shape(model.init, jax.random.key(0), to_unit_range(images[:1]))["params"]
    shapes = {path: leaf.shape for path, leaf in flatten(params).items()}
    file = f"classifier-{name}-{RECIPE}-{digest.hexdigest()[:16]}"
    return model, nest(load_or_compute(file, train, shapes))


def train_classifier(
    model: Classifier, images: NumpyArray, labels: NumpyArray, *, steps: int = STEPS, seed: int = 0
) -> Params:
    """Train with the fixed recipe: 600 steps of Adam at 1e-3, batches of 128.

    Args:
      model: Classifier.
      images: [count, height, width, channels] uint8.
      labels: [count] int.
      steps: number of steps; the recipe has `STEPS`.
      seed: seed of the initial weights and of the batches.
    """
    optimizer = optax.adam(1e-3)
    params = model.init(jax.random.key(check_seed(seed)), to_unit_range(images[:1]))["params"]

    @jax.jit
    def step(
        params: Params, state: optax.OptState, images: Array, labels: Array
    ) -> tuple[Params, optax.OptState]:
        def loss(params: Params) -> Array:
            _, logits = model.apply({"params": params}, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state, rng = optimizer.init(params), np.random.default_rng(seed)
    doing = "training the classifier of the metrics"  # minutes, for images of 64 pixels
    for _ in track(range(steps), doing, console=Console(stderr=True), transient=True):
        batch = rng.integers(len(images), size=BATCH)
        params, state = step(params, state, to_unit_range(images[batch]), labels[batch])
    return params
