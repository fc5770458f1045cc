"""Compare runs: samples from the same noise, distances, costs, one table."""

import logging
import pathlib
import time

import jax
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from rich.markup import escape
from rich.table import Table

from sparsejax.configuration import ConfigError, require
from sparsejax.data.images import label, to_pixels
from sparsejax.evaluation.classifier import feature_extractor
from sparsejax.evaluation.closing import console, final_loss, quantity, run_costs
from sparsejax.evaluation.distances import frechet_distance
from sparsejax.evaluation.held_out import held_out_loss
from sparsejax.tasks import build_task
from sparsejax.training import runs
from sparsejax.training.sampling import make_sampler
from sparsejax.training.state import named_key

_SHOWN = 36
_DATA = ("name", "dataset", "source", "words", "image_size", "split", "reference_split")
_COMPARED = tuple(f"task.{key}" for key in _DATA)
# What the held-out loss depends on besides: its noise, and what the noise is added to.
_COMPARED_HELD_OUT = ("task.representation", "diffusion.steps", "diffusion.schedule")
_HELD_OUT = "held-out loss"
_EXPLAINED = {
    "FD": """`{name}` is the Frechet distance between the features of as many samples
(EMA weights) and of all real examples of the reference split, in a classifier that this project
trains on the data's own labels. It is no FID and compares with nothing but itself.
""",
    _HELD_OUT: """The {name} is the mean loss of the EMA weights over the reference split, with
diffusion times and noise that are the same for every run.
""",
}

logger = logging.getLogger(__name__)


def evaluate_runs(workdirs, output, *, samples=None, seed=0, batch=256, png=False):
    """Sample every run from the same noise, measure, and write report.md and comparison.png.

    Args:
      workdirs: workdirs of runs of one task on one dataset.
      output: folder to write to.
      samples: how many samples a run; as many as there are real examples if None.
      seed: of the noise.
      batch: samples drawn at once, over all devices.
      png: whether to write every sample as output/samples/<run>/<index>.png too.

    Returns:
      List of dictionaries, a row a run.

    Raises:
      ConfigError: a workdir holds no run, or the runs are of different data.
    """
    if samples is not None and samples < 2:
        raise ConfigError(f"{samples} samples; accepted: 2 or more, for a covariance")
    if batch < 1:
        raise ConfigError(f"a batch of {batch}; accepted: 1 or more")
    configs = [runs.read_config(workdir) for workdir in workdirs]
    task = build_task(configs[0])
    _check_comparable(workdirs, configs, task)
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    reference = task.reference()
    count = samples or len(reference)
    metric, distance = _distance_to(task, reference, configs[0].task, count)
    rows, pictures = [], []
    for workdir, config in zip(workdirs, configs, strict=True):
        task, params, masks = runs.load_run(workdir)
        drawn, seconds = _draw(task, params, count, min(batch, count), seed)
        name = pathlib.Path(workdir).name
        rows.append(
            {"run": name}
            | run_costs(config, task, params, masks)
            | {"seed": config.seed, "loss": final_loss(workdir), "sampling_seconds": seconds}
            | ({_HELD_OUT: held_out_loss(task, params)} if task.held_out else {})
            | ({metric: distance(drawn)} if metric else {})
        )
        pictures.append(task.render(drawn[:_SHOWN]))
        if png:
            save_pngs(output / "samples" / name, task.to_images(drawn))
    real = task.render(reference[:_SHOWN])
    _save_comparison(output / "comparison.png", rows, metric, pictures, real)
    _write_report(output / "report.md", rows)
    _print_table(rows)
    print(f"In {output}: report.md, comparison.png" + (", samples/" if png else ""))
    return rows


def _check_comparable(workdirs, configs, task):
    for key in _COMPARED + (_COMPARED_HELD_OUT if task.held_out else ()):
        section, name = key.split(".")
        first = configs[0][section][name]
        for workdir, config in zip(workdirs, configs, strict=True):
            ours = config[section][name]
            require(ours == first, key, ours, f"{first!r}, to compare {workdir}")


def _distance_to(task, reference, settings, count):
    """Return the name of a distance to real examples, and a function of samples; or None twice."""
    features = task.labelled and feature_extractor(label(settings), *task.labelled())
    if features is None:
        logger.warning("no distances: %s has no labelled images for a classifier", label(settings))
        return None, None
    reference_features = features(reference)
    return (
        f"FD[classifier:{label(settings)}]@{count}",
        lambda drawn: frechet_distance(features(drawn), reference_features),
    )


