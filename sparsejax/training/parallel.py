"""`sparsejax.parallel`, by the name that it had before families used it too."""

from sparsejax.parallel import AXIS, data_parallel, replicate, shard_batch

__all__ = ["AXIS", "data_parallel", "replicate", "shard_batch"]
