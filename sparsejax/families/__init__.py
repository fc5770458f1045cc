"""Model families. A task is one record of functions; training knows nothing else of it."""

from sparsejax.families.registry import build_task, network_arguments, stamp_data
from sparsejax.families.task import Task

__all__ = ["Task", "build_task", "network_arguments", "stamp_data"]
