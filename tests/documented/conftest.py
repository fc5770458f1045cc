"""A place to run documented commands in, and a shell."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from sparsejax.models import first_stage
from sparsejax.models.autoencoder import VQModel
from tests.data.sets import EXCERPTS, write
from tests.documented import documented
from tests.documented.documents import DOCUMENTS, ROOT
from tests.families.test_strokes import write_scribbles


def downloads():
    """Where downloads are kept: what lies there, as if put there by hand, isn't downloaded."""
    return pathlib.Path(os.environ["TFDS_DATA_DIR"]) / "downloads"


def write_photos(place):
    """Pictures of three classes, 16 to train and 8 for validation, as an npz and as a folder.

    A folder of pictures without classes and splits, and an npz of small grey ones of ten classes.
    """
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(24, 64, 64, 3), dtype=np.uint8)
    labels, split = np.arange(24) % 3, np.arange(24) // 16
    np.savez(place / "photos.npz", images=images, labels=labels, split=split)
    files = {
        f"{('train', 'val')[part]}/n{label}/{i}.png": image
        for i, (image, label, part) in enumerate(zip(images, labels, split, strict=True))
    }
    write(downloads() / "files" / "imagenette2-160", **files)
    grey, classes = images[:, :28, :28, :1], np.arange(24) % 10
    np.savez(place / "fashion_mnist.npz", image=grey, label=classes, split=split)
    write(place / "photos", **{f"{i}.png": image[:40] for i, image in enumerate(images)})


def write_first_stage(path):
    arguments = {
        "channels": 8,
        "channel_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "codes": 16,
        "norm_groups": 4,
    }
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(VQModel(**arguments).init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, np.float32), shapes)
    first_stage.save_first_stage(path, params, "vq", arguments)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder like the checkout, with small data of the names that documents use."""
    place = tmp_path_factory.mktemp("place")
    for name in ("train.py", "evaluate.py", "configs", "benchmarks"):
        (place / name).symlink_to(ROOT / name)
    (place / "docs" / "results").mkdir(parents=True)
    for file in (*(ROOT / "docs").glob("*.py"), ROOT / "docs" / "evidence.md"):
        shutil.copy(file, place / "docs")
    for document in DOCUMENTS:
        for name, code in documented.files_of(document).items():
            (place / name).write_text(code)
    write_scribbles(place / "vmnist_like.npz", label=np.arange(60) % 10, mnist_index=np.arange(60))
    write_photos(place)
    (downloads() / "kanjivg").mkdir(parents=True, exist_ok=True)
    for folder in (downloads() / "kanjivg", place):
        shutil.copy(EXCERPTS / "kanjivg.zip", folder / "kanjivg-20240807-main.zip")
    write_first_stage(place / "first_stage.safetensors")
    return place


@pytest.fixture(scope="module")
def shell(place):
    """`shell(script)` runs it in bash; returns what the commands within did."""
    log, programs = place / "log.jsonl", place / "bin"
    programs.mkdir()
    stand_in = f'exec "{sys.executable}" "{documented.__file__}" "{log}" "$@"'
    for name, line in {"python": stand_in, "pip": "exit 0", "pytest": "exit 0"}.items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }

    def run(script):
        log.write_text("")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        failed = [line["command"] for line in lines if line["status"]]
        assert done.returncode == 0, (
            f"{failed or script} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
        return lines

    return run
