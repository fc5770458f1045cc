"""How ChiroDiff is sampled: drawings of known lengths, denoised point by point."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sparsejax.data.strokes import PEN_UP
from sparsejax.diffusion import samplers
from sparsejax.diffusion.noise_schedules import NoiseSchedule
from sparsejax.families.conditioning import Span, conditioned, sampled_labels
from sparsejax.families.sampling import run_sampler
from sparsejax.types import Apply, Array, Frozen, Keys, NumpyArray, Params, PRNGKey

NO_POINT = 2  # pen state after the end of a drawing


def sample_strokes(
    schedule: NoiseSchedule,
    bounds: tuple[int, ...],
    classes: int,
    span: Span | None,
    config: ConfigDict,
    apply: Apply,
    params: Params,
    frozen: Frozen,
    key: PRNGKey,
    count: int,
    start: int | Array = 0,
) -> Array:
    """Sample drawings of similar length together, each group padded to the bound it needs.

    Args:
      schedule: noise schedule of the model.
      bounds: increasing lengths to pad to.
      classes: number of labels; 0 for a network without.
      span: see `conditioning.guided_span`.
      config: resolved ConfigDict.
      apply: `apply(params, noisy, t, lengths, timestamps) -> eps`, or with labels last.
      params: what `apply` takes.
      frozen: `lengths`, and for a network with labels `spans` (see `lengths_by_label`).
      key: PRNG key.
      count: number of samples.
      start: place of the first in the sequence that `key` determines.

    Returns:
      Drawings [count, length, 3] float32, as `to_drawings` returns them.
    """
    indices = start + jnp.arange(count)
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
    lengths = _sample_lengths(config.sample, classes, frozen, keys, indices)

    def denoise_padded_to(bound: int, keys: Keys, lengths: Array, indices: Array) -> Array:
        x_T, noise = samplers.example_noise(keys, (bounds[-1], 3))  # noqa: N806
        times = even_times(bound, lengths, config.task.representation)

        def denoise(params: Params, x: Array, t: Array, *labels: Array) -> Array:
            copies = len(x) // len(lengths)  # two with guidance
            both = jnp.tile(lengths, copies), jnp.tile(times, (copies, 1))
            return apply(params, x, t, *both, *labels)

        drawn = run_sampler(
            schedule,
            config.sample,
            conditioned(config.sample, span, classes, denoise, params, indices),
            x_T[:, :bound],
            lambda i: noise(i)[:, :bound],
            ends_at_one=config.sample.set_alpha_to_one is not False,
        )
        return jnp.pad(drawn, [(0, 0), (0, bounds[-1] - bound), (0, 0)])

    def sample_group(group: tuple[Keys, Array, Array]) -> Array:
        bucket = jnp.searchsorted(jnp.array(bounds), jnp.max(group[1]))
        branches = [functools.partial(denoise_padded_to, bound) for bound in bounds]
        return jax.lax.switch(bucket, branches, *group)

    order = jnp.argsort(lengths)
    groups = max(1, min(8, count // 32))
    padded = jnp.pad(order, (0, -count % groups), mode="edge")
    split = jax.tree.map(lambda x: x[padded].reshape(groups, -1), (keys, lengths, indices))
    drawn = jax.lax.map(sample_group, split).reshape(-1, bounds[-1], 3)[:count]
    drawn = jnp.zeros_like(drawn).at[order].set(drawn)
    return to_drawings(drawn, lengths, config.task.representation)


def _sample_lengths(
    settings: ConfigDict, classes: int, frozen: Frozen, keys: Keys, indices: Array
) -> Array:
    lengths = frozen["lengths"]
    if settings.lengths:
        return lengths[indices % len(lengths)]
    # An index that no sampler uses for its noise.
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 2**31 - 1))(keys)
    if not classes:
        return jax.vmap(lambda key: jax.random.choice(key, lengths))(keys)
    labels = sampled_labels(settings, classes, indices)

    def draw(key: PRNGKey, label: Array) -> Array:
        return lengths[jax.random.randint(key, (), *frozen["spans"][label])]

    return jax.vmap(draw)(keys, labels)


def lengths_by_label(lengths: NumpyArray, labels: NumpyArray, classes: int) -> Frozen:
    """Return `lengths` sorted by label, and where those of each label are, as `spans`.

    Args:
      lengths: numbers of points of drawings, [count] int.
      labels: their labels, [count] int.
      classes: number of labels.

    Returns:
      Dictionary of `lengths` [count] int32 and `spans` [classes, 2] int32, from and to; that of a
      label without drawings is all of them.
    """
    order = np.argsort(labels, kind="stable")
    sides = (np.searchsorted(labels[order], np.arange(classes), side) for side in ("left", "right"))
    spans = np.stack([*sides], axis=1)
    spans[spans[:, 0] == spans[:, 1]] = 0, len(lengths)
    return {"lengths": lengths[order], "spans": spans.astype(np.int32)}


def even_times(length: int, lengths: Array, representation: str) -> Array:
    """Return the times of drawings at constant pace, as `data.strokes.represent` gives them.

    Args:
      length: padded length.
      lengths: [batch] int.
      representation: `threeseqdel` or `threeseqabs`.

    Returns:
      [batch, length] float32, from 0 (`threeseqdel`) or up to 1 (`threeseqabs`).
    """
    first = 1 if representation == "threeseqabs" else 0
    return (jnp.arange(length) + first) / lengths[:, None]


def to_drawings(points: Array, lengths: Array, representation: str) -> Array:
    """Convert sequences of the model to drawings.

    Args:
      points: [batch, length, 3], offsets or points as `representation` says, and pen.
      lengths: [batch] int.
      representation: `threeseqdel` or `threeseqabs`.

    Returns:
      [batch, length + 1, 3] float32: absolute x, y, starting at the origin; pen 0, 1 (values
      above 0.8), or 2 after the end.
    """
    points = jnp.pad(points, [(0, 0), (1, 0), (0, 0)])
    xy = jnp.cumsum(points[..., :2], axis=1) if representation == "threeseqdel" else points[..., :2]
    valid = jnp.arange(points.shape[1]) <= lengths[:, None]
    pen = jnp.where(valid, (points[..., 2] > PEN_UP).astype(jnp.float32), NO_POINT)
    return jnp.concatenate([jnp.where(valid[..., None], xy, 0), pen[..., None]], axis=-1)
