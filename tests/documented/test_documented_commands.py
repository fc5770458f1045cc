"""Every command of README and docs/ is run in order, made tiny; see documented.py."""

import json
import os
import pathlib
import re
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
from tests.families.test_strokes import write_scribbles

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PROGRAMS = ("python", "pip", "pytest")


def blocks_of(document):
    """The bash blocks of a document, in order."""
    return [code for kind, code in FENCED.findall(document.read_text()) if kind in ("bash", "sh")]


def inline_of(document):
    """Commands within the text: `python -m benchmarks.memory`."""
    spans = re.findall(r"`([^`\n]+)`", FENCED.sub("", document.read_text()))
    return [span for span in spans if span.split()[0] in PROGRAMS and " " in span]


def is_part_of_any(command, scripts):
    """Whether a command's words stand in a script in this order, so that it runs with it."""

    def is_part_of(script):
        words = iter(script.split())
        return all(word in words for word in command.replace("...", "").split())

    return any(map(is_part_of, scripts))


SCRIPTS = [script for document in DOCUMENTS for script in blocks_of(document)]


def write_photos(place):
    """Pictures of three classes, 16 to train and 8 for validation, as an npz and as a folder."""
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(24, 64, 64, 3), dtype=np.uint8)
    labels, split = np.arange(24) % 3, np.arange(24) // 16
    np.savez(place / "photos.npz", images=images, labels=labels, split=split)
    files = {
        f"{('train', 'val')[part]}/n{label}/{i}.png": image
        for i, (image, label, part) in enumerate(zip(images, labels, split, strict=True))
    }
    write(place / "imagenette2-160", **files)


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
    for script in (ROOT / "docs").glob("*.py"):
        shutil.copy(script, place / "docs")
    for document in DOCUMENTS:
        for name, code in documented.files_of(document).items():
            (place / name).write_text(code)
    write_scribbles(place / "vmnist_like.npz", label=np.arange(60) % 10, mnist_index=np.arange(60))
    write_photos(place)
    shutil.copy(EXCERPTS / "kanjivg.zip", place / "kanjivg-20240807-main.zip")
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


def commands_of(document):
    """Every `python` command in a document, with variables as written."""
    scripts = "\n".join([*blocks_of(document), *inline_of(document)]).replace("\\\n", " ")
    return re.findall(r"(?<![\w./-])python ([^\"`\n#]+)", scripts)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_of_a_document_is_run_or_stands_in_the_list(document):
    for command in commands_of(document):
        known = documented.reason_not_to_run(command) or documented.tiny_flags(command) is not None
        assert known or is_part_of_any(command, SCRIPTS), (
            f"python {command}: see the head of {documented.__file__}"
        )


def in_turn(document):
    """The document as a parameter. All but two use what the documents before them left behind."""
    group = "alone" if document.name in ("choosing.md", "faster_and_smaller.md") else "in order"
    return pytest.param(document, marks=pytest.mark.xdist_group(group), id=document.name)


@pytest.mark.slow
@pytest.mark.parametrize("document", list(map(in_turn, DOCUMENTS)))
def test_every_command_of_a_document_runs(document, shell):
    inline = [
        command
        for command in inline_of(document)
        if command.startswith("python") and not is_part_of_any(command, SCRIPTS)
    ]
    for script in [*blocks_of(document), *inline]:
        for line in shell(script):
            print("not run" if line["not_run"] else f"{line['seconds']:.0f} s", line["command"])


def test_no_reason_is_left_over():
    commands = [command for document in DOCUMENTS for command in commands_of(document)]
    given = {documented.reason_not_to_run(command) for command in commands}
    assert {reason for _, reason in documented.NOT_RUN} == given - {None}


def test_a_command_that_nobody_listed_fails(tmp_path):
    log = tmp_path / "log.jsonl"
    assert documented.main(log, "new_program.py", "--flag") == 2
    assert documented.tiny_flags("train.py --config configs/digits.py")
    assert documented.reason_not_to_run("train.py --config configs/digits.py") is None
    line = "-m sparsejax sweep --config configs/digits.py --seeds 3,1 --levels=0.5,0.9"
    assert documented.tiny_flags(line)[-2:] == ["--seeds=3", "--levels=0.5"]
