"""Close a finished run: write its pictures and print a table of its costs."""

import contextlib
import json
import logging
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import TypeAlias

import jax
import numpy as np
from jax.tree_util import tree_leaves_with_path
from rich.console import Console
from rich.table import Table

from sparsejax.atomic import write_text
from sparsejax.errors import ConfigError
from sparsejax.evaluation.costs import measured, run_costs
from sparsejax.families import build_data
from sparsejax.lease import Guard
from sparsejax.quantities import quantity
from sparsejax.reports import plots
from sparsejax.reports.results import is_number
from sparsejax.sparsity.masks import path_name, summarize
from sparsejax.storage import read_object
from sparsejax.training import runs
from sparsejax.training.holding import hold_workdir
from sparsejax.training.keys import named_key
from sparsejax.training.metrics_log import read_metrics
from sparsejax.training.plan import build_plan
from sparsejax.training.sampling import frozen_of, make_sampler
from sparsejax.types import Masks, NumpyArray, PathLike, Value

Summary: TypeAlias = dict[str, Value]  # content of summary.json

logger = logging.getLogger(__name__)

_PICTURES = ("samples.png", "curves.png", "layers.png")
_MEASURED = ("loss", "step_seconds", "sampling_seconds", "peak_memory_bytes")
_SHOWN = {"method", "sparsity", "steps", "parameters", "active_parameters", "loss"}
_SHOWN |= {f"{what}_flops{kind}" for what in ("forward", "sampling") for kind in ("", "_dense")}
_SHOWN |= {f"training_flops_{kind}" for kind in ("dense", "formula", "run")}
_SHOWN |= {"step_seconds", "sampling_seconds", "peak_memory_bytes"}


