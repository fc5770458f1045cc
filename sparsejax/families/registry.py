"""Tasks by name."""

from sparsejax.data.builders import stamp as data_stamp
from sparsejax.errors import require
from sparsejax.families import strokes
from sparsejax.families.arguments import network_keys
from sparsejax.families.autoencoder import autoencoder_task
from sparsejax.families.images import images_task
from sparsejax.families.latents import latents_task, stamp_first_stage
from sparsejax.families.strokes import strokes_task
from sparsejax.models import first_stage
from sparsejax.models.published import FREE_ARGUMENTS, comparable
from sparsejax.models.unet import UNet
from sparsejax.schema import Key

BUILDERS = {
    "images": images_task,
    "autoencoder": autoencoder_task,
    "latents": latents_task,
    "strokes": strokes_task,
}
# The networks of `config.model`, by `task.name` and `task.kind`; None: whatever the kind.
NETWORKS = {
    "images": {None: UNet},
    "latents": {None: UNet},
    "autoencoder": first_stage.KINDS,
    "strokes": strokes.KINDS,
}


def network_arguments(config) -> dict:
    """Return what determines what the network of a config computes, apart from its weights.

    Args:
      config: resolved ConfigDict.

    Returns:
      `{name: value}` of the network's arguments, defaults included; see `models.published`.
    """
    kinds = NETWORKS[config.task.name]
    fields = kinds[None if None in kinds else config.task.kind].__dataclass_fields__
    passed_over = ("parent", "name", *FREE_ARGUMENTS)
    given = config.model.to_dict()
    return {
        name: comparable(name, given.get(name, field.default))
        for name, field in fields.items()
        if name not in passed_over
    }


def stamp_data(config):
    """Return what a run trains on, by the config keys of the places where it lies.

    Args:
      config: resolved ConfigDict.

    Returns:
      JSON-able dictionary `{key: stamp}` (`data.stamps`), the same wherever the data lie.

    Raises:
      ConfigError: the data or the first stage that the config names is not there.
    """
    stamp = data_stamp(config.task)
    if config.task.name == "latents":
        stamp["first_stage.path"] = stamp_first_stage(config.first_stage)
    return stamp


def model_keys(config) -> tuple[Key, ...]:
    """Return the keys of `config.model` and `config.first_stage.model`, as far as they are known.

    Args:
      config: ConfigDict; its task and kinds may be none.
    """
    kinds = NETWORKS.get(config.task.name, {})
    network = kinds.get(None) or kinds.get(config.task.kind)
    keys = network_keys(network) if network else ()
    stage = first_stage.KINDS.get(config.first_stage.kind)
    return keys + (network_keys(stage, "first_stage.model") if stage else ())


def build_task(config):
    """Return the Task that `config.task.name` names, checked against the rest of the config.

    Args:
      config: resolved ConfigDict (see `configuration`).

    Returns:
      Task.

    Raises:
      ConfigError: names the config key, its value and what is accepted.
    """
    name = config.task.name
    require(name in BUILDERS, "task.name", name, ", ".join(BUILDERS))
    return BUILDERS[name](config)
