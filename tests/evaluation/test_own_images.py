"""From a folder of photos to its measures, with the config of one's own images as it is."""

import hashlib

import numpy as np
import pytest

from configs.folder import get_config
from sparsejax.configuration import resolve
from sparsejax.evaluation.closing import close_run
from sparsejax.evaluation.evaluate import evaluate_run, meter_of
from sparsejax.training import loop
from tests.data.sets import encoded, pixels, write
from tests.training.tiny import SMALL

SHORT = {"steps": 4, "batch_size": 8, "optimizer.warmup_steps": 1, "sparsity.update_interval": 2}
SHORT |= {"log.every": 2, "log.tensorboard": False, "sample.every": 0, "sample.steps": 3}


@pytest.mark.slow
def test_two_hundred_photos_are_trained_on_and_measured(tmp_path):
    """By what so few can tell: no subsets of 1,000, and a held-out loss."""
    photos = {f"{i}.png": encoded(pixels(i, 9, 12)) for i in range(200)}
    hashes = [int(hashlib.sha256(photo).hexdigest(), 16) / 2**256 for photo in photos.values()]
    held_out = int(np.sum(np.array(hashes) < 0.1))
    config = get_config("grey,rigl,0.5")
    config.update_from_flattened_dict(SMALL | SHORT)
    config.task.source = str(write(tmp_path / "photos", **photos))
    assert loop.train(config, tmp_path / "run")
    assert close_run(tmp_path / "run")["density"] < 0.51
    row = evaluate_run(tmp_path / "run", meter_of(resolve(config)))
    names = {f"{name}[pixels:16x16]@{held_out}" for name in ("FD", "precision", "recall")}
    assert set(row["measures"]) == {*names, "held-out loss"}
    assert 0.5 < row["measures"]["held-out loss"] < 2
    assert row["reference"] == f"photos validation, {held_out} examples"
