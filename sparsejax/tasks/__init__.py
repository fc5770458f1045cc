"""Model families. A task is one record of functions; training knows nothing else of it."""

from sparsejax.tasks.registry import build_task, network_arguments, stamp_data
from sparsejax.tasks.task import Task

__all__ = ["Task", "build_task", "network_arguments", "stamp_data"]
