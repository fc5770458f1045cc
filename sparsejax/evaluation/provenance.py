"""Where a result comes from: commit, device, versions, date."""

import datetime
import importlib.metadata
import pathlib
import platform
import subprocess

import jax

from sparsejax.types import Value

_PACKAGES = ("jax", "flax", "optax", "numpy")


def provenance() -> dict[str, Value]:
    """Return where a result comes from, JSON-serializable.

    Returns:
      `commit` (with `-dirty` if tracked files were changed; None outside a git checkout),
      `device`, `versions` and `date` (UTC), by name.
    """
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "commit": _commit(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": {"python": platform.python_version()} | versions,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(
            command,
            cwd=pathlib.Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
