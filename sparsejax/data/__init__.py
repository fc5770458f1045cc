"""Datasets (tensorflow-datasets builders, no TensorFlow) and input pipelines (grain).

config.task.source = sparsejax.data.from_arrays(images)  # arrays in memory, as `files`
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsejax.data.arrays import from_arrays

__all__ = ["from_arrays"]


def __getattr__(name: str) -> object:
    """Import `from_arrays` when it is first used."""
    if name == "from_arrays":
        from sparsejax.data.arrays import from_arrays

        return from_arrays
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
