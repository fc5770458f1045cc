"""Full disks, folders that can't be written to, a workdir that somebody deletes meanwhile.

Each ends in one line, and the same command goes on once the disk is as it should be.
"""

import ctypes
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable

import numpy as np

from tests.faults import damage, forks, placing, results, workdirs
from tests.faults.kills import call_of, read_reference

_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS of unshare(2)
PHASES = ("full disk", "files limited in size", "read-only folder", "deleted workdir")
NEED_MOUNTS = ("full disk", "read-only folder")


def may_mount() -> bool:
    """Return whether this user may mount file systems, for processes of its own alone."""
    pid = os.fork()
    if pid == 0:
        try:
            _mount(pathlib.Path(tempfile.mkdtemp()), 64)
            os._exit(0)
        except BaseException:  # whatever it is, it can't be done
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _mount(folder: pathlib.Path, kilobytes: int) -> None:
    """Mount an empty file system, which only this process and its children see."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    quiet = {"check": True, "capture_output": True}
    subprocess.run(["mount", "--make-rprivate", "/"], **quiet)
    options = f"size={kilobytes}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "faults", str(folder)], **quiet)


def _remount(folder: pathlib.Path, options: str) -> None:
    command = ["mount", "-o", f"remount,{options}", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def trouble(scratch: pathlib.Path, phase: str, case: int, seed: int) -> results.Line:
    """Run a command on a bad disk, and again on a good one; return the line of the case."""
    rng = np.random.default_rng([seed, PHASES.index(phase), case])
    folder = scratch / "disks" / f"{phase.replace(' ', '-')}-{case}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    kind = {
        "full disk": _full,
        "files limited in size": _limited,
        "read-only folder": _read_only,
        "deleted workdir": _deleted,
    }[phase]
    try:
        found = kind(scratch, folder, rng)
    except TimeoutError as error:
        found = {"unexplained": [str(error)]}
    line = results.line("disks", phase, case, **found)
    if phase not in NEED_MOUNTS and not line["losses"] and not line["unexplained"]:
        shutil.rmtree(folder)
    return line


def _full(scratch: pathlib.Path, folder: pathlib.Path, rng: damage.Rng) -> dict[str, object]:
    run = scratch / "references/train/run"
    needed = sum(-(-p.stat().st_size // 4096) * 4 for p in run.rglob("*") if p.is_file())
    size = int(rng.integers(16, int(0.9 * needed)))
    _mount(folder, size)
    return _then_on(scratch, folder, f"{size} kB", None, lambda: _remount(folder, "size=1g"))


def _limited(scratch: pathlib.Path, folder: pathlib.Path, rng: damage.Rng) -> dict[str, object]:
    """No file may grow beyond a size; for users who may not mount anything, too."""
    size = int(2 ** rng.uniform(13, 17))

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return _then_on(scratch, folder, f"{size} bytes", limit, lambda: None)


def _read_only(scratch: pathlib.Path, folder: pathlib.Path, rng: damage.Rng) -> dict[str, object]:
    start = ("half", "run", "")[int(rng.integers(3))]
    _mount(folder, 2**20)
    if start:
        damage.copy(scratch / "references/train" / start, folder / "run")
    _remount(folder, "ro")
    repair = lambda: _remount(folder, "rw")  # noqa: E731
    what = {"half": "a run that is half done", "run": "a finished run", "": "no run"}[start]
    return _then_on(scratch, folder, what, None, repair, may_end=start == "run")


def _deleted(scratch: pathlib.Path, folder: pathlib.Path, rng: damage.Rng) -> dict[str, object]:
    phase = ("step", "topology update", "save", "closing")[int(rng.integers(4))]
    events = read_reference(scratch, "train").events[phase]
    nth, waits = int(rng.integers(1, events + 1)), bool(rng.integers(2))
    run, mark = str(folder / "run"), str(folder / "mark.json")
    place = placing.Place(phase, nth, float(rng.uniform(0, 0.05)), waits, 0, run, mark)

    def arm() -> None:
        placing.arm(place)

    what = f"at {phase} {nth}"
    # A run that had nothing left to write ends as ever.
    return _then_on(scratch, folder, what, arm, lambda: None, may_end=True)


def _then_on(
    scratch: pathlib.Path,
    folder: pathlib.Path,
    what: str,
    prepare: Callable[[], None] | None,
    repair: Callable[[], None],
    may_end: bool = False,
) -> dict[str, object]:
    """Run the command twice, before and after a repair; the second time it ends as ever."""
    printed = scratch / "disks" / f"printed-{folder.name}"
    plain = call_of(scratch, "train", printed, [], folder / "run")
    first = call_of(scratch, "train", printed, [], folder / "run", is_digested=False)

    def call() -> None:
        if prepare:
            prepare()
        first()

    printed.mkdir(parents=True, exist_ok=True)
    (printed / "digest.json").unlink(missing_ok=True)
    ended = forks.run(call, printed / "first")
    statuses = (0, 1, 2) if may_end else (1, 2)
    found = {"at": what, "losses": [], "unexplained": ended.problems(*statuses)}
    lines = [line for line in ended.errors.splitlines() if line.startswith("error:")]
    if ended.status and len(lines) != 1:
        found["unexplained"].append(f"it ended with {lines}, {ended.errors[-300:]!r}")
    found["refused"] = int(bool(ended.status) and not found["unexplained"])
    before = workdirs.saved_steps(folder / "run")
    repair()
    ended = forks.run(plain, printed / "second")
    found["unexplained"] += ended.problems(0)
    after = workdirs.saved_steps(folder / "run")
    if before and after[-1:] < before[-1:]:
        found["losses"].append(f"checkpoint {before[-1]} is gone; left: {after}")
    if ended.status == 0:
        digest = json.loads((printed / "digest.json").read_text())
        reference = read_reference(scratch, "train").digest
        found["losses"] += [f"{n} differs" for n in workdirs.differences(reference, digest)]
    return found
