"""Programs that XLA compiled, kept from one command to the next in the user's cache folder.

It is JAX's persistent compilation cache, with a folder for each kind of machine. JAX's limit of its
size isn't used: it needs another package, a lock at each read, which network storage may lack, and
in JAX 0.10 a process that is killed while it writes stops all others from writing.
"""

import contextlib
import glob
import hashlib
import importlib.metadata
import logging
import os
import pathlib
import platform
import re
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

from sparsejax.storage import cache_folder

LIMIT = 2**30  # bytes of all machines together, which a single command may exceed

_FOLDER = "JAX_COMPILATION_CACHE_DIR"
_SHORTEST = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
_CPU = (  # of /proc/cpuinfo
    *("vendor_id", "cpu family", "model", "model name", "flags"),  # of x86
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),  # of ARM
)
_PROBLEM = re.compile(
    r"Error (reading|writing) persistent compilation cache entry for '(.+?)': \w+: (\[Errno .*)?",
    re.DOTALL,
)

logger = logging.getLogger(__name__)


def keep() -> None:
    """Let JAX keep what this process compiles; call it before jax is imported.

    It does nothing where the user's environment says where to keep it, or jax is imported already.
    Nothing is created before something is compiled, and no problem with the folder is an error.
    """
    if _FOLDER in os.environ or "jax" in sys.modules:
        return
    try:
        root = cache_folder() / "compilations"
    except RuntimeError:  # this user has no home
        return
    folder = root / hashlib.sha256("\n".join(_cpu()).encode()).hexdigest()[:16]
    os.environ[_FOLDER] = str(folder)
    os.environ.setdefault(_SHORTEST, "0.1")
    # These releases take hints to LLVM for features that the CPU lacks, and print of every program
    # that they read that it may not run. Level 1 is JAX's own; the commands that a process with JAX
    # starts, as from a notebook, inherit it.
    is_noisy = importlib.metadata.version("jaxlib") in ("0.10.0", "0.10.1")
    if is_noisy and os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    prune(root, LIMIT)
    _handle_problems(folder)


def prune(folder: pathlib.Path, limit: int) -> None:
    """Delete the files of a folder that were used least recently, beyond `limit` bytes.

    Args:
      folder: path; it need not exist.
      limit: bytes.
    """
    total = 0
    with contextlib.suppress(OSError):  # other commands may be deleting too
        found = [(path.stat(), path) for path in folder.rglob("*") if path.is_file()]
        # Not all file systems record when a file was read.
        found.sort(key=lambda pair: max(pair[0].st_atime, pair[0].st_mtime), reverse=True)
        for status, path in found:
            total += status.st_size
            if total > limit:
                path.unlink(missing_ok=True)


def _cpu() -> Sequence[str]:
    """Describe the CPU: programs for one kind may not run, or run slowly, on another.

    The number of threads is part of it, since XLA divides a program among them.
    """
    try:
        first = pathlib.Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        kind = [line for line in first.splitlines() if line.split("\t")[0].strip() in _CPU]
    except OSError:
        kind = []
    kind = kind or [platform.node(), platform.processor()]  # unknown: no other machine's
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [platform.system(), platform.machine(), *kind, f"{threads}", os.environ.get("NPROC", "")]


def _handle_problems(folder: pathlib.Path) -> None:
    """Let what JAX says of unusable files lead to deeds, or to one line.

    JAX never replaces a file, so one that is damaged is deleted; the next command finds it whole.
    """
    show, is_said = warnings.showwarning, False

    def handle(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        nonlocal is_said
        found = _PROBLEM.match(str(message))
        if not found:
            show(message, category, filename, lineno, file, line)
            return
        doing, name, reason = found.groups()
        with contextlib.suppress(OSError):
            if doing == "writing" or not reason:  # it is cut off, or damaged
                for path in folder.glob(f"{glob.escape(name)}-*"):
                    path.unlink(missing_ok=True)
        if reason and not is_said:
            is_said = True
            logger.info("compiled programs can't be kept: %s", reason)

    warnings.showwarning = handle
