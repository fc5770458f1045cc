"""Functions that run on several devices return what one device would."""

import jax
import numpy as np

from sparsejax.parallel import on_local_devices, shard_batch


def test_parts_of_all_devices_come_back_in_order():
    x = np.arange(12 * jax.local_device_count(), dtype=np.float32).reshape(-1, 3)
    scaled = on_local_devices(lambda tree, shift, part: tree["scale"] * part + shift)
    result = scaled({"scale": np.float32(3)}, np.float32(1), shard_batch(x))
    assert isinstance(result, np.ndarray)
    np.testing.assert_array_equal(result, 3 * x + 1)
