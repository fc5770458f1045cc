"""Peak memory of this process."""

import resource
import sys

import jax


def peak_memory() -> int:
    """Return the peak memory in bytes: of the fullest local device, or of the process on a CPU.

    On a CPU it includes everything that the process has loaded, data and libraries too.
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats):
        return max(stat["peak_bytes_in_use"] for stat in stats)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
