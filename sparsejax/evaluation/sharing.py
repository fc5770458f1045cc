"""A trained model as a repository for the Hugging Face Hub: weights, config, card and pictures."""

import contextlib
import json
import logging
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator, Mapping

from ml_collections import ConfigDict
from PIL import Image

from sparsejax.atomic import write_text
from sparsejax.configuration import to_json
from sparsejax.errors import ConfigError
from sparsejax.evaluation.closing import masks_by_path
from sparsejax.evaluation.costs import run_costs
from sparsejax.reports import plots
from sparsejax.reports.model_card import Described, model_card
from sparsejax.reports.results import is_number, parse_results
from sparsejax.reports.sheets import Picture, sheet
from sparsejax.sparsity.masks import LayerSummary, summarize
from sparsejax.sparsity.methods import get_method
from sparsejax.training import runs
from sparsejax.training.facts import describe_data
from sparsejax.training.hub import MODEL_FILE
from sparsejax.training.keys import named_key
from sparsejax.training.plan import build_plan
from sparsejax.training.state import ema_params_of
from sparsejax.training.trained import Run, load
from sparsejax.types import PathLike, Value

logger = logging.getLogger(__name__)

_WIDEST = 800  # pixels of the picture of samples


def write_repository(workdir: PathLike, folder: PathLike, *, ema: bool = True) -> None:
    """Write a trained model as a model repository, which `sparsejax.load` reads.

    Writes model.safetensors (a sparse file), config.json, README.md (the model card), and pictures:
    samples.png (drawn from the file itself), curves.png, layers.png; of drawings, samples.gif and
    samples.svg. The folder appears at once, when all of them are written.

    Args:
      workdir: a run's workdir.
      folder: folder to write; it may exist if it is empty.
      ema: whether to write the EMA parameters or those of the last step.

    Raises:
      ConfigError: the workdir holds no run or no intact checkpoint, the folder holds something, or
        the model can't be sampled.
    """
    workdir, folder = pathlib.Path(workdir), pathlib.Path(os.path.abspath(folder))
    require_free(folder)
    config = runs.read_config(workdir)
    runs.require_checkpoint(workdir)
    with _appearing(folder) as partial:
        # It gets its name last of all: until then, nothing takes the folder for a repository.
        weights = partial / "weights"
        sizes = runs.save_sparse_run(workdir, weights, ema=ema, places=False)
        _draw_samples(load(weights, first_stage=_first_stage(config)), partial)
        costs, layers = _draw_figures(workdir, config, partial, ema)
        shown = runs.without_places(config)
        card = model_card(
            Described(
                name=workdir.name,
                config=shown.to_dict(),
                costs=costs,
                changes_density=get_method(config.sparsity.method).changes_density,
                layers=layers,
                measures=_measures(workdir, config, costs["steps"]) if ema else {},
                data=describe_data(workdir),
                weights="EMA weights" if ema else "weights of the last step",
                sizes=(sizes.file, sizes.dense),
                pictures=sorted(os.listdir(partial)),
            )
        )
        write_text(partial / "config.json", to_json(shown))
        write_text(partial / "README.md", card)
        weights.rename(partial / MODEL_FILE)


def require_free(folder: pathlib.Path) -> None:
    """Check that a folder doesn't exist, or is empty.

    Raises:
      ConfigError: it holds something, or is a file.
    """
    accepted = "a folder that doesn't exist yet, or an empty one"
    if os.path.lexists(folder) and not folder.is_dir():
        raise ConfigError(f"--hub is {str(folder)!r}, which is a file; accepted: {accepted}")
    inside = sorted(os.listdir(folder)) if folder.is_dir() else []
    if inside:
        held = ", ".join(inside[:3]) + (", ..." if len(inside) > 3 else "")
        raise ConfigError(f"--hub is {str(folder)!r}, which holds {held}; accepted: {accepted}")


@contextlib.contextmanager
def _appearing(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a folder beside `folder`, which takes its place if the body succeeds."""
    missing = [path for path in folder.parents if not os.path.lexists(path)]
    partial = folder.with_name(f"partial-{os.getpid()}-{secrets.token_hex(4)}-{folder.name}")
    partial.mkdir(parents=True)
    try:
        yield partial
        require_free(folder)  # somebody else may have written to it meanwhile
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # it is there only if something was raised
        with contextlib.suppress(OSError):
            for path in missing:
                path.rmdir()


def _first_stage(config: ConfigDict) -> str | None:
    """Return the first stage of a run on latents, if it is still where the run found it."""
    path = config.first_stage.path
    return path if config.task.name == "latents" and os.path.exists(path) else None


def _draw_samples(run: Run, folder: pathlib.Path) -> None:
    """Draw samples and write pictures of them; without its first stage, latents have none."""
    if not run.decodes:
        logger.warning("no samples are drawn: the first stage isn't at config.first_stage.path")
        return
    samples = run.sample(named_key(run.config.seed, "samples"), run.config.sample.count)
    grid = sheet([Picture("samples", run.model.render(samples))], widest=_WIDEST)
    Image.fromarray(grid).save(folder / "samples.png")
    run.model.illustrate(samples, folder)


def _draw_figures(
    workdir: pathlib.Path, config: ConfigDict, folder: pathlib.Path, ema: bool
) -> tuple[dict[str, Value], dict[str, LayerSummary]]:
    """Write curves.png and layers.png; return the costs of a run and the counts of its layers."""
    model, state = runs.load_state(workdir)
    params, masks = ema_params_of(state) if ema else state.params, state.masks
    lines = runs.read_metrics_until(workdir, int(state.step))
    plan = build_plan(config, model)
    costs = run_costs(config, model, plan, params, masks, int(state.step), lines)
    counts = summarize(params, masks).layers
    layers = {name: counts[name] for name in model.layer_flops(params) if name in counts}
    plots.save_curves(folder / "curves.png", lines)
    shown = (layers, costs["sparsity"], masks_by_path(masks))
    plots.save_layers(folder / "layers.png", *shown)
    return costs, layers


def _measures(workdir: pathlib.Path, config: ConfigDict, step: int) -> dict[str, float]:
    """Return the newest figures of a run at this step: of `evaluate`, a comparison or a sweep."""
    together = workdir.parent / "comparison" / "results.jsonl"  # of `evaluate` with several runs
    places = [workdir / "results.jsonl", workdir / "result.json", together]
    places = sorted((path for path in places if path.is_file()), key=lambda p: p.stat().st_mtime)
    ours = json.loads(to_json(config))
    measures: Mapping[str, Value] = {}
    for path in places:
        for row in parse_results(path)[0]:
            # Another folder may hold a run of the same name.
            is_ours = path != together or row.get("config") == ours
            if is_ours and row["run"] == workdir.name and row["steps"] == step:
                measures = row["measures"]
    return {name: value for name, value in measures.items() if is_number(value)}