def _draw(task, params, count, batch, seed):
    """Draw samples in batches of one shape; the first batch, which compiles, isn't timed."""
    params = jax.tree.map(jax.numpy.asarray, params)
    sample = make_sampler(task, named_key(seed, "evaluation"), batch)
    drawn = [sample(params)]
    began = time.perf_counter()
    drawn += [sample(params, start) for start in range(batch, max(count, batch + 1), batch)]
    seconds = (time.perf_counter() - began) / ((len(drawn) - 1) * batch)
    return np.concatenate(drawn)[:count], seconds


def save_pngs(folder, images):
    """Write images as 00000.png, 00001.png, ..., rounded as Latent Diffusion's own script does.

    Args:
      folder: created if need be; pictures of the same names are replaced.
      images: [count, height, width, channels] in [-1, 1], 1 or 3 channels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(to_pixels(images, truncate=True)):
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
            folder / f"{index:05d}.png"
        )


def _columns(rows):
    return {
        "run": lambda row: row["run"],
        "method": lambda row: row["method"],
        "S": lambda row: f"{row['sparsity']:g}",
        "active parameters": lambda row: quantity(row["active_parameters"]),
        "FLOPs, forward": lambda row: quantity(row["forward_flops"]),
        "FLOPs, training (formula)": lambda row: quantity(row["training_flops_formula"]),
        "FLOPs, training (run)": lambda row: quantity(row["training_flops_run"]),
        "training loss": lambda row: f"{row['loss']:.4f}",
        **{
            name: lambda row, name=name, digits=digits: f"{row[name]:.{digits}f}"
            for name, digits in _measures(rows).items()
        },
        "passes a sample": lambda row: f"{row['passes_per_sample']}",
        "ms a sample": lambda row: f"{1e3 * row['sampling_seconds']:.1f}",
    }


def _measures(rows):
    """Return the names of what was measured of quality, and the digits to show."""
    names = [name for name in rows[0] if name == _HELD_OUT or name.startswith("FD[")]
    return {name: 4 if name == _HELD_OUT else 2 for name in names}


def _print_table(rows):
    columns = _columns(rows)
    table = Table(title="Runs compared, from the same noise")
    for index, heading in enumerate(columns):
        table.add_column(escape(heading), justify="left" if index < 2 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(cell(row) for cell in columns.values()))
    console().print(table)


def _write_report(path, rows):
    columns = _columns(rows)
    body = [[cell(row) for cell in columns.values()] for row in rows]
    measures = _measures(rows)
    explained = "".join(
        _EXPLAINED["FD" if name != _HELD_OUT else name].format(name=name) for name in measures
    )
    text = f"""# Runs compared

{_markdown_table(list(columns), body)}
{"".join(_spread_over_seeds(rows, name, digits) for name, digits in measures.items())}
{explained}All runs sampled from the same noise. Training loss: mean of the last logged steps.
FLOPs are two for each multiply-add of a layer, times its density; training FLOPs are of the
whole run, by the formula of the RigL paper, and by what the run did. Device:
{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}.

![samples](comparison.png)
"""
    path.write_text(text)


def _markdown_table(header, body):
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _spread_over_seeds(rows, measure, digits):
    """Return a table of mean and standard deviation, if a method was run with several seeds."""
    groups = {}
    for row in rows:
        groups.setdefault((row["method"], row["sparsity"], row["steps"]), []).append(row[measure])
    if max(map(len, groups.values())) == 1:
        return ""
    body = []
    for (method, sparsity, steps), values in groups.items():
        spread = f"± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
        cells = [method, f"{sparsity:g}", str(steps), f"{np.mean(values):.{digits}f} {spread}"]
        body.append([*cells, ", ".join(f"{value:.{digits}f}" for value in values)])
    header = ["method", "S", "steps", f"{measure}, mean ± standard deviation", "each run"]
    return "\n" + _markdown_table(header, body)


def _save_comparison(path, rows, metric, pictures, real):
    """Show every run's samples side by side, each picture from the same noise, real ones last."""
    titles = [
        f"{row['method']}  S = {row['sparsity']:g}\n"
        f"{quantity(row['active_parameters'])} weights"
        + (f", distance {row[metric]:.2f}" if metric else "")
        + (f", held-out loss {row[_HELD_OUT]:.4f}" if _HELD_OUT in row else "")
        for row in rows
    ]
    columns = min(4, len(rows) + 1)
    lines = -(-(len(rows) + 1) // columns)
    figure = Figure(figsize=(3.2 * columns, 3.6 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel in panels:
        panel.axis("off")
    for panel, picture, title in zip(
        panels, [*pictures, real], [*titles, "real examples\n"], strict=False
    ):
        panel.imshow(picture)
        panel.set_title(title, fontsize=9)
    figure.savefig(path, dpi=130)
