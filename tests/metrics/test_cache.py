"""What evaluation keeps: several processes that need it compute it once."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
NEED = """
import os, pathlib, sys, time
import numpy as np
from sparsejax.metrics.cache import load_or_compute

folder, own, others = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3:]

def compute():
    (folder / f"computed by {own}").touch()
    time.sleep(1)
    return {"features": np.full([3, 2], float(own))}

(folder / f"ready {own}").touch()
while not all((folder / f"ready {other}").exists() for other in others):
    time.sleep(0.01)
print(load_or_compute("features-ab12", compute, {"features": (3, 2)})["features"].sum())
"""


def test_processes_that_need_the_same_features_compute_them_once(tmp_path):
    cache, names = tmp_path / "cache", ["1", "2", "3"]
    environment = os.environ | {"SPARSEJAX_CACHE": str(cache)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", NEED, str(tmp_path), name, *names],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    try:
        answers = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    (computed,) = tmp_path.glob("computed by *")
    assert answers == [f"{6 * float(computed.name.split()[-1])}\n"] * 3
    assert [path.name for path in cache.iterdir()] == ["features-ab12.npz"]
