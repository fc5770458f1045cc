"""Side files of a run: config.json, data.json and facts.json, with copies in every checkpoint.

A copy says what the weights beside it were trained with. So where a side file is missing, damaged
or says something else, the newest checkpoint's copy counts, with a warning. Checkpoints of older
versions have no copies.
"""

import functools
import json
import logging
import os
import pathlib
from typing import NamedTuple

from ml_collections import ConfigDict

from sparsejax.atomic import set_aside, write_text
from sparsejax.configuration import FREE_ON_RESUME, Saved, differing_keys, with_defaults
from sparsejax.errors import ConfigError
from sparsejax.schema import PLACES
from sparsejax.storage import JsonObject, read_object
from sparsejax.training import checkpoints
from sparsejax.types import PathLike

CONFIG = "config.json"
DATA = "data.json"  # what the run is trained on, wherever it is stored
FACTS = "facts.json"  # what its Model needs to know about the data

logger = logging.getLogger(__name__)


class _Found(NamedTuple):
    """What counts in place of a side file.

    Attributes:
      value: content of the file, or of the copy that counts instead; None if there is neither.
      problem: what is wrong with the file, if the copy counts; else empty.
      step: step of the checkpoint whose copy it is.
    """

    value: JsonObject | None
    problem: str = ""
    step: int = 0


def saved_config(workdir: PathLike) -> Saved | None:
    """Return the config that the run in a workdir was last started with, or None without a run.

    Raises:
      ConfigError: config.json is damaged, and no checkpoint has a copy of it.
    """
    return read_side_file(workdir, CONFIG)


def read_side_file(workdir: PathLike, name: str) -> JsonObject | None:
    """Return the content of a side file, or of its newest copy if the file can't be trusted.

    Args:
      workdir: path of a run.
      name: `CONFIG` (whose missing keys get their defaults), `DATA` or `FACTS`.

    Returns:
      A JSON object; None if there is neither a file nor a copy.

    Raises:
      ConfigError: the file is damaged, and no checkpoint has a copy of it.
    """
    value, problem, step = _find(pathlib.Path(workdir), name)
    if problem:
        _warn(pathlib.Path(workdir) / name, problem, step)
    return value


def has_side_file(workdir: PathLike, name: str) -> bool:
    """Return whether there is a side file, damaged or not, or a copy of it.

    Args:
      workdir: path of a run.
      name: `CONFIG`, `DATA` or `FACTS`.
    """
    workdir = pathlib.Path(workdir)
    return os.path.lexists(workdir / name) or _copy(workdir, name)[0] is not None


def restore(workdir: PathLike) -> None:
    """Write the side files in whose place a copy counts; what was there is renamed."""
    for name in (CONFIG, DATA, FACTS):
        path = pathlib.Path(workdir) / name
        try:
            value, problem, step = _find(path.parent, name)
        except ConfigError:  # there is no copy to write in its place
            continue
        if problem:
            _warn(path, problem, step)  # a finished run may not have read it
            kept = f"; it was set aside as {set_aside(path)}" if os.path.lexists(path) else ""
            write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")
            logger.info("%s written again from the checkpoint of step %d%s", path, step, kept)


def copies(workdir: PathLike) -> dict[str, JsonObject]:
    """Return the side files of a run, for its checkpoints: `{name: content}`."""
    paths = (pathlib.Path(workdir) / name for name in (CONFIG, DATA, FACTS))
    return {path.name: read_object(path) for path in paths if os.path.exists(path)}


def _find(workdir: pathlib.Path, name: str) -> _Found:
    path = workdir / name
    value: JsonObject | None = None
    refusal: ConfigError | None = None
    problem = "is missing"
    if os.path.lexists(path):
        try:
            value, problem = _parse(path, read_object(path)), ""
        except ConfigError as error:
            refusal, problem = error, str(error).removeprefix(str(path)).lstrip(": ")
    copy, step = _copy(workdir, name)
    if copy is None:
        if refusal:
            raise refusal
        return _Found(value)
    if value is not None:
        problem = _difference(name, value, copy)
    return _Found(copy, problem, step) if problem else _Found(value)


def _copy(workdir: pathlib.Path, name: str) -> tuple[JsonObject | None, int]:
    """Return the copy in the newest checkpoint that has a valid one, and the checkpoint's step."""
    folder = workdir / "checkpoints"
    for step in checkpoints.list_steps(folder)[::-1]:
        copy = checkpoints.read_copies(folder, step).get(name)
        if copy is not None:
            try:
                return _parse(workdir / name, copy), step
            except ConfigError:  # of a newer version, for instance
                continue
    return None, 0


def _parse(path: pathlib.Path, value: JsonObject) -> JsonObject:
    """Return the content of a side file as it is used."""
    if path.name != CONFIG:
        return value
    try:
        return with_defaults(value, str(path))
    except (ConfigError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _difference(name: str, value: JsonObject, copy: JsonObject) -> str:
    """Say how a file differs from its copy in what may not change; empty if it doesn't."""
    if name != CONFIG:
        return "" if value == copy else "holds something else"
    # Data may move, and what doesn't affect the training may change, after the checkpoint.
    differing = differing_keys(ConfigDict(value), copy, (*FREE_ON_RESUME, *PLACES))
    return "; ".join(f"config.{key} isn't what it was: {how}" for key, how in differing.items())


@functools.cache  # one line a process: side files are read several times
def _warn(path: pathlib.Path, problem: str, step: int) -> None:
    logger.warning(
        "%s: %s; the copy in the checkpoint of step %d counts instead", path, problem, step
    )
