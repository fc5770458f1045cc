"""Evaluate one run: draw samples, measure them, count the run's costs."""

import functools
import logging
import pathlib
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from sparsejax.atomic import replacing, write_npz
from sparsejax.compact.states import without_inactive
from sparsejax.errors import ConfigError
from sparsejax.evaluation import closing
from sparsejax.evaluation.held_out import held_out_loss
from sparsejax.evaluation.provenance import provenance
from sparsejax.families import Data, Model, build_data, build_model
from sparsejax.metrics.by_label import OF_LABEL
from sparsejax.metrics.measures import Meter, build_meter
from sparsejax.rendering.images import remove_pngs_from, save_pngs
from sparsejax.rendering.pixels import PICTURES, are_finite
from sparsejax.reports.results import HELD_OUT, Row
from sparsejax.sparsity.masks import path_name, summarize, unpack_bits
from sparsejax.training import runs
from sparsejax.training.keys import named_key
from sparsejax.training.metrics_log import read_metrics
from sparsejax.training.plan import Plan, build_plan
from sparsejax.training.sampling import frozen_of, make_sampler
from sparsejax.training.state import TrainState, ema_params_of
from sparsejax.types import Frozen, Masks, NumpyArray, Params, PathLike, Samples, Value

logger = logging.getLogger(__name__)

_SHOWN = 36


def meter_of(
    config: ConfigDict, model: Model | None = None, data: Data | None = None, **options: Value
) -> Meter:
    """Return the Meter for runs of a config.

    Args:
      config: resolved ConfigDict.
      model: the config's Model (default: built from it).
      data: the config's Data (default: built from it).
      **options: see `measures.build_meter`.

    Raises:
      ConfigError: the options are invalid.
    """
    model, data = model or build_model(config), data or build_data(config)
    training = data.training and functools.partial(_training_pictures, model, data.training)
    return build_meter(
        lambda: np.asarray(model.to_images(data.reference())),
        data.label,
        split=data.split,
        labelled=data.labelled,
        training=training,
        reference_labels=data.reference_labels,
        **options,
    )


def _training_pictures(
    model: Model, training: Callable[[int], NumpyArray], most: int
) -> NumpyArray:
    return np.asarray(model.to_images(training(most)))


def evaluate_run(
    workdir: PathLike,
    meter: Meter,
    *,
    seed: int = 0,
    batch: int = 256,
    png: PathLike | None = None,
) -> Row:
    """Draw and measure the samples of one run (EMA weights), and count its costs.

    Writes samples.png, real.png and masks.npz (mask bits) to workdir/evaluation.

    Args:
      workdir: workdir of a finished run.
      meter: Meter.
      seed: seed of the sampling noise, shared by all runs.
      batch: number of samples drawn at once, over all devices.
      png: folder to write every sample to as <index>.png (default: none).

    Returns:
      A row: JSON-serializable, one line of results.jsonl.

    Raises:
      ConfigError: the workdir holds no run or no intact checkpoint, or a sample isn't finite.
    """
    check_batch(batch)
    workdir = pathlib.Path(workdir)
    config = runs.read_config(workdir)
    model, state = runs.load_state(workdir)
    data = build_data(config)
    frozen = frozen_of(model, data)
    for warning in model.warnings:
        logger.warning("%s: %s", workdir, warning)
    step = int(state.step)
    lines = runs.read_metrics_until(workdir, step)
    params = jax.tree.map(jax.numpy.asarray, ema_params_of(state))
    plan = build_plan(config, model)
    network = plan.compact(state.masks)
    small_model, small = without_inactive(network, model, params, state.masks)
    drawn: list[Samples] = []
    seconds: list[float] = []

    def images() -> Iterator[NumpyArray]:
        batches = _draw(small_model, frozen, small, meter.count, batch, seed, seconds)
        for index, samples in enumerate(batches):
            _check_finite(workdir, samples, index * batch)
            if model.statistics or not drawn:
                drawn.append(samples)
            pictures = model.to_images(samples)
            if png:
                save_pngs(png, pictures, index * batch)
            yield pictures
        if png:
            remove_pngs_from(png, meter.count)

    labels = np.asarray(model.labels(jax.numpy.arange(meter.count))) if model.labels else None
    measures = meter.measure(images(), labels)
    if model.statistics:
        found = model.statistics(np.concatenate(drawn), data.reference())
        measures |= {f"{name}@{meter.count}": value for name, value in found.items()}
    if data.held_out:
        measures[HELD_OUT] = held_out_loss(small_model, data.held_out(), small)
    real = data.shown(_SHOWN) if data.shown else data.reference()
    _save_artifacts(workdir / "evaluation", model, drawn[0], real, state.masks)
    return (
        {"run": workdir.name, "seed": config.seed}
        | _topology(config, plan, state, model)
        | closing.run_costs(config, model, plan, params, state.masks, step, lines)
        | closing.measured(read_metrics(workdir / "metrics.jsonl"))
        | {"sampling_seconds": min(seconds[1:] or seconds), "reference": meter.reference}
        | _by_label(measures)
        | {"pictures": PICTURES, "config": config.to_dict()}
        | provenance()
    )


