"""Evaluate trained runs: draw samples from the same noise, measure them, count what they cost."""

import json
import logging
import pathlib
import time

import jax
import numpy as np
from PIL import Image
from rich.markup import escape
from rich.table import Table

from sparsejax import command_line
from sparsejax.atomic import write_text
from sparsejax.compact.states import without_inactive
from sparsejax.data.images import PICTURES, are_finite
from sparsejax.errors import ConfigError, require
from sparsejax.evaluation import closing
from sparsejax.evaluation.held_out import held_out_loss
from sparsejax.evaluation.provenance import provenance
from sparsejax.families import build_data, build_model
from sparsejax.metrics.extractors import EXTRACTORS
from sparsejax.metrics.measures import METRICS, SUBSET_SIZE, build_meter
from sparsejax.quantities import quantity
from sparsejax.rendering.images import save_pngs
from sparsejax.reports.report import write_report
from sparsejax.reports.results import measure_names
from sparsejax.seeds import check_seed
from sparsejax.sparsity.masks import path_name, summarize, unpack_bits
from sparsejax.sparsity.methods import get_method
from sparsejax.storage import require_writable
from sparsejax.training import runs
from sparsejax.training.metrics_log import read_metrics
from sparsejax.training.sampling import frozen_of, make_sampler
from sparsejax.training.state import ema_params_of, named_key

logger = logging.getLogger(__name__)

HELD_OUT = "held-out loss"
_SHOWN = 36
_DATA = ("name", "dataset", "source", "words", "image_size", "split", "reference_split")
_COMPARED = tuple(f"task.{key}" for key in _DATA)
# What the held-out loss depends on besides: its noise, and what the noise is added to.
_COMPARED_HELD_OUT = ("task.representation", "diffusion.steps", "diffusion.schedule")


def check_comparable(names, configs, data):
    """Refuse runs of different data, whose numbers mean different things.

    Args:
      names: of the runs, for the message.
      configs: their resolved configs.
      data: Data of the first.

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    for key in _COMPARED + (_COMPARED_HELD_OUT if data.held_out else ()):
        section, name = key.split(".")
        first = configs[0][section][name]
        for run, config in zip(names, configs, strict=True):
            ours = config[section][name]
            require(ours == first, key, ours, f"{first!r}, to compare {run}")


def meter_of(config, model=None, data=None, **options):
    """Return the Meter for the runs of a config.

    Args:
      config: resolved ConfigDict.
      model: its Model, if there is one already.
      data: its Data, if there is one already.
      **options: of `measures.build_meter`.

    Raises:
      ConfigError: the options can't work.
    """
    model, data = model or build_model(config), data or build_data(config)
    return build_meter(
        lambda: np.asarray(model.to_images(data.reference())),
        data.label,
        split=data.split,
        labelled=data.labelled,
        **options,
    )


def evaluate_run(workdir, meter, *, seed=0, batch=256, png=None):
    """Draw and measure the samples of one run (EMA weights), and count its costs.

    Leaves samples.png, real.png and masks.npz (packed bits) in workdir/evaluation.

    Args:
      workdir: of a finished run.
      meter: Meter.
      seed: of the noise, the same for all runs.
      batch: samples drawn at once, over all devices.
      png: folder for every sample as <index>.png; none are written if None.

    Returns:
      JSON-able dictionary: a line of results.jsonl.

    Raises:
      ConfigError: the workdir holds no run, or no whole checkpoint; a sample isn't finite.
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
    small_model, small = without_inactive(config.sparsity, model, params, state.masks)
    drawn, seconds = [], []

    def images():
        batches = _draw(small_model, frozen, small, meter.count, batch, seed, seconds)
        for index, samples in enumerate(batches):
            _check_finite(workdir, samples, index * batch)
            if model.statistics or not drawn:
                drawn.append(samples)
            pictures = model.to_images(samples)
            if png:
                save_pngs(png, pictures, index * batch)
            yield pictures

    measures = meter.measure(images())
    if model.statistics:
        found = model.statistics(np.concatenate(drawn), data.reference())
        measures |= {f"{name}@{meter.count}": value for name, value in found.items()}
    if data.held_out:
        measures[HELD_OUT] = held_out_loss(small_model, data.held_out(), small)
    _save_artifacts(workdir / "evaluation", model, drawn[0], data.reference(), state.masks)
    return (
        {"run": workdir.name, "seed": config.seed}
        | _topology(config, state, model)
        | closing.run_costs(config, model, params, state.masks, step, lines)
        | closing.measured(read_metrics(workdir / "metrics.jsonl"))
        | {"sampling_seconds": min(seconds[1:] or seconds), "reference": meter.reference}
        | {"measures": measures, "pictures": PICTURES, "config": config.to_dict()}
        | provenance()
    )


def check_batch(batch):
    """Check the number of samples to draw at once.

    Raises:
      ConfigError: it is less than 1.
    """
    if batch < 1:
        raise ConfigError(f"a batch of {batch}; accepted: 1 or more")


def _check_finite(workdir, samples, start):
    """Refuse samples that no picture can show: a number made of the others would hide them."""
    bad = start + np.flatnonzero(~are_finite(samples))
    if len(bad):
        raise ConfigError(
            f"{workdir}: {len(bad)} of samples {start} to {start + len(samples) - 1} hold values "
            f"that aren't finite, the first is {bad[0]}; accepted: finite ones (config.sample.clip "
            "keeps pixels in range; a diverged run has no samples to measure)"
        )


