"""Model families. Training knows a Model and a Data by their records, and nothing else."""

from sparsejax.families.family import Data, Facts, Model
from sparsejax.families.registry import (
    build_data,
    build_model,
    network_arguments,
    networks_of,
    stamp_data,
)

__all__ = [
    "Data",
    "Facts",
    "Model",
    "build_data",
    "build_model",
    "network_arguments",
    "networks_of",
    "stamp_data",
]
