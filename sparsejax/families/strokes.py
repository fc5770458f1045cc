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
from sparsejax.data.strokes import MAX_POINTS, SCALE
from sparsejax.diffusion import noise_schedules, process
from sparsejax.errors import ConfigError, require
from sparsejax.families.arguments import build_module, check_batch_size, is_count, require_fact
from sparsejax.families.conditioning import (
    check_classes,
    check_conditioning,
    classes_of,
    drop_labels,
    grid_columns,
    guided_passes,
    guided_span,
    in_turn,
    sampled_labels,
)
from sparsejax.families.family import Data, Facts, Family, Model
from sparsejax.families.sampling import check_sampling, visited_times, warnings_of
from sparsejax.families.stroke_sampling import lengths_by_label, sample_strokes, to_drawings
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
        samples are drawn from; for a network with labels also their `labels`, and lengths are those
        of drawings of the same label. Without them the Model can neither sample nor count FLOPs.

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
    classes = network.classes
    check_conditioning(config, classes)
    _check_clip(config)
    constants = _constants(network)
    span = guided_span(config.sample, lambda t: t * schedule.steps)
    columns = grid_columns(config.sample, classes)
    lengths = np.asarray(facts["lengths"], np.int32) if facts else None
    if lengths is not None:
        _check_lengths(config, data.bucket_bounds(lengths, 1)[-1])

    def init(key: PRNGKey) -> Params:
        return network.init(key, *_inputs(network, 1))["params"]

    def sample(*args: Input, **options: Input) -> Array:
        bounds = data.bucket_bounds(_known(lengths), config.task.buckets)
        return sample_strokes(schedule, bounds, classes, span, config, *args, **options)

    def frozen() -> Frozen:
        if config.sample.lengths:
            return {"lengths": np.asarray(config.sample.lengths, np.int32)}
        if not (classes and facts):
            return {"lengths": _known(lengths)}
        return lengths_by_label(_known(lengths), np.asarray(facts["labels"]), classes)

    def layer_flops_of_mean_drawing(params: Params) -> LayerFlops:
        mean_length = round(_known(lengths).mean())
        return layer_flops(network, params, *_inputs(network, mean_length), **constants)

    return Model(
        network=network,
        init=init,
        apply=functools.partial(_apply, network, constants),
        loss=functools.partial(_loss, schedule, network),
        sample=sample,
        render=functools.partial(stroke_grid, columns=columns),
        layer_flops=layer_flops_of_mean_drawing,
        passes_per_sample=guided_passes(visited_times(config, schedule), span),
        labels=functools.partial(sampled_labels, config.sample, classes) if classes else None,
        schedule=schedule,
        warnings=warnings_of(schedule),
        frozen=frozen,
        units=bigru_units if isinstance(network, BiGRUDenoiser) else lambda params: {},
        widths=_widths(network),
        narrow=lambda width: {"hidden": width},
        to_images=to_images,
        statistics=compare_strokes,
        illustrate=functools.partial(_illustrate, columns=columns),
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
    sketches = _load(config, settings.split)
    bounds = data.bucket_bounds(sketches.lengths, settings.buckets)
    _check_lengths(config, bounds[-1])
    labelled_split = settings.labelled_split or settings.split
    labels = data.load_labels(settings, labelled_split)
    of_reference = functools.partial(data.load_labels, settings, settings.reference_split)
    classes = classes_of(config)

    def batches(start: int, stop: int) -> Batches:
        share = 100 * data.padding(sketches.lengths, bounds)
        logger.info("batches are padded to %s points; %.0f %% is padding", bounds, share)
        return data.sketch_batches(sketches, bounds, config.batch_size, config.seed, start, stop)

    def check() -> None:
        check_batch_size(config, len(sketches.lengths))
        if sketches.labels is not None:
            found = _label_count(settings, sketches.labels, of_reference())
            check_classes(classes, found, label(settings))

    def sizes() -> dict[str, int]:
        check()
        others = data.load_sketches(settings, settings.reference_split).lengths
        return {settings.split: len(sketches.lengths), settings.reference_split: len(others)}

    def held_out() -> Batches:
        others = _load(config, settings.reference_split)
        return data.ordered_batches(others, _HELD_OUT_BUCKETS, _HELD_OUT_BATCH)

    def labelled() -> tuple[Pictures, NumpyArray]:
        # Spread over the split: if it is sorted by label, the first ones have few labels.
        chosen = spread_over(len(labels), LABELLED)
        return to_images(_drawings(settings, labelled_split, chosen)), labels[chosen]

    def training(most: int) -> NumpyArray:
        chosen = spread_over(len(sketches.lengths), most)
        return _drawings(settings, settings.split, chosen)

    def shown(count: int) -> NumpyArray:
        chosen = in_turn(of_reference(), classes, count)
        return _drawings(settings, settings.reference_split, chosen)

    return Data(
        batches=batches,
        reference=lambda: _drawings(settings, settings.reference_split),
        label=label(settings),
        split=f"{settings.reference_split} as rasters {RASTER_VERSION} of {RASTER_SIZE} pixels",
        facts=functools.partial(_facts, sketches),
        prepare=check,
        sizes=sizes,
        held_out=held_out,
        labelled=labelled if np.ptp(labels) else None,
        training=training if is_held_out(settings, open_builder(settings)) else None,
        reference_labels=of_reference if classes else None,
        shown=shown if classes and config.sample.label is None else None,
    )


def _label_count(settings: ConfigDict, labels: NumpyArray, others: NumpyArray) -> int:
    """Return the number of labels of both splits; 1 if the drawings to train on have none."""
    if labels.min() < 0:
        return 1
    return len(set(settings.words)) or 1 + int(max(labels.max(), others.max()))


def _load(config: ConfigDict, split: str) -> data.Sketches:
    """Return the drawings of a split, with labels for a network that takes them."""
    sketches = data.load_sketches(config.task, split)
    if not classes_of(config):
        return sketches
    return sketches._replace(labels=data.load_labels(config.task, split))


def _drawings(settings: ConfigDict, split: str, indices: NumpyArray | None = None) -> NumpyArray:
    """Return some drawings of a split, or all, as `strokes_model` samples them."""
    sketches = data.load_sketches(settings, split)
    chosen = np.arange(len(sketches.lengths)) if indices is None else indices
    batch = data.pad(sketches, chosen, data.bucket_bounds(sketches.lengths, 1)[0])
    return np.asarray(to_drawings(batch["points"], batch["lengths"], settings.representation))


def _facts(sketches: data.Sketches) -> Facts:
    facts = {"lengths": sketches.lengths.tolist()}
    return facts if sketches.labels is None else facts | {"labels": sketches.labels.tolist()}


def _check_facts(config: ConfigDict, facts: Facts) -> None:
    lengths, accepted = facts["lengths"], f"whole numbers from 1 to {MAX_POINTS}"
    are_some = isinstance(lengths, list) and lengths
    require_fact(are_some, "lengths", lengths, f"a list of {accepted}")
    odd = [n for n in lengths if not (is_count(n) and n <= MAX_POINTS)]
    require_fact(not odd, "lengths", odd[:1], accepted)
    classes = classes_of(config)
    if classes:
        labels, accepted = facts.get("labels", []), f"whole numbers from 0 to {classes - 1}"
        fit = isinstance(labels, list) and len(labels) == len(lengths)
        require_fact(fit, "labels", labels, f"a list of {len(lengths)} {accepted}")
        odd = [n for n in labels if not (type(n) is int and 0 <= n < classes)]
        require_fact(not odd, "labels", odd[:1], accepted)


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


def _illustrate(samples: Samples, folder: pathlib.Path, *, columns: int | None) -> None:
    write_text(folder / "samples.svg", svg_grid(samples[:_ILLUSTRATED], columns=columns))
    with replacing(folder / "samples.gif") as partial:
        to_gif(samples[:_ILLUSTRATED], partial, columns=columns)


def _inputs(network: Denoiser, length: int) -> tuple[Array, ...]:
    points, t = jnp.zeros((1, length, 3)), jnp.zeros(1, jnp.int32)
    inputs = points, t, jnp.full(1, length), points[..., 0]
    return (*inputs, t) if network.classes else inputs


def _constants(model: Denoiser) -> PyTree:
    """Return the model's fixed random matrices, the same in every run and every version of JAX."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *_inputs(model, 1))
    stream = np.random.RandomState(0)  # numpy guarantees the same numbers in every version
    return {
        name: jax.tree.map(lambda x: np.float32(stream.standard_normal(x.shape)), collection)
        for name, collection in shapes.items()
        if name != "params"
    }


def _apply(
    network: Denoiser,
    constants: PyTree,
    params: Params,
    noisy: Array,
    t: Array,
    lengths: Array,
    timestamps: Array,
    labels: Array | None = None,
    *,
    train: bool = False,
    rngs: dict[str, Keys] | None = None,
) -> PyTree:
    del rngs
    variables = {"params": params} | constants
    return network.apply(variables, noisy, t, lengths, timestamps, labels, train=train)


def _loss(
    schedule: noise_schedules.NoiseSchedule,
    network: Denoiser,
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
    inputs: tuple[Array, ...] = (noisy, t, lengths, batch["times"])
    if network.classes:
        rate = network.label_dropout if train else 0.0
        inputs += (drop_labels(batch["label"], keys, rate, network.classes),)
    eps = apply(params, *inputs, train=train)
    return jnp.mean(process.sequence_eps_loss(eps, noise, lengths))


def _noise_schedule(diffusion: ConfigDict) -> noise_schedules.NoiseSchedule:
    known = diffusion.schedule in _SCHEDULES
    require(known, "diffusion.schedule", diffusion.schedule, ", ".join(_SCHEDULES))
    for key in ("start", "end", "min_snr"):
        require(diffusion[key] is None, f"diffusion.{key}", diffusion[key], "None with strokes")
    only_these = {"predicts": "eps", "process": "ddpm", "times": "logit_normal", "sigma_data": 0.5}
    for key, only in only_these.items():
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
