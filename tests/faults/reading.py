"""What the project's readers read, item by item: `{name: hash}`, None for what they leave out."""

import hashlib
import os
import pathlib
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np

from tests.data import sets

Read: TypeAlias = dict[str, str | None]


def hashed(*values: Any) -> str:
    """Return a hash of nested dictionaries, lists, arrays and plain values."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value):
                add(key)
                add(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        elif hasattr(value, "dtype"):
            array = np.asarray(value)
            digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        else:
            digest.update(repr(value).encode())

    add(values)
    return digest.hexdigest()[:16]


def _items(items: Iterable[Any], channels: int) -> Read:
    from sparsejax.data.decoding import decode

    found: Read = {}
    for item in items:
        try:
            pixels = decode(item.read(), 8, channels)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001  a broken image, which is left out by its name
            found[item.name] = None
        else:
            assert pixels.shape == (8, 8, channels)
            found[item.name] = hashed(pixels, item.split, item.label)
    return found


def read_npz_images(path: pathlib.Path) -> Read:
    from sparsejax.data import archives

    return _items(archives.items(path), archives.channels(path))


def read_folder(path: pathlib.Path) -> Read:
    from sparsejax.data import folders

    return _items(folders.items(path), 3)


def _drawings(found: Iterable[Any]) -> Read:
    from sparsejax.data.drawings import Broken

    read: Read = {}
    for one in found:
        if isinstance(one, Broken):
            assert "\n" not in one.name + one.reason, "a reason of several lines"
            read[one.name.partition(" kvg:")[0]] = None
            continue
        assert all(np.isfinite(stroke).all() for stroke in one.strokes), "a number isn't finite"
        read[one.name] = hashed(one.split, one.label, list(one.strokes))
    return read


def read_packed(path: pathlib.Path) -> Read:
    from sparsejax.data import packed

    return _drawings(packed.read(path))


def read_lines(path: pathlib.Path) -> Read:
    from sparsejax.data import quickdraw

    return _drawings(quickdraw.read(path, ("cat", "eye")))


def read_kanji(path: pathlib.Path) -> Read:
    from sparsejax.data import kanjivg

    return _drawings(kanjivg.read(path))


def read_sparse_file(path: pathlib.Path) -> Read:
    from sparsejax.sparse_files import load_sparse

    params, masks, metadata = load_sparse(path)
    return {"params": hashed(params), "masks": hashed(masks), "metadata": hashed(metadata)}


def read_sparse_run(path: pathlib.Path) -> Read:
    from sparsejax.training import runs, sparse_models

    config, facts, params, masks = runs.read_sparse(path)
    sparse_models.build_sparse_model(config, facts, params, path)
    return {"params": hashed(params), "masks": hashed(masks), "config": hashed(config.to_dict())}


def read_repository(path: pathlib.Path) -> Read:
    """Read a model repository by its folder."""
    from sparsejax.training.hub import sparse_file_of

    return read_sparse_run(sparse_file_of(path.parent))


def read_download(path: pathlib.Path) -> Read:
    """Check a publisher's file, here or of its record, as whoever reads it does first."""
    from sparsejax.data import recorded

    file = download(path if path.is_dir() else path.parent)
    whole = recorded.is_intact(file)
    return {file.path.name: hashed(file.path.read_bytes()) if whole else None}


def download(folder: pathlib.Path) -> Any:
    """Return the publisher's file that is kept in a folder."""
    from sparsejax.data.recorded import Download

    return Download("Quick, Draw!", "https://127.0.0.1/a.ndjson", folder / "a.ndjson", "CC BY 4.0")


def read_first_stage(path: pathlib.Path) -> Read:
    from sparsejax.models import first_stage, published

    described = first_stage.read_description(path)
    return {"params": hashed(published.load_autoencoder(path)), "description": hashed(described)}


def read_unet(path: pathlib.Path) -> Read:
    from sparsejax.models import published

    return {"params": hashed(published.load_unet(path))}


def read_unet_config(path: pathlib.Path) -> Read:
    from sparsejax.models import diffusers_config, published

    return {"arguments": hashed(published.read_config(path, diffusers_config.unet_arguments))}


def read_cache(path: pathlib.Path) -> Read:
    """Read an npz of the cache, or compute it again."""
    from sparsejax.metrics.cache import load_or_compute

    os.environ["SPARSEJAX_CACHE"] = str(path.parent)
    shapes = {name: array.shape for name, array in cache_arrays().items()}
    found = load_or_compute(path.stem, cache_arrays, shapes)
    return {name: hashed(array) for name, array in found.items()}


def cache_arrays() -> dict[str, np.ndarray]:
    """Return what the cache of the suite holds."""
    rng = np.random.default_rng(0)
    return {"mean": rng.normal(size=8), "scatter": rng.normal(size=(8, 8)), "count": np.array(20.0)}


def read_statistics(path: pathlib.Path) -> Read:
    from sparsejax.metrics.moments import load_statistics

    stats, about = load_statistics(path)
    return {"statistics": hashed(list(stats)), "about": hashed(about)}


def read_config_json(path: pathlib.Path) -> Read:
    from sparsejax.training import runs

    return {"config": hashed(runs.read_config(path.parent).to_dict())}


def read_facts(path: pathlib.Path) -> Read:
    from sparsejax.configuration import resolve
    from sparsejax.training import facts
    from tests.families.first_stage import second_stage_config

    known = facts.read_facts(path.parent, resolve(second_stage_config("a.npz", "b.safetensors")))
    return {"facts": hashed(known)}


def read_summary(path: pathlib.Path) -> Read:
    from sparsejax.evaluation import closing

    summary = closing.read_summary(path.parent)
    return {"summary": None if summary is None else hashed(summary)}


def read_metrics(path: pathlib.Path) -> Read:
    from sparsejax.training import metrics_log

    lines = metrics_log.read_metrics(path)
    assert all(isinstance(line["step"], int) for line in lines)
    return {str(index): hashed(line) for index, line in enumerate(lines)}


def read_results(path: pathlib.Path) -> Read:
    from sparsejax.reports import groups, results

    compared = groups.compare(results.read_results(path))
    return {run.name: hashed(run.numbers) for run in compared.runs}


def read_stamp(path: pathlib.Path) -> Read:
    from sparsejax.data import latents

    std = latents.read_std(path.parent, "a first stage")
    assert isinstance(std, float | int), f"a standard deviation is {std!r}"
    assert 0 < std < float("inf"), f"a standard deviation is {std!r}"
    return {"std": hashed(float(std))}


def read_lease(path: pathlib.Path) -> Read:
    """Take over the lease of a process that is dead; nothing of it is left."""
    from sparsejax import lease

    with lease.hold(path.parent, patience=0.05) as guard:
        guard()
    left = sorted(other.name for other in path.parent.glob("lease-*"))
    return {"left": hashed(left)}


def read_prepared(path: pathlib.Path) -> Read:
    """Open a prepared data set whose source is gone, as another process does."""
    from sparsejax.data.images import load_images

    pixels, labels = load_images(sets.task(path, dataset="digits", source=""), "train[:64]")
    return {
        str(index): hashed(p, n) for index, (p, n) in enumerate(zip(pixels, labels, strict=True))
    }
