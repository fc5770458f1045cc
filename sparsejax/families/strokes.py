"""ChiroDiff: diffusion on pen strokes with a bidirectional GRU or a Transformer."""

import functools
import logging
import pathlib
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sparsejax.atomic import replacing, write_text
from sparsejax.data import sketches as data
from sparsejax.data.builders import open_builder, stamp
from sparsejax.data.images import label
from sparsejax.data.splits import is_held_out, spread_over
from sparsejax.data.stroke_statistics import compare_strokes
from sparsejax.data.strokes import MAX_POINTS, PEN_UP, SCALE
from sparsejax.diffusion import noise_schedules, process, samplers
from sparsejax.errors import ConfigError, require
from sparsejax.families.arguments import build_module, check_batch_size, is_count, require_fact
from sparsejax.families.family import Data, Facts, Family, Model
from sparsejax.families.sampling import check_sampling, passes_per_sample, run_sampler, warnings_of
from sparsejax.models.chirodiff import TIME_EMBEDDINGS, BiGRUDenoiser, TransformerDenoiser
from sparsejax.models.flops import layer_flops
from sparsejax.models.units import bigru_units
from sparsejax.network_values import kind_of
from sparsejax.rendering import RASTER_VERSION, rasterize, stroke_grid, svg_grid, to_gif
from sparsejax.rendering.pixels import to_pixels
from sparsejax.types import (
    Apply,
    Array,
    Batch,
    Batches,
    Frozen,
    Input,
    Keys,
    LayerFlops,
    NumpyArray,
    Params,
    Pictures,
    PRNGKey,
    PyTree,
    Samples,
)

Denoiser: TypeAlias = BiGRUDenoiser | TransformerDenoiser
KINDS: dict[str, type[BiGRUDenoiser | TransformerDenoiser]] = {
    "birnn": BiGRUDenoiser,
    "transformer": TransformerDenoiser,
}
# Side of the images that metrics read: a classifier of 32x32 images trains in two minutes on one
# CPU core, of 64x64 in ten.
RASTER_SIZE = 32
NO_POINT = 2  # pen state after the end of a drawing

_SCHEDULES = ("linear", "cosine")
# Fixed, since the noise of the held-out loss depends on them.
_HELD_OUT_BATCH, _HELD_OUT_BUCKETS = 128, 5
_ILLUSTRATED = 64
LABELLED = 5000  # drawings to train a classifier on

logger = logging.getLogger(__name__)