def check_batch(batch: int) -> None:
    """Check the number of samples to draw at once.

    Raises:
      ConfigError: it is less than 1.
    """
    if batch < 1:
        raise ConfigError(f"batch is {batch}; accepted: 1 or more")


def _check_finite(workdir: pathlib.Path, samples: Samples, start: int) -> None:
    """Raise ConfigError if samples aren't finite: metrics of the others would hide them."""
    bad = start + np.flatnonzero(~are_finite(samples))
    if len(bad):
        raise ConfigError(
            f"{workdir}: {len(bad)} of samples {start} to {start + len(samples) - 1} hold values "
            f"that aren't finite, the first is {bad[0]}; accepted: finite ones (config.sample.clip "
            "keeps pixels in range; a diverged run has no samples to measure)"
        )


def _draw(
    model: Model,
    frozen: Frozen,
    params: Params,
    count: int,
    batch: int,
    seed: int,
    seconds: list[float],
) -> Iterator[Samples]:
    """Yield samples in batches of one shape; append the seconds per sample to `seconds`."""
    batch = min(batch, count)
    sample = make_sampler(model, frozen, named_key(seed, "evaluation"), batch)

    def timed(start: int) -> Samples:
        began = time.perf_counter()
        samples = sample(params, start)
        seconds.append((time.perf_counter() - began) / batch)
        return samples

    for start in range(0, count, batch):
        yield timed(start)[: count - start]
    if len(seconds) == 1:  # which holds compiling
        timed(0)


def _topology(config: ConfigDict, plan: Plan, state: TrainState, model: Model) -> Row:
    """Return the columns of a row that describe masks and topology updates."""
    sparsity, is_dynamic = config.sparsity, plan.method.is_dynamic
    takes_fraction = is_dynamic and plan.method.uses_fraction
    layers = summarize(state.params, state.masks).layers
    ever = summarize(state.params, unpack_bits(state.ever_active, state.params)).layers
    names = [name for name in model.layer_flops(state.params) if name in layers]
    sparse = [name for name in names if layers[name].density < 1]
    weights = sum(layers[name].weights for name in sparse)
    return {
        "structure": plan.structure,
        "block_size": sparsity.block_size if plan.structure == "block" else None,
        "fan_in": sparsity.fan_in if plan.structure == "block" else None,
        "drop_fraction": sparsity.drop_fraction if takes_fraction else None,
        "update_interval": sparsity.update_interval if is_dynamic else None,
        "ever_active": sum(ever[name].active for name in sparse) / weights if sparse else 1.0,
        "layers": {name: [layers[name].active, layers[name].weights] for name in names},
    }


def _by_label(measures: dict[str, float]) -> Row:
    """Return the entries of a row for measures: those of single labels stand by themselves."""
    of_labels = {name: value for name, value in measures.items() if OF_LABEL in name}
    overall = {name: value for name, value in measures.items() if name not in of_labels}
    return {"measures": overall} | ({"by_label": of_labels} if of_labels else {})


def _save_artifacts(
    folder: pathlib.Path, model: Model, samples: Samples, real: Samples, masks: Masks
) -> None:
    folder.mkdir(exist_ok=True)
    for name, examples in (("samples", samples), ("real", real)):
        with replacing(folder / f"{name}.png") as partial:
            Image.fromarray(model.render(examples[:_SHOWN])).save(partial)
    leaves = jax.tree_util.tree_leaves_with_path(masks)
    packed = {path_name(path): np.packbits(np.asarray(mask)) for path, mask in leaves if mask.ndim}
    write_npz(folder / "masks.npz", packed)
