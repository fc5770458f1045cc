"""Compare runs: evaluate each from the same noise, write one results file and one report."""

import functools
import json
import logging
import pathlib
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict
from rich.markup import escape
from rich.table import Table

from sparsejax.atomic import write_text
from sparsejax.errors import ConfigError, require
from sparsejax.evaluation import closing
from sparsejax.evaluation.evaluate import check_batch, evaluate_run, meter_of
from sparsejax.families import Data, build_data
from sparsejax.families.conditioning import classes_of
from sparsejax.quantities import quantity
from sparsejax.reports.report import write_report
from sparsejax.reports.results import Row, measure_names
from sparsejax.seeds import check_seed
from sparsejax.storage import require_writable
from sparsejax.training import checkpoints, runs
from sparsejax.training.facts import build_model_of, read_facts
from sparsejax.types import PathLike, Value

logger = logging.getLogger(__name__)

_SPLITS = ("split", "reference_split", "labelled_split")
_IMAGES = ("columns", "held_out", "image_size", "padding", "channels")
_DATA = ("name", "dataset", "source", "words", *_IMAGES, *_SPLITS)
_COMPARED = tuple(f"task.{key}" for key in _DATA)
# Keys that the held-out loss also depends on, through its noise and what the noise is added to.
_DIFFUSION = ("process", "steps", "schedule", "predicts", "min_snr", "times", "sigma_data")
_COMPARED_HELD_OUT = ("task.representation", *(f"diffusion.{key}" for key in _DIFFUSION))


def check_comparable(names: Sequence[PathLike], configs: Sequence[ConfigDict], data: Data) -> None:
    """Check that runs use the same data, so that their numbers are comparable.

    Args:
      names: names of the runs, for the message.
      configs: their resolved configs.
      data: Data of the first run.

    Raises:
      ConfigError: a key of the data differs; names the key, its value and what is accepted.
    """
    for key in _COMPARED + (_COMPARED_HELD_OUT if data.held_out else ()):
        section, name = key.split(".")
        first = configs[0][section][name]
        for run, config in zip(names, configs, strict=True):
            ours = config[section][name]
            require(ours == first, key, ours, f"{first!r} to compare {run} with {names[0]}")


def evaluate_runs(
    workdirs: Sequence[PathLike],
    output: PathLike,
    *,
    seed: int = 0,
    batch: int = 256,
    png: bool = False,
    **options: Value,
) -> list[Row]:
    """Sample every run from the same noise, measure the samples, and write results and reports.

    A run that can't be measured (for example, because its samples aren't finite) is named, and the
    others are evaluated and reported.

    Args:
      workdirs: workdirs of runs on the same data.
      output: folder to write to; results.jsonl gets a line after each run.
      seed: seed of the sampling noise.
      batch: number of samples drawn at once, over all devices.
      png: whether to write every sample as output/samples/<run>/<index>.png too.
      **options: see `measures.build_meter`.

    Returns:
      One row per run.

    Raises:
      ConfigError: before anything is measured, if a workdir holds no run, the runs have different
        data, the first stage of one isn't that of its training, or the options are invalid; after
        everything is written, if a run wasn't measured.
    """
    check_batch(batch)
    check_seed(seed)
    folders, output = [pathlib.Path(workdir) for workdir in workdirs], pathlib.Path(output)
    configs = _read_configs(folders)
    data = build_data(configs[0])
    check_comparable(folders, configs, data)
    require_writable(output, "--output")
    for workdir in folders:
        require_writable(workdir / "evaluation", "a folder of --workdirs")
    _check_frozen(folders, configs)
    unfinished = _unfinished(folders, configs)
    if unfinished:
        logger.warning("%s", unfinished)
    # Those with labels are measured by label, whichever comes first.
    of_labels = next((config for config in configs if classes_of(config)), None)
    meter = meter_of(of_labels or configs[0], data=None if of_labels else data, **options)
    output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    failed: dict[str, str] = {}
    for workdir in folders:
        pictures = output / "samples" / workdir.name if png else None
        try:
            rows.append(evaluate_run(workdir, meter, seed=seed, batch=batch, png=pictures))
        except ConfigError as error:
            if len(folders) == 1:
                raise
            failed[workdir.name] = str(error).removeprefix(f"{workdir}: ")
            print(f"{workdir.name} failed: {failed[workdir.name]}", flush=True)
        else:
            write_text(output / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    problems = "; ".join(f"{name}: {error}" for name, error in failed.items())
    problem = f"{len(failed)} of {len(folders)} runs weren't measured: {problems}" if failed else ""
    if rows:
        note = ". ".join(filter(None, [problem, unfinished]))
        write_report(output, rows, runs=folders[0].parent, note=note)
        _print_table(rows)
        written = "report.md, report.html, results.jsonl" + (", samples/" if png else "")
        print(f"In {output}: {written}")
    if failed:
        raise ConfigError(problem)
    return rows


def _read_configs(workdirs: Sequence[pathlib.Path]) -> list[ConfigDict]:
    """Return the configs of runs; raise ConfigError if names coincide or a run has no weights."""
    names = [workdir.name for workdir in workdirs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"--workdirs names several runs {twice[0]!r}; accepted: folders with different names"
        )
    configs = [runs.read_config(workdir) for workdir in workdirs]
    for workdir in workdirs:
        runs.require_checkpoint(workdir)
    return configs


def _unfinished(workdirs: Sequence[pathlib.Path], configs: Sequence[ConfigDict]) -> str:
    """Say which runs aren't finished and how far they are; empty if all are finished."""
    lines = []
    for workdir, config in zip(workdirs, configs, strict=True):
        step = checkpoints.list_steps(workdir / "checkpoints")[-1]
        if step < config.steps:
            lines.append(f"{workdir.name} isn't finished: step {step:,} of {config.steps:,}")
    return "; ".join(lines)


def _check_frozen(workdirs: Sequence[pathlib.Path], configs: Sequence[ConfigDict]) -> None:
    """Raise ConfigError if what a run samples with besides params isn't that of its training.

    `evaluate_run` would notice, but only after the reference set is measured.
    """
    for workdir, config in zip(workdirs, configs, strict=True):
        facts = read_facts(workdir, config)
        build_model_of(config, facts, workdir).frozen()


def _print_table(rows: Sequence[Row]) -> None:
    columns: dict[str, Callable[[Row], str]] = {
        "run": lambda row: row["run"],
        "steps": lambda row: f"{row['steps']:,}",
        "active parameters": lambda row: quantity(row["active_parameters"]),
        "FLOPs, forward": lambda row: quantity(row["forward_flops"]),
        "FLOPs, training": lambda row: quantity(row["training_flops_run"]),
    }
    for name in measure_names(rows):
        columns[escape(name)] = functools.partial(_measure, name)
    columns["ms per sample"] = lambda row: f"{1e3 * row['sampling_seconds']:.1f}"
    table = Table(title="Runs sampled from the same noise")
    for index, heading in enumerate(columns):
        table.add_column(heading, justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell(row) for cell in columns.values()))
    closing.console().print(table)


def _measure(name: str, row: Row) -> str:
    value = row["measures"].get(name)  # a run without labels lacks those of labels
    return "" if value is None else f"{value:.4g}"