def strokes_model(config: ConfigDict, facts: Facts | None = None) -> Model:
    """Return the Model of a ChiroDiff denoiser.

    Args:
      config: resolved ConfigDict; `model` holds arguments of the denoiser that `task.kind`
        names.
      facts: `lengths`, the numbers of points of the training drawings, which the lengths of
        samples are drawn from. Without them the Model can neither sample nor count FLOPs.

    Returns:
      Model; samples are drawings [count, length, 3] float32: absolute x and y (y down), pen 0
        within a stroke, 1 on its last point, 2 after the end of the drawing. They are rendered as
        32x32 pixels.

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    schedule = _noise_schedule(config.diffusion)
    network = _build_network(config)
    check_sampling(config)
    _check_clip(config)
    constants = _constants(network)
    lengths = np.asarray(facts["lengths"], np.int32) if facts else None
    if lengths is not None:
        _check_lengths(config, data.bucket_bounds(lengths, 1)[-1])

    def init(key: PRNGKey) -> Params:
        return network.init(key, *_inputs(1))["params"]

    def apply(
        params: Params,
        noisy: Array,
        t: Array,
        lengths: Array,
        timestamps: Array,
        *,
        train: bool = False,
        rngs: dict[str, Keys] | None = None,
    ) -> PyTree:
        del rngs
        variables = {"params": params} | constants
        return network.apply(variables, noisy, t, lengths, timestamps, train=train)

    def sample(*args: Input, **options: Input) -> Array:
        bounds = data.bucket_bounds(_known(lengths), config.task.buckets)
        return _sample(schedule, bounds, config, *args, **options)

    def frozen() -> Frozen:
        return {"lengths": np.asarray(config.sample.lengths or _known(lengths), np.int32)}

    def layer_flops_of_mean_drawing(params: Params) -> LayerFlops:
        mean_length = round(_known(lengths).mean())
        return layer_flops(network, params, *_inputs(mean_length), **constants)

    return Model(
        network=network,
        init=init,
        apply=apply,
        loss=functools.partial(_loss, schedule),
        sample=sample,
        render=stroke_grid,
        layer_flops=layer_flops_of_mean_drawing,
        passes_per_sample=passes_per_sample(config),
        schedule=schedule,
        warnings=warnings_of(schedule),
        frozen=frozen,
        units=bigru_units if isinstance(network, BiGRUDenoiser) else lambda params: {},
        widths=_widths(network),
        narrow=lambda width: {"hidden": width},
        to_images=to_images,
        statistics=compare_strokes,
        illustrate=_illustrate,
        closing_files=("samples.svg", "samples.gif"),
    )


def strokes_data(config: ConfigDict) -> Data:
    """Return the Data of the drawings of `config.task`.

    Args:
      config: resolved ConfigDict.

    Returns:
      Data; the reference is drawings [count, length, 3], as `strokes_model` samples them.

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    settings = config.task
    data.check_sketches(settings, settings.reference_split)
    sketches = data.load_sketches(settings, settings.split)
    bounds = data.bucket_bounds(sketches.lengths, settings.buckets)
    _check_lengths(config, bounds[-1])
    labelled_split = settings.labelled_split or settings.split
    labels = data.load_labels(settings, labelled_split)

    def batches(start: int, stop: int) -> Batches:
        share = 100 * data.padding(sketches.lengths, bounds)
        logger.info("batches are padded to %s points; %.0f %% is padding", bounds, share)
        return data.sketch_batches(sketches, bounds, config.batch_size, config.seed, start, stop)

    def sizes() -> dict[str, int]:
        check_batch_size(config, len(sketches.lengths))
        others = data.load_sketches(settings, settings.reference_split)
        return {
            settings.split: len(sketches.lengths),
            settings.reference_split: len(others.lengths),
        }

    def held_out() -> Batches:
        others = data.load_sketches(settings, settings.reference_split)
        return data.ordered_batches(others, _HELD_OUT_BUCKETS, _HELD_OUT_BATCH)

    def reference() -> NumpyArray:
        others = data.load_sketches(settings, settings.reference_split)
        return drawings(others, np.arange(len(others.lengths)))

    def drawings(these: data.Sketches, indices: NumpyArray) -> NumpyArray:
        longest = data.bucket_bounds(these.lengths, 1)[0]
        batch = data.pad(these, indices, longest)
        return np.asarray(to_drawings(batch["points"], batch["lengths"], settings.representation))

    def labelled() -> tuple[Pictures, NumpyArray]:
        # Spread over the split: if it is sorted by label, the first ones have few labels.
        chosen = spread_over(len(labels), LABELLED)
        others = data.load_sketches(settings, labelled_split)
        return to_images(drawings(others, chosen)), labels[chosen]

    def training(most: int) -> NumpyArray:
        return drawings(sketches, spread_over(len(sketches.lengths), most))

    return Data(
        batches=batches,
        reference=reference,
        label=label(settings),
        split=f"{settings.reference_split} as rasters {RASTER_VERSION} of {RASTER_SIZE} pixels",
        facts=lambda: {"lengths": sketches.lengths.tolist()},
        prepare=lambda: check_batch_size(config, len(sketches.lengths)),
        sizes=sizes,
        held_out=held_out,
        labelled=labelled if np.ptp(labels) else None,
        training=training if is_held_out(settings, open_builder(settings)) else None,
    )


def _check_facts(config: ConfigDict, facts: Facts) -> None:
    lengths, accepted = facts["lengths"], f"whole numbers from 1 to {MAX_POINTS}"
    are_some = isinstance(lengths, list) and lengths
    require_fact(are_some, "lengths", lengths, f"a list of {accepted}")
    odd = [n for n in lengths if not (is_count(n) and n <= MAX_POINTS)]
    require_fact(not odd, "lengths", odd[:1], accepted)


