"""What a finished run leaves to look at: pictures, and a table of what it cost."""

import json
import pathlib
import statistics
import sys
import time

import jax
from rich.console import Console
from rich.table import Table

from sparsejax.atomic import write_text
from sparsejax.errors import ConfigError
from sparsejax.families import build_data
from sparsejax.quantities import quantity
from sparsejax.reports import plots
from sparsejax.sparsity import costs
from sparsejax.sparsity.masks import dense_masks, summarize
from sparsejax.sparsity.methods import get_method
from sparsejax.training import runs
from sparsejax.training.metrics_log import read_metrics
from sparsejax.training.optimizers import update_schedule
from sparsejax.training.sampling import frozen_of, make_sampler
from sparsejax.training.state import named_key

_PICTURES = ("samples.png", "curves.png", "layers.png")
_SHOWN = {"method", "sparsity", "steps", "parameters", "active_parameters", "loss"}
_SHOWN |= {f"{what}_flops{kind}" for what in ("forward", "sampling") for kind in ("", "_dense")}
_SHOWN |= {f"training_flops_{kind}" for kind in ("dense", "formula", "run")}
_SHOWN |= {"step_seconds", "sampling_seconds", "peak_memory_bytes"}


def close_run(workdir):
    """Write samples.png, curves.png, layers.png and summary.json, and print the closing table.

    A run that was closed before only prints its table again, unless one of its files is missing.

    Args:
      workdir: of a finished run.

    Returns:
      The summary: a dictionary of what the table shows.
    """
    workdir = pathlib.Path(workdir)
    summary = _read_summary(workdir)
    if summary is None:
        if jax.process_index() == 0:
            runs.check_writable(workdir)
        summary = _close(workdir)
        if jax.process_index() == 0:
            write_text(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
    if jax.process_index() == 0:
        print_summary(summary, workdir)
    return summary


def _read_summary(workdir):
    """Return the summary of a run that is closed, or None: all its files are there."""
    try:
        summary = json.loads((workdir / "summary.json").read_text())
        files = summary.get("files", _PICTURES)  # older runs don't list them
        whole = summary["steps"] == runs.read_config(workdir).steps
        whole &= all((workdir / name).is_file() for name in files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return summary if whole and not _SHOWN - summary.keys() else None


def run_costs(config, model, params, masks, steps=None, lines=()):
    """Count parameters and FLOPs of a run, dense and sparse, from its masks and its schedule.

    Args:
      config: resolved ConfigDict.
      model: Model.
      params: parameters.
      masks: their masks.
      steps: how many were taken so far; all of them if None.
      lines: metrics lines of the run. Of a method that changes density, they say what a step cost
        before each topology update.

    Returns:
      Dictionary of numbers; FLOPs of training are of all these steps, at the run's batch size.
      Parameters, density and FLOPs of a forward pass are those of `masks`.

    Raises:
      ConfigError: a method changes density, and an update is missing in `lines`.
    """
    method = config.sparsity.method
    steps = config.steps if steps is None else steps
    layer_flops = model.layer_flops(params)
    dense, sparse = (costs.forward_flops(layer_flops, m) for m in (dense_masks(params), masks))
    counts = summarize(params, masks)
    examples = steps * config.batch_size
    periods = _periods(config.sparsity, steps, sparse, lines)
    mean = sum(count * flops for count, flops, _ in periods) / steps if steps else sparse
    by_formula = costs.training_flops(method, mean, dense, config.sparsity.update_interval)
    as_run = sum(
        costs.run_flops(method, flops, dense, count, updates) for count, flops, updates in periods
    )
    return {
        "method": method,
        "sparsity": 0.0 if method == "dense" else config.sparsity.level,
        "steps": steps,
        "parameters": counts.total.weights,
        "active_parameters": counts.total.active,
        "density": counts.sparsifiable.density,
        "forward_flops_dense": dense,
        "forward_flops": sparse,
        "training_flops_dense": 3 * dense * examples,
        "training_flops_formula": by_formula * examples,
        "training_flops_run": as_run * config.batch_size,
        "passes_per_sample": model.passes_per_sample,
        "sampling_flops_dense": model.passes_per_sample * dense,
        "sampling_flops": model.passes_per_sample * sparse,
    }


def _periods(sparsity, steps, flops_now, lines):
    """Split a run into periods of one density: (steps, FLOPs of a forward pass, updates)."""
    schedule = update_schedule(sparsity)
    if not get_method(sparsity.method).changes_density:
        return [(steps, flops_now, schedule.count_due(steps))]
    key = "forward_flops_before"
    made = {line["step"]: line[key] for line in lines if key in line and line["step"] <= steps}
    due = [step for step in range(1, steps + 1) if schedule.is_due(step)]
    missing = [step for step in due if step not in made]
    if missing:
        raise ConfigError(
            f"metrics.jsonl doesn't hold the topology update of step {missing[0]}, so what method "
            f"{sparsity.method!r} cost can't be counted"
        )
    ends = zip([0, *due], due, strict=False)
    periods = [(end - begin, made[end], 1) for begin, end in ends]
    return [*periods, (steps - max(due, default=0), flops_now, 0)]


def measured(lines):
    """Return what a run's metrics lines say of its loss, time and memory.

    Args:
      lines: as `training.metrics_log.read_metrics` returns them.

    Returns:
      Dictionary: the training `loss` of the last logged steps; `step_seconds`, the median over
      logged intervals, without compilation and pictures; `training_seconds`, with both, starting
      up not included; `peak_memory_bytes` of the process or device that trained. None where the
      lines don't say.
    """
    logged = [line for line in lines if "loss" in line]
    timed = [line for line in logged if line.get("steps_per_second")]
    # In the first interval everything is cold, and in old runs it compiles.
    speeds = [line["steps_per_second"] for line in timed[1:] or timed]
    intervals = zip([0, *(line["step"] for line in logged)], logged, strict=False)
    memory = [line["peak_memory_bytes"] for line in logged if "peak_memory_bytes" in line]
    return {
        "loss": logged[-1]["loss"] if logged else None,
        "step_seconds": 1 / statistics.median(speeds) if speeds else None,
        "training_seconds": sum(_seconds(before, line) for before, line in intervals),
        "peak_memory_bytes": max(memory, default=None),
    }


def _seconds(before, line):
    """Return the seconds of a logged interval that began after step `before`."""
    if "interval_seconds" in line:
        return line["interval_seconds"]
    speed = line.get("steps_per_second")  # of a run that is older than interval_seconds
    return (line["step"] - before) / speed if speed else 0.0


def _close(workdir):
    config = runs.read_config(workdir)
    model, params, masks = runs.load_run(workdir)
    params, masks = jax.tree.map(jax.numpy.asarray, (params, masks))
    lines = read_metrics(workdir / "metrics.jsonl")
    count = config.sample.count
    key = named_key(config.seed, "samples")
    data = build_data(config)
    sample = make_sampler(model, frozen_of(model, data), key, count)
    samples = sample(params)
    began = time.perf_counter()
    sample(params)
    seconds = time.perf_counter() - began

    summary = run_costs(config, model, params, masks, lines=lines)
    if jax.process_index() == 0:
        real = data.reference()[:count]
        plots.save_samples(workdir / "samples.png", model.render(samples), model.render(real))
        plots.save_curves(workdir / "curves.png", lines)
        counts = summarize(params, masks).layers
        in_order = {name: counts[name] for name in model.layer_flops(params) if name in counts}
        model.illustrate(samples, workdir)
        model.export(params, workdir)
        plots.save_layer_densities(workdir / "layers.png", in_order, summary["sparsity"])
    return (
        summary
        | measured(lines)
        | {
            "sampling_seconds": seconds / count,
            "files": [*_PICTURES, *model.closing_files],
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        }
    )


def print_summary(summary, workdir):
    """Print the closing table: dense against sparse, and what was measured.

    Args:
      summary: from `close_run`.
      workdir: named below the table.
    """
    title = f"{summary['method']}, S = {summary['sparsity']:g}, {summary['steps']} steps"
    table = Table(title=title, caption="FLOPs: two a multiply-add, times density")
    for heading in ("", "dense", "this run", "ratio"):
        table.add_column(heading, justify="left" if not heading else "right")

    def row(name, dense, ours):
        table.add_row(name, quantity(dense), quantity(ours), f"{ours / dense:.3f}")

    row("parameters", summary["parameters"], summary["active_parameters"])
    row("FLOPs, one forward pass", summary["forward_flops_dense"], summary["forward_flops"])
    dense_training = summary["training_flops_dense"]
    row("FLOPs, training (paper's formula)", dense_training, summary["training_flops_formula"])
    row("FLOPs, training (this run's updates)", dense_training, summary["training_flops_run"])
    row("FLOPs, one sample", summary["sampling_flops_dense"], summary["sampling_flops"])
    table.add_section()

    def measured_row(name, key, write):
        value = summary[key]
        table.add_row(name, "", "not recorded" if value is None else write(value), "")

    def milliseconds(seconds):
        return f"{1e3 * seconds:.1f} ms"

    measured_row("training loss at the end", "loss", "{:.4f}".format)
    measured_row("measured: one step", "step_seconds", milliseconds)
    measured_row("measured: one sample", "sampling_seconds", milliseconds)
    memory = "measured: peak memory of training"
    measured_row(memory, "peak_memory_bytes", lambda value: f"{quantity(value)}B")
    console().print(table)
    print(f"In {workdir}: samples.png, curves.png, layers.png, checkpoints/, metrics.jsonl")


def console():
    """Return a rich console that doesn't squeeze tables where there is no terminal."""
    return Console() if sys.stdout.isatty() else Console(width=220)
