"""Checkpoints: a thin layer over orbax that survives kills and damage."""

import copy
import logging
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp

logger = logging.getLogger(__name__)


def open_manager(folder, keep=2):
    """Open (and create) a folder of checkpoints.

    Args:
      folder: path; one subfolder a step.
      keep: number of newest checkpoints to keep.

    Returns:
      `ocp.CheckpointManager`; close it when done.
    """
    options = ocp.CheckpointManagerOptions(max_to_keep=keep)
    return ocp.CheckpointManager(pathlib.Path(folder).resolve(), options=options)


def save(manager, state, extra):
    """Save a state; everything is copied before this returns, the writing goes on behind.

    Args:
      manager: from `open_manager`.
      state: TrainState, its arrays equal on all devices.
      extra: JSON-able dictionary.
    """
    # Host arrays: a replicated array is written once and restores on any number of devices.
    tree = jax.tree.map(np.asarray, jax.device_get(state._asdict()))
    args = ocp.args.Composite(
        state=ocp.args.StandardSave(tree), extra=ocp.args.JsonSave(copy.deepcopy(extra))
    )
    manager.save(int(tree["step"]), args=args)


def restore_newest(folder, example):
    """Restore the newest whole checkpoint; a damaged one is named, moved aside and skipped.

    Args:
      folder: path of the checkpoints.
      example: TrainState of arrays or `jax.ShapeDtypeStruct`: what is expected.

    Returns:
      Tuple of the TrainState and the extra dictionary; None if there is no whole checkpoint.
    """
    folder = pathlib.Path(folder).resolve()
    abstract = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), example._asdict())
    for step in list_steps(folder)[::-1]:
        try:
            state, extra = _restore(folder, step, abstract)
        except Exception as error:  # noqa: BLE001  orbax raises whatever the damage causes
            aside = folder / f"{step}.damaged"
            logger.warning("checkpoint %s is damaged (%s); skipped", folder / str(step), error)
            if jax.process_index() == 0:
                (folder / str(step)).rename(aside)
            continue
        return type(example)(**state), extra
    return None


def list_steps(folder):
    """Return the steps of the checkpoints in a folder, in increasing order."""
    folder = pathlib.Path(folder)
    return sorted(int(p.name) for p in folder.glob("*") if p.is_dir() and p.name.isdigit())


def _restore(folder, step, abstract):
    with ocp.CheckpointManager(folder) as manager:
        restored = manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), extra=ocp.args.JsonRestore()
            ),
        )
    return restored["state"], restored["extra"]
