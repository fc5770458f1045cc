"""Workdirs: what a run leaves on disk, and how to read it back."""

import difflib
import functools
import json
import logging
import pathlib

import jax
from ml_collections import ConfigDict, FrozenConfigDict

from sparsejax.atomic import write_text
from sparsejax.configuration import (
    differing_keys,
    resolve,
    set_key,
    sparsity_words,
    structure_name,
    to_json,
    with_defaults,
)
from sparsejax.errors import ConfigError
from sparsejax.families import Facts, Model, build_model, check_facts
from sparsejax.nested import flatten
from sparsejax.plugins import import_modules
from sparsejax.schema import PLACES
from sparsejax.sparse_files import Sizes, load_sparse, save_sparse
from sparsejax.sparsity.blocks import block_of
from sparsejax.sparsity.distributions import DISTRIBUTIONS
from sparsejax.sparsity.masks import path_name
from sparsejax.sparsity.methods import METHODS
from sparsejax.storage import require_writable
from sparsejax.training import checkpoints, facts
from sparsejax.training.layouts import complete_state
from sparsejax.training.metrics_log import Line, read_metrics
from sparsejax.training.optimizers import build_optimizer
from sparsejax.training.plan import Plan, build_plan, complete_units
from sparsejax.training.side_files import CONFIG, saved_config
from sparsejax.training.sparse_models import build_sparse_model
from sparsejax.training.state import TrainState, abstract_state, ema_params_of
from sparsejax.types import Masks, Optimizer, Params, PathLike, Value

logger = logging.getLogger(__name__)

_FOLDERS = ("checkpoints", "samples", "tensorboard")
_FILES = (
    *("config.json", "data.json", "facts.json", "metrics.jsonl", "summary.json"),
    *("samples.png", "curves.png", "layers.png"),
)


def default_workdir(config: ConfigDict) -> pathlib.Path:
    """Return `runs/<name>-<method>-<structure>-<level>-<seed>`, without parts that don't apply.

    The structure is omitted for single weights, structure and level for dense.
    """
    parts = [config.name, *sparsity_words(config.sparsity), str(config.seed)]
    return pathlib.Path("runs") / "-".join(parts)


def resolve_for(workdir: PathLike, config: ConfigDict, *, has_data: bool = True) -> ConfigDict:
    """Resolve a config against the run that the workdir already holds, if any.

    Args:
      workdir: path.
      config: ConfigDict with the schema of `configuration.default_config`.
      has_data: whether the data are here, to be compared with those of that run.

    Returns:
      The resolved config.

    Raises:
      ConfigError: the config is invalid, or the workdir holds a run with a different config or
        different data; the message names the keys.
    """
    workdir = pathlib.Path(workdir)
    saved = saved_config(workdir)
    config = resolve(config, saved)
    steps = checkpoints.list_steps(workdir / "checkpoints")
    if steps and not saved:  # of an older version, which saved no copy either
        logger.warning(
            "%s is missing: whether the checkpoint of step %d was trained with this config can't "
            "be told",
            *(workdir / CONFIG, steps[-1]),
        )
    if saved:
        # Runs of versions that saved no stamp must find their data in the same place.
        stamped = facts.has_stamp(workdir)
        free = PLACES if stamped else ()
        differing = differing_keys(config, saved)
        refused = [f"{key}: {how}" for key, how in differing.items() if key not in free]
        if refused:
            raise ConfigError(
                f"workdir {workdir} holds a run with a different config ({'; '.join(refused)}); "
                "accepted: another --workdir, or the same config to resume that run"
            )
        is_trained = steps[-1:] == [config.steps]
        if has_data and stamped and (differing or not is_trained):
            facts.check_stamp(workdir, config)
    return config


def check_writable(workdir: PathLike) -> None:
    """Check that a run can write its files to a workdir.

    Raises:
      ConfigError: names --workdir and the reason.
    """
    workdir = pathlib.Path(workdir)
    for folder in (workdir, *(workdir / name for name in _FOLDERS)):
        require_writable(folder, "--workdir" if folder == workdir else "a folder of --workdir")
    for name in _FILES:
        if (workdir / name).is_dir():
            raise ConfigError(
                f"--workdir is {str(workdir)!r}, where {name} is a folder; accepted: workdirs "
                f"where a file of that name can be written"
            )


def save_config(workdir: PathLike, config: ConfigDict, known: Facts | None = None) -> None:
    """Write the resolved config to config.json; once, what identifies and describes its data.

    Args:
      workdir: path; created if need be.
      config: resolved ConfigDict.
      known: what the Model needs to know about the data, for facts.json; None to leave it out.
    """
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    path, text = workdir / CONFIG, to_json(config)
    if not path.exists() or path.read_bytes() != text.encode():  # the disk may be read-only
        write_text(path, text)
    facts.save_facts(workdir, config, known)


