"""Tasks by name."""

from sparsejax.configuration import require
from sparsejax.data.builders import stamp as data_stamp
from sparsejax.tasks.autoencoder import autoencoder_task
from sparsejax.tasks.images import images_task
from sparsejax.tasks.latents import latents_task, stamp_first_stage
from sparsejax.tasks.strokes import strokes_task

BUILDERS = {
    "images": images_task,
    "autoencoder": autoencoder_task,
    "latents": latents_task,
    "strokes": strokes_task,
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
