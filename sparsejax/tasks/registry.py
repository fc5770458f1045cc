"""Tasks by name."""

from sparsejax.configuration import require
from sparsejax.tasks.autoencoder import autoencoder_task
from sparsejax.tasks.images import images_task
from sparsejax.tasks.latents import latents_task
from sparsejax.tasks.strokes import strokes_task

BUILDERS = {
    "images": images_task,
    "autoencoder": autoencoder_task,
    "latents": latents_task,
    "strokes": strokes_task,
}


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
