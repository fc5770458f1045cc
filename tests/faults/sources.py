"""A small, whole file of every kind that the project reads."""

import json
import pathlib
import shutil
import zipfile

import numpy as np

from tests.data import sets, sketches
from tests.faults.reading import cache_arrays, download, read_prepared

MODELS = pathlib.Path(__file__).parents[1] / "models"


def write_npz_images(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "images.npz"
    images = np.stack([sets.pixels(i) for i in range(12)])
    np.savez_compressed(path, images=images, labels=np.arange(12) % 3, split=np.arange(12) % 3)
    return path


def write_npz_encoded(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "encoded.npz"
    images = [sets.encoded(sets.pixels(i), f) for i, f in enumerate(("png", "bmp", "gif", "tiff"))]
    offsets = np.cumsum([0, *map(len, images)])
    np.savez(path, jpeg=np.frombuffer(b"".join(images), np.uint8), offsets=offsets)
    return path


def write_folder(folder: pathlib.Path) -> pathlib.Path:
    names = [
        f"{split}/{label}/{i}.png" for i, split in enumerate(("train", "test")) for label in "ab"
    ]
    return sets.write(folder / "images", **{name: sets.pixels(i) for i, name in enumerate(names)})


def write_packed(folder: pathlib.Path) -> pathlib.Path:
    arrays = {
        "label": np.arange(3),
        "words": np.array(["cat", "eye", "mouth"]),
        "split": np.arange(3),
    }
    return sketches.save_packed(folder / "drawings.npz", **arrays)


def write_lines(folder: pathlib.Path) -> pathlib.Path:
    lines = [sketches.line(word=word, key=str(i)) for i, word in enumerate(("cat", "eye", "cat"))]
    return sketches.save_lines(folder / "drawings.ndjson", *lines)


SVGS = {
    "05b57": sketches.svg("M1,1h9", "M3,4c1,2 3,4 5,6s7,8 9,9"),
    "05b58": sketches.svg("M10,10l5,5v-4H3z", name="05b58"),
    "05b59": sketches.svg("M1.5,2.5q3,4 5,6t1,1a3,4 0 0 1 5,5", name="05b59"),
}


def write_svgs(folder: pathlib.Path) -> pathlib.Path:
    return sketches.save_svgs(folder / "kanji", **SVGS)


def write_zip(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "kanji.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in SVGS.items():
            archive.writestr(f"kanji/{name}.svg", text)
    return path


def write_sparse_file(folder: pathlib.Path) -> pathlib.Path:
    from sparsejax.sparse_files import save_sparse

    rng, path = np.random.default_rng(0), folder / "model.safetensors"
    mask = rng.random((40, 60)) < 0.4
    params = {"a": {"kernel": np.where(mask, rng.normal(size=(40, 60)), 0), "bias": np.ones(60)}}
    save_sparse(path, params, {"a": {"kernel": mask, "bias": np.array(True)}}, {"name": "a model"})
    return path


def make_sparse_run(scratch: pathlib.Path) -> None:
    """Write the reference run as a sparse file, once."""
    from sparsejax.training import runs

    target = scratch / "references/model.safetensors"
    if not target.exists():
        runs.save_sparse_run(scratch / "references/train/run", target)


def copy_sparse_run(scratch: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copy(scratch / "references/model.safetensors", folder))


def copy_repository(scratch: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    (folder / "README.md").write_text("---\nlibrary_name: sparsejax\n---\n")
    return copy_sparse_run(scratch, folder)


def write_download(folder: pathlib.Path) -> pathlib.Path:
    """Leave a publisher's file and its record in a folder of their own."""
    from sparsejax.data import recorded

    path = folder / "downloads"
    path.mkdir()
    file = download(path)
    file.path.write_bytes(sketches.line(key="0").encode())
    assert recorded.is_intact(file)
    recorded.write_record(file, recorded.read_record(file) | {"url": file.url})
    return path


def write_record(folder: pathlib.Path) -> pathlib.Path:
    return download(write_download(folder)).record


def write_first_stage(folder: pathlib.Path) -> pathlib.Path:
    from safetensors.numpy import save_file

    path = folder / "first.safetensors"
    arrays = {
        "encoder.down.0.block.0.norm1.weight": np.ones(8, np.float32),
        "encoder.conv_in.weight": np.ones((8, 3, 3, 3), np.float32),
        "quantize.embedding.weight": np.ones((16, 3), np.float32),
    }
    save_file(arrays, path, metadata={"kind": "vq", "model": json.dumps({"channels": 8})})
    return path


def write_unet(folder: pathlib.Path) -> pathlib.Path:
    from safetensors.numpy import save_file

    path = folder / "unet.safetensors"
    arrays = {
        "input_blocks.0.0.weight": np.ones((8, 3, 3, 3), np.float32),
        "middle_block.1.qkv.weight": np.ones((24, 8, 1), np.float32),
        "out.0.weight": np.ones(8, np.float32),
    }
    save_file(arrays, path)
    return path


def write_unet_config(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "config.json"
    networks = json.loads((MODELS / "diffusers_configs.json").read_text())["networks"]
    configs = [network["config"] for network in networks.values()]
    found = next(one for one in configs if one["_class_name"] == "UNet2DModel")
    path.write_text(json.dumps(found))
    return path


def write_cache(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "features.npz"
    np.savez(path, **cache_arrays())
    return path


def write_statistics(folder: pathlib.Path) -> pathlib.Path:
    from sparsejax.metrics import moments

    path = folder / "statistics.npz"
    rows = np.random.default_rng(0).normal(size=(20, 4))
    moments.save_statistics(path, moments.statistics(rows), extractor="pixels")
    return path


def write_lease(folder: pathlib.Path) -> pathlib.Path:
    """Leave the lease of a dead process of this host."""
    from sparsejax import lease

    held = folder / "held"
    with lease.hold(held):
        (path,) = held.glob("lease-*.json")
        text = path.read_text()
    held.mkdir(exist_ok=True)
    path.write_text(json.dumps(json.loads(text) | {"started": "1"}) + "\n")
    return path


def write_stamp(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "stamp.json"
    identity = {"first_stage": "a first stage", "images": "blobs train", "flip": True}
    stamp = {"format": 1, "identity": identity, "record": [2, 8, 8, 3], "shards": 1, "std": 0.5}
    path.write_text(json.dumps(stamp))
    return path


def write_results(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "results.jsonl"
    row = {"run": "a", "method": "rigl", "sparsity": 0.5, "seed": 0, "steps": 5}
    row |= {"measures": {"FD": 1.5, "KID": 0.1}, "layers": {"conv": [5, 10]}}
    path.write_text("".join(json.dumps(row | {"run": name}) + "\n" for name in "abc"))
    return path


def write_metrics(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "metrics.jsonl"
    lines = [{"step": step, "loss": 1 / step, "seconds": 1e9 + step} for step in range(1, 6)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_facts(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "facts.json"
    path.write_text(json.dumps({"latent_size": 8, "first_stage": "0" * 64, "latent_scale": 2.0}))
    return path


def write_config_json(folder: pathlib.Path) -> pathlib.Path:
    from sparsejax.configuration import resolve, to_json
    from tests.training.tiny import tiny_config

    path = folder / "config.json"
    path.write_text(to_json(resolve(tiny_config())))
    return path


def write_summary(folder: pathlib.Path) -> pathlib.Path:
    write_config_json(folder)
    path = folder / "summary.json"
    names = (
        *("method", "sparsity", "parameters", "active_parameters", "loss", "step_seconds"),
        *(f"{what}_flops{kind}" for what in ("forward", "sampling") for kind in ("", "_dense")),
        *(f"training_flops_{kind}" for kind in ("dense", "formula", "run")),
        *("sampling_seconds", "peak_memory_bytes"),
    )
    path.write_text(json.dumps(dict.fromkeys(names, 1.0) | {"steps": 40, "files": []}))
    return path


def write_prepared(folder: pathlib.Path) -> pathlib.Path:
    read_prepared(folder)
    return folder
