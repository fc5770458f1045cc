"""Model families. Training knows them only as a Model and a Data."""

from sparsejax.families.family import Data, Facts, Family, Model
from sparsejax.families.registry import (
    build_data,
    build_model,
    check_facts,
    needs_facts,
    network_arguments,
    networks_of,
    register_family,
    stamp_data,
)

__all__ = [
    "Data",
    "Facts",
    "Family",
    "Model",
    "build_data",
    "build_model",
    "check_facts",
    "needs_facts",
    "network_arguments",
    "networks_of",
    "register_family",
    "stamp_data",
]
