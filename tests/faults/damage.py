"""What disks, kills and transfers do to a file."""

import pathlib
import shutil
from collections.abc import Callable, Sequence

import numpy as np

Rng = np.random.Generator


def empty(content: bytes, rng: Rng) -> bytes:
    """Leave nothing: created, and never written before the power went."""
    return b""


def truncated(content: bytes, rng: Rng) -> bytes:
    """Cut off the end."""
    return content[: int(rng.integers(len(content)))] if content else b""


def zeros(content: bytes, rng: Rng) -> bytes:
    """Replace a stretch by zeros, as file systems do after a power cut."""
    first, last = sorted(int(n) for n in rng.integers(len(content) + 1, size=2))
    last = max(last, min(first + 1, len(content)))
    return content[:first] + bytes(last - first) + content[last:]


def all_zeros(content: bytes, rng: Rng) -> bytes:
    """Keep the length alone."""
    return bytes(len(content))


def noise(content: bytes, rng: Rng) -> bytes:
    """Replace a stretch by another file's bytes, none of them text."""
    first, last = sorted(int(n) for n in rng.integers(len(content) + 1, size=2))
    last = max(last, min(first + 1, len(content)))
    return (
        content[:first] + rng.integers(128, 256, last - first, np.uint8).tobytes() + content[last:]
    )


def longer(content: bytes, rng: Rng) -> bytes:
    """Append bytes that aren't text."""
    return content + rng.integers(128, 256, 1 + int(rng.integers(64)), np.uint8).tobytes()


def flipped(content: bytes, rng: Rng) -> bytes:
    """Flip one bit."""
    changed = bytearray(content)
    if changed:
        changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


Damage = Callable[[bytes, Rng], bytes]
# Text has no checksum: of a digit that became another one nobody can tell that it is wrong.
OF_TEXT: tuple[Damage, ...] = (empty, truncated, zeros, all_zeros, noise, longer)
OF_ENDS: tuple[Damage, ...] = (empty, truncated, all_zeros, longer)
OF_BINARY: tuple[Damage, ...] = (*OF_TEXT, flipped, flipped, flipped)


def damage_one(paths: Sequence[pathlib.Path], kinds: Sequence[Damage], rng: Rng) -> str:
    """Damage one of some files, or delete it; return what was done."""
    path = paths[int(rng.integers(len(paths)))]
    if rng.random() < 0.1:
        path.unlink()
        return f"{path.name} deleted"
    kind = kinds[int(rng.integers(len(kinds)))]
    before = path.read_bytes()
    after = kind(before, rng)
    path.write_bytes(after)
    return f"{path.name} {kind.__name__}" + (" (unchanged)" if before == after else "")


def copy(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Copy a file or a folder, and return the copy."""
    if source.is_dir():
        return pathlib.Path(shutil.copytree(source, target))
    return pathlib.Path(shutil.copy(source, target))
