"""What a run records about its data: stamps that identify it, and the facts its Model needs."""

import json
import os
import pathlib

from ml_collections import ConfigDict

from sparsejax.atomic import write_text
from sparsejax.data.stamps import describe
from sparsejax.errors import ConfigError
from sparsejax.families import (
    Facts,
    Model,
    build_data,
    build_model,
    check_facts,
    needs_facts,
    stamp_data,
)
from sparsejax.training.side_files import DATA, FACTS, has_side_file, read_side_file
from sparsejax.types import PathLike


def has_stamp(workdir: PathLike) -> bool:
    """Return whether a run saved a stamp of its data; runs of older versions didn't."""
    return has_side_file(workdir, DATA)


def describe_data(workdir: PathLike) -> str:
    """Say in a few words how much there was at `config.task.source` when a run was started.

    Returns:
      Such as "200 files, 369,357 bytes"; empty if the run recorded nothing.
    """
    stamp = (read_side_file(workdir, DATA) or {}).get("task.source")
    return describe(stamp) if stamp else ""


def save_facts(workdir: PathLike, config: ConfigDict, facts: Facts | None) -> None:
    """Write a stamp of a run's data to data.json and its facts to facts.json, each once."""
    workdir = pathlib.Path(workdir)
    if not os.path.exists(workdir / DATA):
        write_text(workdir / DATA, json.dumps(stamp_data(config), indent=2) + "\n")
    if facts is not None and not os.path.exists(workdir / FACTS):
        write_text(workdir / FACTS, json.dumps(facts) + "\n")


def check_stamp(workdir: PathLike, config: ConfigDict) -> None:
    """Check that the data are those that the run was started with, possibly in another location.

    Raises:
      ConfigError: the data differ or are missing; names the config key.
    """
    then, now = read_side_file(workdir, DATA) or {}, stamp_data(config)
    for key in sorted(then.keys() | now.keys()):
        ours, theirs = now.get(key, {}), then.get(key, {})
        if ours != theirs:
            group, name = key.split(".")
            raise ConfigError(
                f"config.{key} is {config[group][name]!r}, which holds different data "
                f"({describe(ours)}) from what the run in {workdir} was started with "
                f"({describe(theirs)}); accepted: the same data, in any location, or another "
                "--workdir"
            )


def _are_there(workdir: PathLike, config: ConfigDict) -> bool:
    """Return whether all paths in a run's stamp exist; not every fact needs all of them."""
    places = (key.split(".") for key in read_side_file(workdir, DATA) or {})
    return all(os.path.exists(config[group][name]) for group, name in places)


def read_facts(workdir: PathLike, config: ConfigDict) -> Facts | None:
    """Return what a run's Model needs to know about the data; None if the run didn't save it.

    Raises:
      ConfigError: facts.json is damaged, or lacks what a Model of `config` needs.
    """
    facts = read_side_file(workdir, FACTS)
    if facts is not None:
        check_facts(config, facts, str(pathlib.Path(workdir) / FACTS))
    return facts


def find_facts(config: ConfigDict, origin: PathLike) -> Facts:
    """Compute the facts about the data of a run whose version didn't save them yet.

    Args:
      config: the run's resolved config.
      origin: the run's workdir, or a sparse file of it.

    Returns:
      Facts; the data are only read if the Model needs any.

    Raises:
      ConfigError: the data are missing, or don't match the run's stamp; names `origin`.
    """
    if not needs_facts(config):
        return {}
    try:
        known = build_data(config).facts()
        if has_stamp(origin) and _are_there(origin, config):
            check_stamp(origin, config)
        return known
    except ConfigError as error:
        raise ConfigError(
            f"{origin} was written by an older version, which didn't save what its model needs to "
            f"know about the data: {error}"
        ) from error


def build_model_of(config: ConfigDict, facts: Facts | None, origin: PathLike) -> Model:
    """Build the Model of a run; without saved facts, its data must be found again.

    Raises:
      ConfigError: see `find_facts`; or no Model can be built like this; names `origin`.
    """
    known = find_facts(config, origin) if facts is None else facts
    try:
        return build_model(config, known)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from error
