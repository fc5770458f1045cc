"""Model families. A task is one record of functions; training knows nothing else of it."""

from sparsejax.tasks.task import Task, build_task

__all__ = ["Task", "build_task"]