def read_config(workdir: PathLike) -> ConfigDict:
    """Return the resolved config of a run.

    Args:
      workdir: path.

    Returns:
      FrozenConfigDict.

    Raises:
      ConfigError: there is no run in `workdir`, or its method or distribution is not registered.
    """
    path, saved = pathlib.Path(workdir) / CONFIG, saved_config(workdir)
    if saved is None:
        raise ConfigError(
            f"workdir {str(workdir)!r} holds no run: there is no {path}; {_runs_near(workdir)}"
        )
    config = FrozenConfigDict(_tuples(saved))
    try:
        import_modules(config.imports)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    for key, known in (("method", METHODS), ("distribution", DISTRIBUTIONS)):
        if config.sparsity[key] not in known:
            value = config.sparsity[key]
            raise ConfigError(
                f"{path}: config.sparsity.{key} is {value!r}, which is not registered; "
                f"accepted: {', '.join(known)}, or what a module of config.imports registers"
            )
    return config


def _runs_near(workdir: PathLike) -> str:
    """List the runs next to a path that holds none, the most similar names first."""
    parent = pathlib.Path(workdir).parent
    names = [path.parent.name for path in parent.glob("*/config.json")]
    if not names:
        return f"there are no runs in {parent}"
    near = difflib.get_close_matches(pathlib.Path(workdir).name, names, n=3, cutoff=0)
    return f"runs in {parent}: {', '.join(near)}" + (", ..." if len(names) > 3 else "")


def _tuples(value: Value) -> Value:
    if isinstance(value, dict):
        return {key: _tuples(child) for key, child in value.items()}
    return tuple(_tuples(child) for child in value) if isinstance(value, list) else value


def restore_state(
    workdir: PathLike, model: Model, plan: Plan, optimizer: Optimizer
) -> tuple[TrainState, checkpoints.Extra] | None:
    """Restore the newest intact checkpoint of a run.

    Args:
      workdir: path.
      model: its Model.
      plan: its Plan.
      optimizer: the optax transformation of the train step.

    Returns:
      Tuple of TrainState (host arrays) and what was saved with it (`MetricsLog.extra`); None if the
      run has no checkpoint.

    Raises:
      ConfigError: there are checkpoints, but none is intact.
    """
    folder = pathlib.Path(workdir) / "checkpoints"
    if not checkpoints.list_steps(folder):
        return None
    example = abstract_state(model, plan, optimizer)
    restored = checkpoints.restore_newest(folder, example)
    if restored is None:
        return None
    state, extra = restored
    complete = functools.partial(complete_units, plan.structure, model)
    return complete_state(state, complete, optimizer), extra


def require_checkpoint(workdir: PathLike) -> None:
    """Check that a run has a checkpoint.

    Raises:
      ConfigError: there is none yet; names the workdir.
    """
    if not checkpoints.list_steps(pathlib.Path(workdir) / "checkpoints"):
        raise _no_checkpoint(workdir)


def _no_checkpoint(workdir: PathLike) -> ConfigError:
    return ConfigError(f"workdir {str(workdir)!r} has no complete checkpoint yet")


def load_state(workdir: PathLike) -> tuple[Model, TrainState]:
    """Load the newest state of a run.

    Args:
      workdir: a run's workdir.

    Returns:
      Tuple of its Model and its TrainState (host arrays).

    Raises:
      ConfigError: the workdir holds no run, or no intact checkpoint.
    """
    config = read_config(workdir)
    known = facts.read_facts(workdir, config)
    model = facts.build_model_of(config, known, workdir)
    return model, load_state_of(workdir, config, model)


def load_state_of(workdir: PathLike, config: ConfigDict, model: Model) -> TrainState:
    """Load the newest state of a run whose Model has been built.

    Args:
      workdir: a run's workdir.
      config: its resolved config.
      model: its Model.

    Returns:
      TrainState (host arrays).

    Raises:
      ConfigError: the workdir holds no intact checkpoint.
    """
    plan, optimizer = build_plan(config, model), build_optimizer(config)
    restored = restore_state(workdir, model, plan, optimizer)
    if restored is None:
        raise _no_checkpoint(workdir)
    return restored[0]


def read_metrics_until(workdir: PathLike, step: int) -> list[Line]:
    """Return the metrics lines of a run up to one of its checkpoints.

    Args:
      workdir: a run's workdir.
      step: of the checkpoint.

    Returns:
      List of dictionaries: the lines written, then those of single steps that the checkpoint holds
      because they weren't written yet.
    """
    lines = read_metrics(pathlib.Path(workdir) / "metrics.jsonl")
    pending = checkpoints.read_extra(pathlib.Path(workdir) / "checkpoints", step)["pending"]
    unwritten = [{"step": at} | values for at, values in pending]
    return [line for line in lines if line["step"] <= step] + unwritten


def load_run(workdir: PathLike, *, ema: bool = True) -> tuple[Model, Params, Masks]:
    """Load a trained model.

    Args:
      workdir: a run's workdir.
      ema: whether to return the EMA parameters or those of the last step.

    Returns:
      Tuple `(model, params, masks)`.

    Raises:
      ConfigError: the workdir holds no run, or no intact checkpoint.
    """
    model, state = load_state(workdir)
    return model, ema_params_of(state) if ema else state.params, state.masks


