"""Checkpoints: a thin layer over orbax that survives kills and damage."""

import copy
import functools
import logging
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from sparsejax import checksums
from sparsejax.atomic import set_aside
from sparsejax.errors import ConfigError
from sparsejax.storage import JsonObject, read_object
from sparsejax.training.layouts import Tree, find_layout
from sparsejax.training.soundness import nonfinite
from sparsejax.training.state import TrainState
from sparsejax.types import PathLike, PyTree

logger = logging.getLogger(__name__)
Extra: TypeAlias = dict[str, Any]  # JSON-serializable
# Orbax also logs the errors that it raises, with tracebacks, and messages about its own work.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


def _is_of_interest(record: logging.LogRecord) -> bool:
    """Return False for a read that failed beside the one whose error orbax raised."""
    error = record.exc_info and record.exc_info[1]
    return "tensorstore" not in str(error) or "never retrieved" not in record.getMessage()


logging.getLogger("asyncio").addFilter(_is_of_interest)


def _hook(default: Callable[[Any], None], unraisable: Any) -> None:
    """Report an unraisable exception, unless it only follows from a failed read or write.

    The failure itself raises an error. tensorstore then adds exceptions of its own, because it
    calls an event loop that the failure has closed.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        default(unraisable)


def _report_failures_once() -> None:
    if getattr(sys.unraisablehook, "func", None) is not _hook:
        sys.unraisablehook = functools.partial(_hook, sys.unraisablehook)


def open_manager(folder: PathLike, keep: int = 2) -> ocp.CheckpointManager:
    """Open (and create) a folder of checkpoints.

    Args:
      folder: path; one subfolder per step.
      keep: number of newest checkpoints to keep.

    Returns:
      `ocp.CheckpointManager`; close it when done.
    """
    _report_failures_once()
    options = ocp.CheckpointManagerOptions(max_to_keep=keep)
    return ocp.CheckpointManager(pathlib.Path(folder).resolve(), options=options)


def save(manager: ocp.CheckpointManager, state: TrainState, extra: Extra) -> None:
    """Save a state: copy everything before returning, write it in the background.

    Args:
      manager: from `open_manager`.
      state: TrainState, its arrays equal on all devices.
      extra: JSON-serializable dictionary.
    """
    # Host arrays: a replicated array is written once and restores on any number of devices.
    tree = jax.tree.map(np.asarray, jax.device_get(state._asdict()))
    extra = copy.deepcopy(extra) | {"checksums": _checksums(tree)}
    extra.pop("checksum", None)  # of another checkpoint, which `read_extra` returned
    extra |= {"checksum": checksums.of_json(extra)}
    args = ocp.args.Composite(state=ocp.args.StandardSave(tree), extra=ocp.args.JsonSave(extra))
    manager.save(int(tree["step"]), args=args)


def restore_newest(folder: PathLike, example: TrainState) -> tuple[TrainState, Extra] | None:
    """Restore the newest intact checkpoint; damaged ones are named in a warning and skipped.

    So are those with numbers that are not finite. Changes nothing on disk.

    Args:
      folder: path of the checkpoints.
      example: TrainState of arrays or `jax.ShapeDtypeStruct`, with the expected structure.

    Returns:
      Tuple of the TrainState (host arrays) and the extra dictionary; None if the folder holds
      no checkpoint.

    Raises:
      ConfigError: there are checkpoints, but none can be restored.
    """
    _report_failures_once()
    folder, failures = pathlib.Path(folder).resolve(), []
    abstract = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), example._asdict())
    for step in list_steps(folder)[::-1]:
        try:
            state, extra = _restore(folder, step, abstract)
        except Exception as error:  # noqa: BLE001  orbax raises whatever the damage causes
            place = f"{folder / str(step)} is damaged or of a different model"
            failures.append(f"{place}: {_reason(error)}")
            logger.warning("checkpoint %s; trying the previous one", failures[-1])
            continue
        if jax.process_count() > 1:
            multihost_utils.assert_equal(step, "processes can't read the same checkpoint")
        return type(example)(**state), extra
    if failures:
        raise ConfigError("no checkpoint can be restored:\n  " + "\n  ".join(failures))
    return None


def _reason(error: Exception) -> str:
    """Return what an error says, in one line, without the specifications that tensorstore adds."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].partition(" [tensorstore_spec")[0]


def read_extra(folder: PathLike, step: int) -> Extra:
    """Return the extra dictionary of the checkpoint of one step, without its state."""
    with ocp.CheckpointManager(pathlib.Path(folder).resolve()) as manager:
        args = ocp.args.Composite(extra=ocp.args.JsonRestore())
        return manager.restore(step, args=args)["extra"]


def read_copies(folder: PathLike, step: int) -> dict[str, JsonObject]:
    """Return the side files that a checkpoint holds copies of, by name; needs no orbax.

    Args:
      folder: path of the checkpoints.
      step: step of the checkpoint, which may be damaged or of an older version.
    """
    try:
        extra = read_object(pathlib.Path(folder) / str(step) / "extra" / "metadata")
        _check_extra(extra)
    except ValueError:
        return {}
    return extra.get("copies", {})


def set_aside_after(folder: PathLike, step: int) -> None:
    """Rename checkpoints of later steps, which could not be restored; nothing is deleted.

    Args:
      folder: path of the checkpoints.
      step: step of the checkpoint that was restored.
    """
    folder = pathlib.Path(folder)
    for damaged in (later for later in list_steps(folder) if later > step):
        free = set_aside(folder / str(damaged))
        logger.warning("checkpoint of step %d set aside as %s", damaged, free)


def list_steps(folder: PathLike) -> list[int]:
    """Return the steps of the checkpoints in a folder, in ascending order."""
    folder = pathlib.Path(folder)
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(int(n) for n in names if n.isdecimal() and (folder / n).is_dir())


def _restore(folder: pathlib.Path, step: int, example: Tree) -> tuple[Tree, Extra]:
    """Restore one checkpoint, in the current layout or an older one."""
    with ocp.CheckpointManager(folder) as manager:
        extra = manager.restore(step, args=ocp.args.Composite(extra=ocp.args.JsonRestore()))[
            "extra"
        ]
        _check_extra(extra)
        sums = extra.pop("checksums")
        layout, convert = find_layout(example, len(sums))
        args = ocp.args.Composite(state=ocp.args.StandardRestore(layout))
        state = manager.restore(step, args=args)["state"]
    if _checksums(state) != sums:
        raise ValueError("the checksums of its arrays do not match")
    number = nonfinite(state)
    if number:  # of a version that saved it all the same
        raise ValueError(f"{number:,} of its numbers are not finite")
    return convert(state), extra


def _check_extra(extra: Extra) -> None:
    """Remove the checksum of an extra dictionary; raise ValueError if it is another's."""
    written = extra.pop("checksum", None)  # older versions wrote none
    if written not in (None, checksums.of_json(extra)):
        raise ValueError("the checksum of what was saved beside its arrays does not match")


def _checksums(tree: PyTree) -> list[int]:
    """Return the CRC-32 of every array: orbax detects truncated files, but not flipped bits."""
    return [checksums.of_array(leaf) for leaf in jax.tree.leaves(tree)]
