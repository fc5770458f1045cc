"""Model families by name. A new family needs one more file and one more line here."""

from collections.abc import Mapping

from flax import linen as nn
from ml_collections import ConfigDict

from sparsejax import network_values
from sparsejax.errors import ConfigError, require
from sparsejax.families import autoencoder, images, latents, strokes
from sparsejax.families.arguments import network_keys
from sparsejax.families.family import Data, Facts, Family, Model
from sparsejax.models import first_stage
from sparsejax.models.arguments import FREE_ARGUMENTS, comparable
from sparsejax.schema import Key
from sparsejax.types import Value

FAMILIES = {
    "images": images.FAMILY,
    "autoencoder": autoencoder.FAMILY,
    "latents": latents.FAMILY,
    "strokes": strokes.FAMILY,
}


def register_family(name: str, family: Family) -> None:
    """Register a model family of your own, for `config.task.name`.

    Args:
      name: name of the family; registering it again from the same place replaces it.
      family: Family.

    Raises:
      ValueError: another family has this name.
    """
    other = FAMILIES.get(name)
    if other is not None and _origin(other) != _origin(family):
        raise ValueError(f"model family {name!r} is registered already; accepted: another name")
    FAMILIES[name] = family


def _origin(family: Family) -> tuple[str, str]:
    return family.model.__module__, family.model.__qualname__


def _family(config: ConfigDict) -> Family:
    name = config.task.name
    accepted = ", ".join(FAMILIES)
    if config.imports:  # a sparse file imports nothing: it may come from someone else
        accepted += f", or what is registered once {', '.join(config.imports)} is imported"
    require(name in FAMILIES, "task.name", name, accepted)
    return FAMILIES[name]


def build_model(config: ConfigDict, facts: Facts | None = None) -> Model:
    """Return the Model of a config; no data is opened.

    Args:
      config: resolved ConfigDict (see `configuration`).
      facts: what `Data.facts()` returned.

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    return _family(config).model(config, facts)


def needs_facts(config: ConfigDict) -> bool:
    """Return whether the Model of a config needs any facts about the data."""
    return bool(_family(config).facts)


def check_facts(config: ConfigDict, facts: Facts, origin: str) -> None:
    """Check the facts about the data that a file holds for the Model of a config.

    Args:
      config: resolved ConfigDict.
      facts: dictionary that the file holds.
      origin: path of the file.

    Raises:
      ConfigError: facts are missing, or `Data.facts()` can't return such values; names the file.
    """
    try:
        family = _family(config)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from error
    missing = ", ".join(name for name in family.facts if name not in facts)
    if missing:
        raise ConfigError(f"{origin} is damaged: its facts have no {missing}")
    try:
        family.check_facts(config, facts)
    except ValueError as error:
        raise ConfigError(f"{origin} is damaged: {error}") from error


def build_data(config: ConfigDict) -> Data:
    """Return the Data of a config, checked against its model.

    Args:
      config: resolved ConfigDict (see `configuration`).

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    return _family(config).data(config)


def stamp_data(config: ConfigDict) -> dict[str, Value]:
    """Return stamps of what a run trains on, by the config keys of the paths.

    Args:
      config: resolved ConfigDict.

    Returns:
      JSON-serializable `{key: stamp}` (`data.stamps`), the same wherever the data are stored.

    Raises:
      ConfigError: the data or the first stage of the config are missing.
    """
    return _family(config).stamp(config)


def networks_of(config: ConfigDict) -> Mapping[str | None, type[nn.Module]]:
    """Return the Flax modules that `config.model` can describe, by `task.kind` (None: any kind)."""
    return _family(config).networks


def network_arguments(config: ConfigDict) -> dict[str, Value]:
    """Return the arguments that determine what a config's network computes, given its weights.

    Args:
      config: resolved ConfigDict.

    Returns:
      `{name: value}` of the network's arguments, defaults included; see `models.published`.
    """
    networks = networks_of(config)
    kind = None if None in networks else network_values.kind_of(networks, config.task.kind)
    require(kind in networks, "task.kind", kind, ", ".join(map(str, networks)))
    fields = networks[kind].__dataclass_fields__
    passed_over = ("parent", "name", *FREE_ARGUMENTS)
    given = config.model.to_dict()
    return {
        name: comparable(name, given.get(name, field.default))
        for name, field in fields.items()
        if name not in passed_over
    }


def model_keys(config: ConfigDict) -> tuple[Key, ...]:
    """Return the keys of `config.model` and `config.first_stage.model`, as far as they are known.

    Args:
      config: ConfigDict; its task and kinds may be unknown names.
    """
    family = FAMILIES.get(config.task.name)
    networks = family.networks if family else {}
    kind = network_values.kind_of(networks, config.task.kind)
    network = networks.get(None) or networks.get(kind)
    keys = network_keys(network) if network else ()
    stage = first_stage.KINDS.get(config.first_stage.kind)
    return keys + (network_keys(stage, "first_stage.model") if stage else ())