def _check_lengths(config: ConfigDict, longest: int) -> None:
    """Check the requested lengths of samples."""
    given, accepted = config.sample.lengths, f"whole numbers from 1 to {longest}"
    fit = all(is_count(n) and n <= longest for n in given)
    require(fit, "sample.lengths", given, accepted)


def _known(lengths: NumpyArray | None) -> NumpyArray:
    """Return the lengths of the training drawings.

    Raises:
      ConfigError: they aren't known.
    """
    if lengths is None:
        raise ConfigError(
            "the lengths of the training drawings aren't known; accepted: a run or a sparse file "
            "that holds them, or one whose data (config.task.source) is available"
        )
    return lengths


def _widths(network: Denoiser) -> tuple[int, ...]:
    heads = getattr(network, "heads", 1)
    return tuple(range(heads, network.hidden + 1, heads))


def to_images(samples: Samples) -> Pictures:
    """Return the pictures of drawings that metrics measure, [count, 32, 32, 1] uint8."""
    return to_pixels(rasterize(samples, RASTER_SIZE))


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


def _illustrate(samples: Samples, folder: pathlib.Path) -> None:
    write_text(folder / "samples.svg", svg_grid(samples[:_ILLUSTRATED]))
    with replacing(folder / "samples.gif") as partial:
        to_gif(samples[:_ILLUSTRATED], partial)


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


def _inputs(length: int) -> tuple[Array, Array, Array, Array]:
    points = jnp.zeros((1, length, 3))
    return points, jnp.zeros(1, jnp.int32), jnp.full(1, length), points[..., 0]


def _constants(model: Denoiser) -> PyTree:
    """Return the model's fixed random matrices, the same in every run and every version of JAX."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *_inputs(1))
    stream = np.random.RandomState(0)  # numpy guarantees the same numbers in every version
    return {
        name: jax.tree.map(lambda x: np.float32(stream.standard_normal(x.shape)), collection)
        for name, collection in shapes.items()
        if name != "params"
    }


def _loss(
    schedule: noise_schedules.NoiseSchedule,
    apply: Apply,
    params: Params,
    batch: Batch,
    keys: Keys,
    train: bool,
) -> Array:
    """Return the mean eps loss over valid points; t and noise come from each example's own key."""
    points, lengths = batch["points"], batch["lengths"]

    def draw(key: PRNGKey) -> tuple[Array, Array]:
        t_key, noise_key = jax.random.split(key)
        t = jax.random.randint(t_key, (), 0, schedule.steps)
        return t, jax.random.normal(noise_key, points.shape[1:])

    t, noise = jax.vmap(draw)(keys)
    noisy = process.q_sample(schedule, points, t, noise)
    eps = apply(params, noisy, t, lengths, batch["times"], train=train)
    return jnp.mean(process.sequence_eps_loss(eps, noise, lengths))


