"""CRC-32 checksums, which tell damage that a file's own format doesn't notice."""

import json
import zlib
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Json: TypeAlias = Any  # a value from JSON


def of_json(value: Json) -> int:
    """Return the checksum of a value from JSON, the same after it is written and read again.

    Args:
      value: JSON-serializable; the order of keys doesn't matter.
    """
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def of_array(array: Array) -> int:
    """Return the checksum of an array's bytes in C order.

    Args:
      array: of any shape and dtype, which don't count.
    """
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
