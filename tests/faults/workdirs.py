"""The tiny runs of the fault suite: their configs as files, and what two equal runs share."""

import hashlib
import json
import pathlib
import re

import jax
import numpy as np

from sparsejax.training import runs
from sparsejax.training.metrics_log import WALL_CLOCK, read_metrics
from tests.families.first_stage import SIZE, first_stage_config, write_blobs
from tests.training.tiny import tiny_flags

STEPS = 12
SMALL = {
    "steps": STEPS,
    "model.model_channels": 8,
    "model.num_head_channels": 8,
    "model.norm_groups": 4,
    "sparsity.update_interval": 2,
    "checkpoint.every": 4,
    "log.every": 3,
    "sample.every": 5,
    "sample.steps": 2,
    "optimizer.warmup_steps": 2,
}
_TIMES = {*WALL_CLOCK, "training_seconds", "step_seconds", "sampling_seconds"}
_PICTURES = ("samples.png", "curves.png", "layers.png")


def train_words(workdir: pathlib.Path, **changes: object) -> list[str]:
    """Return the command line that trains a run of the digits."""
    return ["train", f"--workdir={workdir}", *tiny_flags(**SMALL | changes)]


def sweep_words(output: pathlib.Path) -> list[str]:
    """Return the command line of a sweep over two runs."""
    flags = tiny_flags(**SMALL | {"steps": 6, "checkpoint.every": 2, "sample.every": 0})
    grid = ["--methods=static,rigl", "--levels=0.75", f"--output={output}"]
    measuring = ["--samples=8", "--batch=8", "--metrics=fd", "--extractor=pixels"]
    return ["sweep", "--config=configs/digits.py", *flags, *grid, *measuring]


def prepare_words(folder: pathlib.Path, latents: pathlib.Path) -> list[str]:
    """Return the command line that encodes the images of a folder; see `write_first_stage`."""
    return ["prepare", f"--config={folder / 'blobs.py'}", f"--config.task.latents_dir={latents}"]


def write_first_stage(folder: pathlib.Path) -> None:
    """Write images, a first stage that has not been trained, and the config of the second stage."""
    from sparsejax.models import first_stage
    from sparsejax.models.autoencoder import VQModel

    source = folder / "blobs.npz"
    write_blobs(source)
    settings = first_stage_config(source).model
    names = ("channels", "channel_mult", "num_res_blocks", "codes", "norm_groups")
    arguments = {name: settings[name] for name in names}
    network = VQModel(**arguments)
    params = network.init(jax.random.key(0), np.zeros((1, SIZE, SIZE, 3), np.float32))["params"]
    first_stage.save_first_stage(folder / first_stage.FILE, params, "vq", arguments)
    (folder / "blobs.py").write_text(
        "from tests.families.first_stage import second_stage_config\n\n\n"
        "def get_config(arg=''):\n"
        f"    return second_stage_config({str(source)!r}, {str(folder)!r})\n"
    )


def digest(workdir: pathlib.Path) -> dict[str, str]:
    """Return what is equal in equal runs, hashed: state, metrics, pictures, summary by name."""
    _, state = runs.load_state(workdir)
    found = {"state": _hash(*(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)))}
    lines = metrics_lines(workdir)
    whole = (workdir / "metrics.jsonl").read_bytes().count(b"\n")
    found["metrics.jsonl"] = _hash(json.dumps([whole, *lines]).encode())
    for name in ("config.json", "data.json", "facts.json"):
        found[name] = _hash(json.dumps(json.loads((workdir / name).read_text())).encode())
    for name in _PICTURES:
        found[name] = _hash((workdir / name).read_bytes())
    # Not `partial-...`, as in `digest_folder`.
    for path in sorted(workdir.glob("samples/[0-9]*.png")):
        found[f"samples/{path.name}"] = _hash(path.read_bytes())
    summary = _timeless(json.loads((workdir / "summary.json").read_text()))
    return found | {"summary.json": _hash(json.dumps(summary, sort_keys=True).encode())}


def metrics_lines(workdir: pathlib.Path) -> list[dict]:
    """Return the metrics lines of a run without times."""
    return [_timeless(line) for line in read_metrics(workdir / "metrics.jsonl")]


def digest_folder(folder: pathlib.Path) -> dict[str, str]:
    """Return the hashes of all files in a folder by name.

    Left out are files that were being written when a process was killed, `partial-...`, its lease,
    which the next holder removes, and damaged files that were set aside: nobody reads them.
    """
    left = re.compile(r"partial.*(stamp\.json|array_record)|lease-\d+\.json|\.damaged")
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and not left.search(p.name))
    return {str(path.relative_to(folder)): _hash(path.read_bytes()) for path in paths}


def digest_sweep(output: pathlib.Path) -> dict[str, str]:
    """Return the rows of a sweep without times, and what is equal in its runs."""
    text = (output / "results.jsonl").read_text()
    rows = {row["run"]: row for row in map(json.loads, text.splitlines())}
    found = {"rows": str(text.count("\n"))}
    for name, row in sorted(rows.items()):
        kept = {key: row[key] for key in ("measures", "layers", "config", "loss", "ever_active")}
        found[name] = _hash(json.dumps(kept, sort_keys=True).encode())
        for key, value in digest(output / "runs" / name).items():
            found[f"{name}/{key}"] = value
    for name in ("report.md", "report.html"):
        found[name] = str((output / name).stat().st_size > 1000)
    return found


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Name what differs between two digests."""
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def saved_steps(workdir: pathlib.Path) -> list[int]:
    """Return the steps of the complete checkpoints, without JAX."""
    folder = workdir / "checkpoints"
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(name) for name in names if name.isdecimal())


def _timeless(values: dict) -> dict:
    return {key: value for key, value in values.items() if key not in _TIMES}


def _hash(*parts: bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "little") + part)
    return whole.hexdigest()[:16]