def _draw(model, frozen, params, count, batch, seed, seconds):
    """Yield samples in batches of one shape; seconds a sample are appended to `seconds`."""
    batch = min(batch, count)
    sample = make_sampler(model, frozen, named_key(seed, "evaluation"), batch)
    for start in range(0, count, batch):
        began = time.perf_counter()
        samples = sample(params, start)
        seconds.append((time.perf_counter() - began) / batch)
        yield samples[: count - start]


def _topology(config, state, model):
    """Describe what the run made of its topology."""
    sparsity = config.sparsity
    is_dynamic = get_method(sparsity.method).is_dynamic
    layers = summarize(state.params, state.masks).layers
    ever = summarize(state.params, unpack_bits(state.ever_active, state.params)).layers
    names = [name for name in model.layer_flops(state.params) if name in layers]
    sparse = [name for name in names if layers[name].density < 1]
    weights = sum(layers[name].weights for name in sparse)
    structure = "weight" if sparsity.method == "dense" else sparsity.structure
    return {
        "structure": structure,
        "block_size": sparsity.block_size if structure == "block" else None,
        "drop_fraction": sparsity.drop_fraction if is_dynamic else None,
        "update_interval": sparsity.update_interval if is_dynamic else None,
        "ever_active": sum(ever[name].active for name in sparse) / weights if sparse else 1.0,
        "layers": {name: [layers[name].active, layers[name].weights] for name in names},
    }


def _save_artifacts(folder, model, samples, real, masks):
    folder.mkdir(exist_ok=True)
    for name, examples in (("samples", samples), ("real", real)):
        Image.fromarray(model.render(examples[:_SHOWN])).save(folder / f"{name}.png")
    leaves = jax.tree_util.tree_leaves_with_path(masks)
    packed = {path_name(path): np.packbits(np.asarray(mask)) for path, mask in leaves if mask.ndim}
    np.savez(folder / "masks.npz", **packed)


def evaluate_runs(workdirs, output, *, seed=0, batch=256, png=False, **options):
    """Sample every run from the same noise, measure, and write results.jsonl and reports.

    Args:
      workdirs: workdirs of runs of one task on one dataset.
      output: folder to write to.
      seed: of the noise.
      batch: samples drawn at once, over all devices.
      png: whether to write every sample as output/samples/<run>/<index>.png too.
      **options: of `measures.build_meter`.

    Returns:
      List of dictionaries, a row a run.

    Raises:
      ConfigError: a workdir holds no run, the runs are of different data, or the options can't
        work.
    """
    check_batch(batch)
    check_seed(seed)
    workdirs, output = [pathlib.Path(workdir) for workdir in workdirs], pathlib.Path(output)
    names = [workdir.name for workdir in workdirs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"workdirs: several are named {twice[0]}; accepted: different names")
    configs = [runs.read_config(workdir) for workdir in workdirs]
    for workdir in workdirs:
        runs.require_checkpoint(workdir)
    data = build_data(configs[0])
    check_comparable(workdirs, configs, data)
    require_writable(output, "--output")
    for workdir in workdirs:
        require_writable(workdir / "evaluation", "a folder of --workdirs")
    meter = meter_of(configs[0], data=data, **options)
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    for workdir in workdirs:
        folder = output / "samples" / workdir.name if png else None
        rows.append(evaluate_run(workdir, meter, seed=seed, batch=batch, png=folder))
    write_text(output / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_report(output, rows, runs=workdirs[0].parent)
    _print_table(rows)
    print(f"In {output}: report.md, report.html, results.jsonl" + (", samples/" if png else ""))
    return rows


def add_measuring(parser):
    """Add the flags that say how samples are drawn and measured.

    Args:
      parser: `command_line.Parser`; `measuring` returns what was given.
    """
    parser.add_argument(
        "--samples",
        metavar="N",
        type=command_line.count,
        help="Samples per run (default: size of the reference set).",
    )
    parser.add_argument(
        "--batch",
        metavar="N",
        type=command_line.count,
        default=256,
        help="Samples drawn at once, over all devices.",
    )
    parser.add_argument(
        "--metrics",
        metavar="NAMES",
        type=command_line.words,
        default=",".join(METRICS),
        help="What to measure.",
    )
    parser.add_argument(
        "--extractor",
        type=command_line.one_of(EXTRACTORS),
        metavar="NAME",
        help=f"Of {', '.join(EXTRACTORS)} (default: a classifier, or pixels without labels).",
    )
    parser.add_argument(
        "--inception-weights", metavar="FILE", help="Weights of the FID Inception network."
    )
    parser.add_argument(
        "--kid-subset-size",
        metavar="N",
        type=command_line.count,
        default=SUBSET_SIZE,
        help="Size of the subsets that KID draws.",
    )


def measuring(flags):
    """Return the options of `evaluate_runs` and `sweep` that `add_measuring`'s flags give."""
    return {
        "batch": flags.batch,
        "count": flags.samples,
        "metrics": flags.metrics,
        "extractor": flags.extractor,
        "weights": flags.inception_weights,
        "subset_size": flags.kid_subset_size,
    }


def _print_table(rows):
    columns = {
        "run": lambda row: row["run"],
        "active parameters": lambda row: quantity(row["active_parameters"]),
        "FLOPs, forward": lambda row: quantity(row["forward_flops"]),
        "FLOPs, training": lambda row: quantity(row["training_flops_run"]),
        **{
            escape(name): lambda row, name=name: f"{row['measures'][name]:.4g}"
            for name in measure_names(rows)
        },
        "ms a sample": lambda row: f"{1e3 * row['sampling_seconds']:.1f}",
    }
    table = Table(title="From the same noise")
    for index, heading in enumerate(columns):
        table.add_column(heading, justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell(row) for cell in columns.values()))
    closing.console().print(table)
