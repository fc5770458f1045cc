"""Change a file as no disk would: its checksums and lengths fit, what it says is absurd."""

import contextlib
import io
import json
import pathlib
import re
import struct
import zipfile
import zlib
from typing import Any

import numpy as np

from tests.faults import damage
from tests.faults.damage import Rng

STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 2**64, 10**30, 10**400),
    *(0.5, -0.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), -float("inf")),
    *("", " ", "x", "nan", "1e999", "None", "\0", "\ud800", "a\nb", "é" * 300, "../..", "x" * 5000),
    *([], {}, [[]], [None], {"": None}, [1, "a"], {"a": {"b": {}}}),
)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_NUMBERS = (
    b"0",
    b"-1",
    b"1e308",
    b"-1e308",
    b"1e999",
    b"1e-999",
    b"4294967296",
    b"9" * 400,
    b"nan",
)


def mutated(kind: str, content: bytes, rng: Rng) -> bytes:
    """Return a file's bytes, changed once or twice.

    Args:
      kind: `json`, `jsonl`, `text`, `zip`, `png` or `safetensors`.
      content: bytes of a whole file of that kind.
      rng: what is drawn from.
    """
    for _ in range(1 + int(rng.integers(2))):
        try:
            content = _KINDS[kind](content, rng) if rng.random() < 0.7 else of_bytes(content, rng)
        except Exception:  # the first change left nothing that could be taken apart
            content = of_bytes(content, rng)
    return content