def close_run(workdir: PathLike, guard: Guard | None = None) -> Summary:
    """Write samples.png, curves.png, layers.png and summary.json, and print the closing table.

    If the run is already closed and none of its files is missing, only print the table again.

    Args:
      workdir: workdir of a finished run.
      guard: guard of the workdir's lease, if the caller holds it.

    Returns:
      The numbers in the table, by name.

    Raises:
      ConfigError: another process writes to the workdir, or files can't be written there.
    """
    workdir = pathlib.Path(workdir)
    summary = read_summary(workdir)
    if summary is None:
        with contextlib.ExitStack() as stack:
            guard = guard or stack.enter_context(hold_workdir(workdir))
            if jax.process_index() == 0:
                print("drawing samples and pictures", flush=True)
            summary = _close(workdir, guard)
            guard()
            if jax.process_index() == 0:
                write_text(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
    if jax.process_index() == 0:
        print_summary(summary, workdir)
    return summary


def read_summary(workdir: PathLike) -> Summary | None:
    """Read the summary of a closed run.

    Args:
      workdir: workdir of a run.

    Returns:
      What `close_run` returned; None if summary.json is missing, damaged or of fewer steps than the
      run's config has, or if one of the files that it lists is missing.
    """
    workdir = pathlib.Path(workdir)
    path = workdir / "summary.json"
    if not os.path.lexists(path):
        return None
    try:
        summary = read_object(path)
        require_summary(summary, path)
    except ConfigError as error:
        logger.warning("%s; it is computed again", error)
        return None
    files = summary.get("files", _PICTURES)  # older runs don't list them
    whole = summary["steps"] == runs.read_config(workdir).steps
    return summary if whole and all((workdir / name).is_file() for name in files) else None


def require_summary(summary: Summary, path: pathlib.Path) -> None:
    """Raise ConfigError unless a JSON object holds all that the closing table shows.

    Args:
      summary: content of a summary.json.
      path: of the file, for the message.

    Raises:
      ConfigError: a value is missing or of the wrong kind; names it.
    """
    for name in sorted(_SHOWN | (summary.keys() & {"density"})):
        value = summary.get(name)
        fits = isinstance(value, str) if name == "method" else is_number(value)
        if name.endswith(("_dense", "parameters")):  # by some of which others are divided
            fits = fits and value is not None and value > 0
        not_recorded = value is None and name in summary and name in _MEASURED
        if not fits and not not_recorded:
            raise ConfigError(f"{path} is damaged: its {name} is {repr(value)[:50]}")
    files = summary.get("files", [])
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise ConfigError(f"{path} is damaged: its files are {repr(files)[:50]}")


def masks_by_path(masks: Masks) -> dict[str, NumpyArray]:
    """Return the masks of sparse layers by path, bool arrays of the weights' shapes."""
    found = {path_name(path): np.asarray(mask) for path, mask in tree_leaves_with_path(masks)}
    return {name: mask for name, mask in found.items() if mask.ndim}


def _close(workdir: pathlib.Path, guard: Guard) -> Summary:
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

    summary = run_costs(config, model, build_plan(config, model), params, masks, lines=lines)
    guard()
    if jax.process_index() == 0:
        real = data.shown(count) if data.shown else data.reference()[:count]
        plots.save_samples(workdir / "samples.png", model.render(samples), model.render(real))
        plots.save_curves(workdir / "curves.png", lines)
        counts = summarize(params, masks).layers
        in_order = {name: counts[name] for name in model.layer_flops(params) if name in counts}
        model.illustrate(samples, workdir)
        model.export(params, workdir)
        shown = (in_order, summary["sparsity"], masks_by_path(masks))
        plots.save_layers(workdir / "layers.png", *shown)
    return (
        summary
        | measured(lines)
        | {
            "sampling_seconds": seconds / count,
            "files": [*_PICTURES, *model.closing_files],
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        }
    )


def print_summary(summary: Summary, workdir: PathLike) -> None:
    """Print the closing table: costs of dense and sparse, and measurements.

    Args:
      summary: what `close_run` returns.
      workdir: workdir of the run, named below the table.
    """
    title = f"{summary['method']}, S = {summary['sparsity']:g}, {summary['steps']} steps"
    table = Table(title=title, caption="FLOPs: two per multiply-add, times density")
    for heading in ("", "dense", "this run", "ratio"):
        table.add_column(heading, justify="left" if not heading else "right")

    def row(name: str, dense: float, ours: float) -> None:
        table.add_row(name, quantity(dense), quantity(ours), f"{ours / dense:.3f}")

    actual = f"{1 - summary['density']:.4f}" if "density" in summary else "not recorded"
    table.add_row(f"actual S, of {summary['sparsity']:g} requested", "0", actual, "")
    row("parameters", summary["parameters"], summary["active_parameters"])
    row("FLOPs, one forward pass", summary["forward_flops_dense"], summary["forward_flops"])
    dense_training = summary["training_flops_dense"]
    row("FLOPs, training (paper's formula)", dense_training, summary["training_flops_formula"])
    row("FLOPs, training (this run's updates)", dense_training, summary["training_flops_run"])
    row("FLOPs, one sample", summary["sampling_flops_dense"], summary["sampling_flops"])
    table.add_section()

    def measured_row(name: str, key: str, write: Callable[[float], str]) -> None:
        value = summary[key]
        table.add_row(name, "", "not recorded" if value is None else write(value), "")

    def milliseconds(seconds: float) -> str:
        return f"{1e3 * seconds:.1f} ms"

    measured_row("training loss at the end", "loss", "{:.4f}".format)
    measured_row("measured: one step", "step_seconds", milliseconds)
    measured_row("measured: one sample", "sampling_seconds", milliseconds)
    memory = "measured: peak memory of training"
    measured_row(memory, "peak_memory_bytes", lambda value: f"{quantity(value)}B")
    console().print(table)
    print(f"In {workdir}: samples.png, curves.png, layers.png, checkpoints/, metrics.jsonl")


def console() -> Console:
    """Return a console that prints tables at full width if there is no terminal."""
    return Console() if sys.stdout.isatty() else Console(width=220)
