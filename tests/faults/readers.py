"""All readers of files, and how to judge what they make of a damaged one."""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from sparsejax.errors import ConfigError
from tests.faults import damage, forks, reading, sources
from tests.faults.deadline import TooSlow, deadline
from tests.faults.reading import Read


class Reader(NamedTuple):
    """A reader, and a file for it.

    Attributes:
      write: `write(folder)` writes a whole file and returns its path.
      read: `read(path) -> {name: hash or None}`.
      errors: what it may raise.
      kind: how its bytes are put together, for `mutations`.
      has_sums: whether checksums tell every changed byte.
      is_whole: whether an item that is gone is noticed.
    """

    write: Callable[[pathlib.Path], pathlib.Path]
    read: Callable[[pathlib.Path], Read]
    errors: tuple[type[Exception], ...]
    kind: str
    has_sums: bool = False
    is_whole: bool = False


def readers(scratch: pathlib.Path) -> dict[str, Reader]:
    """Return all readers by name, imported only now; `scratch` holds a run's sparse file."""
    from sparsejax.data.items import SourceError

    source, config, value = (SourceError,), (ConfigError,), (ValueError,)
    return {
        "npz of images": Reader(
            sources.write_npz_images, reading.read_npz_images, source, "zip", True, True
        ),
        "npz of encoded images": Reader(
            sources.write_npz_encoded, reading.read_npz_images, source, "zip", True, True
        ),
        "npz of drawings": Reader(
            sources.write_packed, reading.read_packed, source, "zip", True, True
        ),
        "folder of png": Reader(
            sources.write_folder, reading.read_folder, source, "png", True, True
        ),
        "ndjson": Reader(sources.write_lines, reading.read_lines, source, "jsonl"),
        "svg": Reader(sources.write_svgs, reading.read_kanji, source, "text"),
        "zip of svg": Reader(sources.write_zip, reading.read_kanji, source, "zip", True, True),
        "sparse file": Reader(
            sources.write_sparse_file, reading.read_sparse_file, value, "safetensors", True, True
        ),
        "sparse file of a run": Reader(
            functools.partial(sources.copy_sparse_run, scratch),
            reading.read_sparse_run,
            value,
            "sparse run",
            True,
            True,
        ),
        "model repository": Reader(
            functools.partial(sources.copy_repository, scratch),
            reading.read_repository,
            value,
            "sparse run",
            True,
            True,
        ),
        "first stage safetensors": Reader(
            sources.write_first_stage, reading.read_first_stage, value, "safetensors"
        ),
        "published weights": Reader(sources.write_unet, reading.read_unet, value, "safetensors"),
        "published config.json": Reader(
            sources.write_unet_config, reading.read_unet_config, value, "json"
        ),
        "cache npz": Reader(sources.write_cache, reading.read_cache, (), "zip", True, True),
        "statistics npz": Reader(
            sources.write_statistics, reading.read_statistics, value, "zip", True, True
        ),
        "lease file": Reader(sources.write_lease, reading.read_lease, (), "json", True, True),
        "stamp.json": Reader(sources.write_stamp, reading.read_stamp, config, "json"),
        "config.json": Reader(sources.write_config_json, reading.read_config_json, config, "json"),
        "facts.json": Reader(sources.write_facts, reading.read_facts, config, "json"),
        "summary.json": Reader(sources.write_summary, reading.read_summary, (), "json"),
        "metrics.jsonl": Reader(sources.write_metrics, reading.read_metrics, (), "jsonl"),
        "results.jsonl": Reader(sources.write_results, reading.read_results, config, "jsonl"),
        "download": Reader(
            sources.write_download, reading.read_download, config, "folder", True, True
        ),
        "record of a download": Reader(sources.write_record, reading.read_download, config, "json"),
        "prepared data set": Reader(
            sources.write_prepared, reading.read_prepared, config, "folder", True, True
        ),
    }


def attempt(reader: Reader, path: pathlib.Path) -> tuple[Read | None, str, str]:
    """Read a file under limits of time; returns what was read, the refusal, what is unexplained."""
    try:
        with deadline():
            return reader.read(path), "", ""
    except reader.errors as error:
        return None, str(error) or type(error).__name__, ""
    except (Exception, TooSlow) as error:  # whatever else comes out is what we look for
        return None, "", f"{type(error).__name__}: {str(error)[:200]}"


def judge(reader: Reader, whole: Read, found: Read) -> list[str]:
    """Say what is wrong in silence: items that differ, or are gone and not named."""
    if not reader.is_whole:  # items may be gone, and those after them have other positions
        known = set(whole.values())
        return [f"{n} differs" for n, h in found.items() if h is not None and h not in known]
    differing = [n for n, h in found.items() if h is not None and whole.get(n) != h]
    gone = [name for name in whole if name not in found]
    return [f"{name} differs" for name in differing] + [f"{name} is gone" for name in gone]


def corrupted(
    scratch: pathlib.Path, folder: pathlib.Path, name: str, rng: damage.Rng
) -> dict[str, object]:
    """Write a file, damage it, read it in a process of its own; see `results.line`."""
    reader, answer, data = readers(scratch)[name], folder / "answer.json", folder / "data"
    data.mkdir()  # apart from the suite's own files: what is read may be the whole folder

    def call() -> None:
        path = reader.write(data)
        whole = reader.read(damage.copy(path, folder / f"whole-{path.name}"))
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        kinds = damage.OF_BINARY if reader.has_sums else damage.OF_TEXT
        if reader.kind == "safetensors" and not reader.has_sums:  # only its end tells of damage
            kinds = damage.OF_ENDS
        at = damage.damage_one(files, kinds, rng)
        # No list says what a folder of images holds: without one of them it is a smaller folder.
        gone = {str(p.relative_to(path)) for p in files if not p.exists()}
        whole = {item: value for item, value in whole.items() if item not in gone}
        found, refusal, bad = attempt(reader, path)
        losses = judge(reader, whole, found) if found is not None else []
        refused = bool(refusal) or (found is not None and None in found.values())
        told = {"losses": losses, "unexplained": [bad] if bad else [], "at": at}
        told |= {
            "refused": int(refused and not losses),
            "said": refusal.replace(str(data), "")[:100],
        }
        answer.write_text(json.dumps(told))

    ended = forks.run(call, folder / "printed", memory=forks.MEMORY // 2)
    if ended.status != 0:
        return {"unexplained": ended.problems(0)}
    return json.loads(answer.read_text())