def _sample(
    schedule: noise_schedules.NoiseSchedule,
    bounds: tuple[int, ...],
    config: ConfigDict,
    apply: Apply,
    params: Params,
    frozen: Frozen,
    key: PRNGKey,
    count: int,
    start: int | Array = 0,
) -> Array:
    """Sample drawings of similar length together, each group padded to the bound it needs."""
    indices = start + jnp.arange(count)
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
    lengths = _sample_lengths(config.sample, frozen["lengths"], keys, indices)

    def denoise_padded_to(bound: int, keys: Keys, lengths: Array) -> Array:
        x_T, noise = samplers.example_noise(keys, (bounds[-1], 3))  # noqa: N806
        times = even_times(bound, lengths, config.task.representation)
        drawn = run_sampler(
            schedule,
            config.sample,
            lambda x, t: apply(params, x, t, lengths, times),
            x_T[:, :bound],
            lambda i: noise(i)[:, :bound],
            ends_at_one=config.sample.set_alpha_to_one is not False,
        )
        return jnp.pad(drawn, [(0, 0), (0, bounds[-1] - bound), (0, 0)])

    def sample_group(group: tuple[Keys, Array]) -> Array:
        bucket = jnp.searchsorted(jnp.array(bounds), jnp.max(group[1]))
        branches = [functools.partial(denoise_padded_to, bound) for bound in bounds]
        return jax.lax.switch(bucket, branches, *group)

    order = jnp.argsort(lengths)
    groups = max(1, min(8, count // 32))
    padded = jnp.pad(order, (0, -count % groups), mode="edge")
    split = jax.tree.map(lambda x: x[padded].reshape(groups, -1), (keys, lengths))
    drawn = jax.lax.map(sample_group, split).reshape(-1, bounds[-1], 3)[:count]
    drawn = jnp.zeros_like(drawn).at[order].set(drawn)
    return to_drawings(drawn, lengths, config.task.representation)


def _sample_lengths(
    settings: ConfigDict, lengths: Array | NumpyArray, keys: Keys, indices: Array
) -> Array:
    if settings.lengths:
        return lengths[indices % len(lengths)]

    def draw(key: PRNGKey) -> Array:
        # An index that no sampler uses for its noise.
        return jax.random.choice(jax.random.fold_in(key, 2**31 - 1), lengths)

    return jax.vmap(draw)(keys)


def _noise_schedule(diffusion: ConfigDict) -> noise_schedules.NoiseSchedule:
    known = diffusion.schedule in _SCHEDULES
    require(known, "diffusion.schedule", diffusion.schedule, ", ".join(_SCHEDULES))
    for key in ("start", "end", "min_snr"):
        require(diffusion[key] is None, f"diffusion.{key}", diffusion[key], "None with strokes")
    for key, only in (("predicts", "eps"), ("process", "ddpm")):
        require(diffusion[key] == only, f"diffusion.{key}", diffusion[key], f"{only} with strokes")
    fewest = 21 if diffusion.schedule == "linear" else 2
    require(diffusion.steps >= fewest, "diffusion.steps", diffusion.steps, f"{fewest} or more")
    return noise_schedules.chirodiff_schedule(diffusion.schedule, diffusion.steps)


def _check_clip(config: ConfigDict) -> None:
    """Raise ConfigError if a sampler would divide by the cosine schedule's last alpha_bar."""
    sampler = config.sample.sampler  # that of DDPM takes eps as it is
    diverges = config.diffusion.schedule == "cosine" and sampler != "ddpm"
    accepted = f"a number, such as {SCALE:g}, with the cosine schedule and {sampler}"
    require(not diverges or config.sample.clip, "sample.clip", config.sample.clip, accepted)


def _build_network(config: ConfigDict) -> Denoiser:
    kind = kind_of(KINDS, config.task.kind)
    require(kind in KINDS, "task.kind", kind, ", ".join(KINDS))
    fixed = {"steps": config.diffusion.steps, "representation": config.task.representation}
    for key, value in fixed.items():
        given = config.model.get(key, value)
        where = "diffusion" if key == "steps" else "task"
        require(given == value, f"model.{key}", given, f"{value!r} ({where}.{key}), or unset")
    model = build_module(KINDS[kind], ConfigDict(config.model.to_dict() | fixed), "model")
    require(model.pe_dim % 2 == 0, "model.pe_dim", model.pe_dim, "even numbers")
    known, accepted = model.time_embedding in TIME_EMBEDDINGS, ", ".join(TIME_EMBEDDINGS)
    require(known, "model.time_embedding", model.time_embedding, accepted)
    if kind == "transformer":
        accepted = f"divisors of {model.hidden} (hidden)"
        require(model.hidden % model.heads == 0, "model.heads", model.heads, accepted)
    return model


FAMILY = Family(
    model=strokes_model,
    data=strokes_data,
    networks=KINDS,
    stamp=lambda config: stamp(config.task),
    facts=("lengths",),
    check_facts=_check_facts,
)
