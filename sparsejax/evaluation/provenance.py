"""Where a result comes from: commit, device, versions, date."""

import datetime
import importlib.metadata
import pathlib
import platform
import subprocess

import jax

_PACKAGES = ("jax", "flax", "optax", "numpy")


def provenance():
    """Return what a result should carry, a JSON-able dictionary.

    Returns:
      `commit` (with `-dirty` if tracked files were changed; None outside a git checkout),
      `device`, `versions` and `date` (UTC).
    """
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "commit": _commit(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": {"python": platform.python_version()} | versions,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _commit():
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
