"""Checksums are those of zlib, of what counts and of nothing else."""

import json
import zlib

import numpy as np
import pytest

from sparsejax import checksums


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.int64])
def test_an_array_counts_as_its_bytes_in_c_order(dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    expected = zlib.crc32(array.tobytes())
    strided = np.zeros((4, 3, 4), dtype)
    strided[::2] = array
    for same in (array, np.asfortranarray(array), strided[::2], array[::-1][::-1]):
        assert checksums.of_array(same) == expected
    assert checksums.of_array(array.T) == zlib.crc32(array.T.tobytes()) != expected
    assert checksums.of_array(np.zeros((), dtype)) == zlib.crc32(bytes(np.dtype(dtype).itemsize))


def test_a_json_value_counts_as_it_is_read_again():
    value = {"b": [1, 2.5, None], "a": {"d": "ü", "c": 1e-300}}
    again = json.loads(json.dumps(dict(reversed(value.items())), indent=1))
    assert checksums.of_json(value) == checksums.of_json(again)
    assert checksums.of_json(value) == zlib.crc32(
        b'{"a": {"c": 1e-300, "d": "\\u00fc"}, "b": [1, 2.5, null]}'
    )
    assert checksums.of_json(value) != checksums.of_json(value | {"b": [2.5, 1, None]})
