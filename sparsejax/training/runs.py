"""Workdirs: what a run leaves on disk, and how to read it back."""

import json
import pathlib

import jax
import ml_collections

from sparsejax.atomic import write_text
from sparsejax.configuration import ConfigError, default_config, differing_keys, resolve, to_json
from sparsejax.tasks import build_task
from sparsejax.training import checkpoints
from sparsejax.training.optimizers import build_optimizer
from sparsejax.training.state import create_state


def default_workdir(config):
    """Return `runs/<name>-<method>-<level>-<seed>`, or without the level if dense."""
    sparsity = config.sparsity
    level = [] if sparsity.method == "dense" else [f"{sparsity.level:g}"]
    parts = [config.name, sparsity.method, *level, str(config.seed)]
    return pathlib.Path("runs") / "-".join(parts)


def resolve_for(workdir, config):
    """Resolve a config against the run that the workdir already holds, if any.

    Args:
      workdir: path.
      config: ConfigDict with the schema of `configuration.default_config`.

    Returns:
      The resolved config.

    Raises:
      ConfigError: the config can't work, or the workdir belongs to another config; the
        message names the keys.
    """
    path = pathlib.Path(workdir) / "config.json"
    saved = _read_saved(path) if path.exists() else None
    config = resolve(config, saved)
    if saved:
        differing = differing_keys(config, saved)
        if differing:
            raise ConfigError(
                f"workdir {workdir} holds a run of another config:\n  "
                + "\n  ".join(differing)
                + "\nGive another --workdir, or the same config to resume that run."
            )
    return config


def save_config(workdir, config):
    """Write the resolved config to workdir/config.json."""
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    write_text(workdir / "config.json", to_json(config))


def read_config(workdir):
    """Return the resolved config of a run.

    Args:
      workdir: path.

    Returns:
      FrozenConfigDict.

    Raises:
      ConfigError: there is no run in `workdir`.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        raise ConfigError(f"workdir {str(workdir)!r} holds no run: there is no {path}")
    return ml_collections.FrozenConfigDict(_tuples(_read_saved(path)))


def _read_saved(path):
    """Read a config.json; keys that are younger than the run have their defaults."""
    config = default_config()
    with config.unlocked(), config.ignore_type():
        config.update(json.loads(path.read_text()))
    return json.loads(to_json(config))


def _tuples(value):
    if isinstance(value, dict):
        return {key: _tuples(child) for key, child in value.items()}
    return tuple(_tuples(child) for child in value) if isinstance(value, list) else value


def restore_state(workdir, config, task):
    """Restore the newest whole checkpoint of a run.

    Args:
      workdir: path.
      config: the run's resolved config.
      task: its Task.

    Returns:
      Tuple of TrainState (host arrays) and the checkpoint's extra dictionary, or None.
    """
    folder = pathlib.Path(workdir) / "checkpoints"
    if not checkpoints.list_steps(folder):
        return None
    optimizer = build_optimizer(config)
    example = jax.eval_shape(lambda: create_state(config, task, optimizer))
    return checkpoints.restore_newest(folder, example)


def load_state(workdir):
    """Load the newest state of a run.

    Args:
      workdir: a run's workdir.

    Returns:
      Tuple of its Task and its TrainState (host arrays).

    Raises:
      ConfigError: the workdir holds no run, or no whole checkpoint.
    """
    config = read_config(workdir)
    task = build_task(config)
    restored = restore_state(workdir, config, task)
    if restored is None:
        raise ConfigError(f"workdir {str(workdir)!r} holds no whole checkpoint yet")
    return task, restored[0]


def load_run(workdir, *, ema=True):
    """Load a trained model.

    Args:
      workdir: a run's workdir.
      ema: whether to return the EMA parameters or those of the last step.

    Returns:
      Tuple `(task, params, masks)`.

    Raises:
      ConfigError: the workdir holds no run, or no whole checkpoint.
    """
    task, state = load_state(workdir)
    return task, state.ema_params if ema else state.params, state.masks