def save_sparse_run(
    workdir: PathLike, path: PathLike, *, ema: bool = True, places: bool = True
) -> Sizes:
    """Write a trained model as a sparse file that says how to rebuild its network.

    Args:
      workdir: a run's workdir.
      path: safetensors file to write; its folder is created if need be. Its metadata are the
        resolved `config` and the `facts` about the data as JSON, `weights` (`ema` or `last step`),
        and the number of `steps`.
      ema: whether to write the EMA parameters or those of the last step.
      places: whether the config in the file says where the data of the run lie on this machine, or
        only the names of their files and folders.

    Returns:
      `sparse_files.Sizes`.

    Raises:
      ConfigError: the workdir holds no run, or no intact checkpoint.

    Examples:
      `save_sparse_run("runs/digits-rigl-0.75-0", "model.safetensors")`
    """
    config = read_config(workdir)
    known = facts.read_facts(workdir, config)
    if known is None:
        known = facts.find_facts(config, workdir)
    for name in (name for name, value in known.items() if value is None):
        logger.warning("%s holds no %s, so %s won't either", workdir, name, path)
    state = load_state_of(workdir, config, build_model(config, known))
    metadata = {
        "config": to_json(config if places else without_places(config)),
        "facts": json.dumps(known),
        "weights": "ema" if ema else "last step",
        "steps": str(int(state.step)),
    }
    params = ema_params_of(state) if ema else state.params
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    return save_sparse(path, params, state.masks, metadata, _blocks(config, params))


def without_places(config: ConfigDict) -> ConfigDict:
    """Return a resolved config with only the last part of each path in it."""
    changed, values = ConfigDict(config.to_dict()), flatten(config.to_dict(), ".")
    for key in (*PLACES, "checkpoint.init_from"):
        set_key(changed, key, pathlib.PurePath(values[key]).name)
    return changed


def _blocks(config: ConfigDict, params: Params) -> dict[str, tuple[int, int]]:
    """Return the blocks of the layers that have some, by path; none for other structures."""
    if structure_name(config.sparsity) != "block":
        return {}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    size = config.sparsity.block_size
    found = {path_name(path): block_of(leaf.shape, size) for path, leaf in leaves}
    return {name: block for name, block in found.items() if block}


def read_sparse_run(path: PathLike) -> tuple[ConfigDict, Params, Masks]:
    """Read a sparse file and the config of its run.

    Args:
      path: of a file that `save_sparse_run` wrote.

    Returns:
      Tuple `(config, params, masks)`: FrozenConfigDict, numpy arrays.

    Raises:
      ValueError: the file is damaged, not a sparse file, or one without a config; names the path.
    """
    config, params, masks, _ = _read_weights(path)
    return config, params, masks


def read_sparse(
    path: PathLike,
) -> tuple[FrozenConfigDict, Facts | None, Params, Masks]:
    """Return config, facts (None if the file has none), params and masks of a sparse file.

    Raises:
      ValueError: see `read_sparse_run`; or the facts are damaged or missing.
    """
    config, params, masks, metadata = _read_weights(path)
    if "facts" not in metadata:  # of a version that didn't save them
        return config, None, params, masks
    known = _read_json(path, metadata, "facts")
    check_facts(config, known, str(path))
    return config, known, params, masks


def _read_weights(path: PathLike) -> tuple[FrozenConfigDict, Params, Masks, dict[str, str]]:
    """Return config, params, masks and metadata of a sparse file."""
    params, masks, metadata = load_sparse(path)
    if "config" not in metadata:
        raise ValueError(f"{path} holds weights and masks, but no config of a run")
    saved = _read_json(path, metadata, "config")
    try:
        config = FrozenConfigDict(_tuples(with_defaults(saved, str(path))))
    except (ConfigError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return config, params, masks, metadata


def _read_json(path: PathLike, metadata: dict[str, str], name: str) -> dict[str, Value]:
    """Return a JSON object of a sparse file's metadata; raise ConfigError if it isn't one."""
    try:
        value = json.loads(metadata[name])
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is damaged: its {name} in the metadata is not JSON: {error}"
        ) from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is damaged: its {name} in the metadata is not a JSON object")
    return value


def load_sparse_run(path: PathLike) -> tuple[Model, Params, Masks]:
    """Load a trained model from a sparse file; needs none of the data.

    Args:
      path: of a file that `save_sparse_run`, or `python -m sparsejax export --sparse`, wrote.

    Returns:
      Tuple `(model, params, masks)`, as from `load_run`.

    Raises:
      ConfigError: see `sparse_models.build_sparse_model`.
      ValueError: see `read_sparse_run`.

    Examples:
      `model, params, masks = load_sparse_run("model.safetensors")`
    """
    config, known, params, masks = read_sparse(path)
    model = build_sparse_model(config, known, params, path)
    return model, *complete_units(structure_name(config.sparsity), model, params, masks)