def of_bytes(content: bytes, rng: Rng) -> bytes:
    """Change bytes of any file: as damage does, or numbers, repetitions, another order."""
    choice = int(rng.integers(8))
    if choice < 3 or not content:
        kinds = damage.OF_BINARY
        return kinds[int(rng.integers(len(kinds)))](content, rng)
    first, last = sorted(int(n) for n in rng.integers(len(content) + 1, size=2))
    if choice == 3:
        return content[:last] + content[first:last] * int(rng.integers(1, 4)) + content[last:]
    if choice == 4:
        return content[:first] + content[last:]
    if choice == 5:
        return content[last:] + content[:first]
    if choice == 6:
        extreme = (b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\x01\0\0\0")[int(rng.integers(4))]
        return content[:first] + extreme + content[first + 4 :]
    return of_text(content, rng)


def of_text(content: bytes, rng: Rng) -> bytes:
    """Replace a number in a text."""
    found = list(_NUMBER.finditer(content))
    if not found:
        return damage.truncated(content, rng)
    match = found[int(rng.integers(len(found)))]
    number = _NUMBERS[int(rng.integers(len(_NUMBERS)))]
    return content[: match.start()] + number + content[match.end() :]


def of_value(value: Any, rng: Rng) -> Any:
    """Replace, delete, add or rename something in nested dictionaries and lists."""
    if isinstance(value, dict | list) and value and rng.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[int(rng.integers(len(keys)))]
        changed = dict(value) if isinstance(value, dict) else list(value)
        choice = rng.random()
        if choice < 0.1:
            del changed[key]
        elif choice < 0.2 and isinstance(changed, dict):
            changed[f"{key}x"] = changed.pop(key)
        elif choice < 0.25 and isinstance(changed, list):
            changed += changed
        else:
            changed[key] = of_value(value[key], rng)
        return changed
    if rng.random() < 0.03:
        nested: Any = value
        for _ in range(2000):
            nested = [nested]
        return nested
    return STRANGE[int(rng.integers(len(STRANGE)))]


def of_json(content: bytes, rng: Rng) -> bytes:
    """Change a value of a JSON file."""
    return _dumped(of_value(json.loads(content), rng))


def of_lines(content: bytes, rng: Rng) -> bytes:
    """Change a value of a line of JSON."""
    lines = content.split(b"\n")
    index = int(rng.integers(len(lines)))
    lines[index] = of_json(lines[index], rng)
    return b"\n".join(lines)


def of_zip(content: bytes, rng: Rng) -> bytes:
    """Change a member of a zip, or its name; an npy's header or its array."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    index = int(rng.integers(len(members)))
    name, member = members[index]
    choice = rng.random()
    if choice < 0.1:
        members.pop(index)
    elif choice < 0.2:
        members[index] = (("../" + name, name + ".svg", "x.npy", "")[int(rng.integers(4))], member)
    elif choice < 0.3:
        members.append(members[index])
    elif name.endswith(".npy"):
        members[index] = (name, _of_npy(member, rng))
    else:
        members[index] = (
            name,
            of_text(member, rng) if rng.random() < 0.6 else of_bytes(member, rng),
        )
    buffer = io.BytesIO()
    method = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[int(rng.integers(2))]
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, member in members:
            archive.writestr(name, member)
    return buffer.getvalue()


def _of_npy(content: bytes, rng: Rng) -> bytes:
    if rng.random() < 0.4:
        return of_text(content[:128], rng) + content[128:]
    if rng.random() < 0.2:
        return of_bytes(content, rng)
    array = np.load(io.BytesIO(content), allow_pickle=False)
    changes = (
        lambda: array[..., None],
        lambda: array.reshape(-1),
        lambda: array[:0],
        lambda: array.astype(np.float64) * np.nan,
        lambda: array.astype(np.float64) * 1e308 * 10,
        lambda: np.full_like(array, np.iinfo(np.int8).max),
        lambda: -array.astype(np.int64) - 1,
        lambda: array.astype(np.uint64) + np.uint64(2**63),
        lambda: array.astype(complex),
        lambda: array.astype(str),
        lambda: array.astype("S3"),
        lambda: np.zeros(array.shape, "M8[s]"),
        lambda: np.zeros(array.shape, [("a", "i4"), ("b", "f8")]),
        lambda: np.array(array.reshape(-1)[0]),
        lambda: array[::-1],
    )
    buffer = io.BytesIO()
    np.save(buffer, changes[int(rng.integers(len(changes)))](), allow_pickle=False)
    return buffer.getvalue()


def of_png(content: bytes, rng: Rng) -> bytes:
    """Change a chunk of a PNG, whose checksum is computed again."""
    chunks, at = [], 8
    while at < len(content):
        size, kind = struct.unpack(">I4s", content[at : at + 8])
        chunks.append((kind, content[at + 8 : at + 8 + size]))
        at += size + 12
    index = int(rng.integers(len(chunks)))
    kind, data = chunks[index]
    chunks[index] = (kind, of_bytes(data, rng))
    if rng.random() < 0.1:
        chunks = [chunks[i] for i in rng.permutation(len(chunks))]
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return content[:8] + b"".join(parts)


def of_safetensors(content: bytes, rng: Rng) -> bytes:
    """Change the header of a safetensors file; its length fits."""
    size = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + size], content[8 + size :]
    values = json.loads(header)
    metadata = values.get("__metadata__", {})
    name = next((n for n in sorted(metadata) if metadata[n][:1] in "[{"), "")
    if name and rng.random() < 0.5:  # JSON in its texts
        names = [n for n in sorted(metadata) if metadata[n][:1] in "[{"]
        name = names[int(rng.integers(len(names)))]
        metadata[name] = _dumped(of_value(json.loads(metadata[name]), rng)).decode()
    else:
        values = of_value(values, rng)
    header = _dumped(values)
    return struct.pack("<Q", len(header)) + header + data


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


_KINDS = {
    "json": of_json,
    "jsonl": of_lines,
    "text": of_text,
    "zip": of_zip,
    "png": of_png,
    "safetensors": of_safetensors,
}


def mutate_file(kind: str, path: pathlib.Path, rng: Rng) -> None:
    """Change a file, or one of those in a folder."""
    if path.is_dir():
        files = sorted(one for one in path.rglob("*") if one.is_file())
        path = files[int(rng.integers(len(files)))]
    if kind == "sparse run" and rng.random() < 0.7:
        with contextlib.suppress(RecursionError):  # nested more deeply than json can write
            _mutate_run(path, rng)
        return
    kind = "safetensors" if kind == "sparse run" else kind
    path.write_bytes(mutated(kind, path.read_bytes(), rng))


def _mutate_run(path: pathlib.Path, rng: Rng) -> None:
    """Change what a sparse file says of its run; its checksums fit, as if it were made so."""
    from sparsejax.sparse_files import load_sparse, save_sparse

    params, masks, metadata = load_sparse(path)
    name = ("config", "config", "facts", "steps")[int(rng.integers(4))]
    metadata[name] = of_json(metadata[name].encode(), rng).decode()
    save_sparse(path, params, masks, metadata)
