"""Kill real commands inside a phase, go on with the same command, and compare how it ends.

A case is a chain: one run that is killed up to `CHAIN` times, then left to end. It has to end as an
uninterrupted one does, bit by bit, and no kill may cost a checkpoint that was complete before it.
"""

import json
import math
import os
import pathlib
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sparsejax import __main__ as command
from sparsejax.data import shards
from tests.faults import forks, placing, results, sources, workdirs
from tests.faults.placing import PHASES, Place

CHAIN = 3
MOMENTS = "any moment"  # killed from outside, after a random CPU time
SIGNALS = "signals"  # asked to stop by SIGTERM, SIGINT or SIGHUP in a step
ALL = (*PHASES, MOMENTS, SIGNALS)
_TRAINED = ("step", "topology update", "save", "closing")


class Reference(NamedTuple):
    """How a command ends that nobody disturbs.

    Attributes:
      digest: see `workdirs.digest`.
      events: number of events by phase.
      cpu: seconds of CPU time.
    """

    digest: dict[str, str]
    events: dict[str, int]
    cpu: float


def kind_of(phase: str) -> str:
    """Return the command that a phase belongs to: `train`, `prepare` or `sweep`."""
    return {"latent encoding": "prepare", "sweep": "sweep"}.get(phase, "train")


def make_references(scratch: pathlib.Path, kinds: Sequence[str]) -> None:
    """Run the commands undisturbed, side by side, once per scratch folder."""
    sys.stdout.flush()
    pids = []
    for kind in kinds:
        if (scratch / "references" / kind / "reference.json").exists():
            continue
        pids.append(os.fork())
        if pids[-1] == 0:
            try:
                _make_reference(scratch, kind)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
    statuses = [os.waitpid(pid, 0)[1] for pid in pids]
    if any(statuses):
        raise RuntimeError("an undisturbed command failed")


def _make_reference(scratch: pathlib.Path, kind: str) -> None:
    folder = scratch / "references" / kind
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if kind == "prepare":
        made = forks.run(lambda: workdirs.write_first_stage(folder), folder / "first")
        _require(made)
    phases = [phase for phase in PHASES if kind_of(phase) == kind]
    places = [_place(phase, folder, 0) for phase in phases]
    ended = forks.run(call_of(scratch, kind, folder, places), folder / "printed")
    _require(ended)
    events = {p.phase: placing.read_mark(p.mark).get("count", 0) for p in places}
    if kind == "train":
        shutil.copytree(folder / "run", folder / "unclosed", symlinks=True)
        for name in ("summary.json", "samples.png", "curves.png", "layers.png"):
            (folder / "unclosed" / name).unlink()
        _require(forks.run(lambda: sources.make_sparse_run(scratch), folder / "sparse"))
    reference = Reference(_read_digest(folder), events, ended.cpu)
    (folder / "reference.json").write_text(json.dumps(reference))


def _require(ended: forks.Ended) -> None:
    problems = ended.problems(0)
    if problems:
        raise RuntimeError(f"an undisturbed command failed: {problems}\n{ended.errors}")


def read_reference(scratch: pathlib.Path, kind: str) -> Reference:
    """Return what `make_references` kept."""
    return Reference(*json.loads((scratch / "references" / kind / "reference.json").read_text()))


def chains_left(lines: Sequence[results.Line], wanted: int, phase: str) -> list[int]:
    """Return the numbers of the chains that are still to be run for `wanted` kills of a phase."""
    ours = [one for one in lines if one["part"] == "kills" and one["phase"] == phase]
    missing = wanted - sum(one["count"] for one in ours)
    done = {one["case"] for one in ours}
    numbers = [n for n in range(len(done) + math.ceil(max(0, missing) / CHAIN)) if n not in done]
    return numbers[: math.ceil(max(0, missing) / CHAIN)]


def chain(scratch: pathlib.Path, phase: str, case: int, seed: int) -> results.Line:
    """Run one chain; return its line."""
    rng = np.random.default_rng([seed, ALL.index(phase), case])
    kind = kind_of(phase)
    reference = read_reference(scratch, kind)
    folder = scratch / "kills" / f"{phase.replace(' ', '-')}-{case}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if phase == "closing":
        shutil.copytree(scratch / "references/train/unclosed", folder / "run")
    losses, unexplained, at, number = [], [], [], 0
    while not (folder / "digest.json").exists() and number <= CHAIN + 1:
        number += 1
        before = workdirs.saved_steps(folder / "run")
        is_last = len(at) == CHAIN
        try:
            ended, what = _disturb(scratch, folder, phase, reference, None if is_last else rng)
        except TimeoutError as error:
            unexplained.append(str(error))
            break
        lost = _lost(before, workdirs.saved_steps(folder / "run"))
        losses += lost
        if "is damaged" in ended.errors:
            losses.append("a kill left a damaged file: " + _line_with("is damaged", ended.errors))
        if what:
            at.append(what)
            unexplained += _after_signal(phase, ended, what, folder)
        else:
            unexplained += ended.problems(0)
        if unexplained:
            break
    if (folder / "digest.json").exists():
        differing = workdirs.differences(reference.digest, _read_digest(folder))
        losses += [f"{name} differs from that of an undisturbed run" for name in differing]
    elif not unexplained:
        unexplained.append(f"the run did not end in {number} calls")
    if not losses and not unexplained:
        shutil.rmtree(folder)
    told = {"losses": losses, "unexplained": unexplained, "at": at}
    return results.line("kills", phase, case, count=len(at), **told)


def _disturb(
    scratch: pathlib.Path,
    folder: pathlib.Path,
    phase: str,
    reference: Reference,
    rng: np.random.Generator | None,
) -> tuple[forks.Ended, str]:
    """Run the command once; return how it ended, and where a signal reached it, if one did."""
    call = call_of(scratch, kind_of(phase), folder, [])
    if rng is None:
        return forks.run(call, folder / "printed"), ""
    if phase == MOMENTS:
        kill_at = float(rng.uniform(0, 0.9 * reference.cpu))
        ended = forks.run(call, folder / "printed", kill_at=kill_at)
        return ended, f"{kill_at:.2f} s" if ended.status == -signal.SIGKILL else ""
    place = _draw(folder, phase, reference, rng)
    pathlib.Path(place.mark).unlink(missing_ok=True)
    is_of_run = phase == "sweep" and bool(rng.integers(2))
    call = call_of(scratch, kind_of(phase), folder, [place], is_of_run=is_of_run)
    ended = forks.run(call, folder / "printed")
    noted = placing.read_mark(place.mark)
    reached = "event" in noted and ended.status != 0
    # A signal that comes later than the run's end, after its delay, finds nothing to disturb.
    return ended, f"{noted['event']}, event {noted['number']}" if reached else ""


def _draw(
    folder: pathlib.Path, phase: str, reference: Reference, rng: np.random.Generator
) -> Place:
    """Draw a place; half of them among the first half, so that later kills of a chain come too."""
    events = reference.events["step" if phase == SIGNALS else phase]
    if phase in ("step", SIGNALS):
        events = workdirs.STEPS - max([0, *workdirs.saved_steps(folder / "run")])
    limit = events if rng.integers(2) else max(1, events // 2)
    waits = bool(rng.integers(2))
    longest = 0.02 if phase in ("step", "topology update", SIGNALS) else 0.3
    delay = float(rng.uniform(0, longest)) if rng.integers(2) else 0.0
    signums = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    signum = int(rng.choice(signums)) if phase == SIGNALS else int(signal.SIGKILL)
    place = _place(phase, folder, int(rng.integers(1, max(1, limit) + 1)))
    return place._replace(delay=delay, waits=waits, signum=signum)


def _place(phase: str, folder: pathlib.Path, nth: int) -> Place:
    counted = "step" if phase == SIGNALS else phase
    mark = str(folder / f"mark-{counted.replace(' ', '-')}.json")
    return Place(counted, nth, 0.0, True, int(signal.SIGKILL), str(folder / "run"), mark)


def _after_signal(phase: str, ended: forks.Ended, what: str, folder: pathlib.Path) -> list[str]:
    """Say what is wrong with how a process ended that got a signal."""
    if phase == SIGNALS:
        return _after_request(ended, what, folder)
    if ended.status == -signal.SIGKILL:  # what it printed may be cut off anywhere
        return ended.problems(-signal.SIGKILL)
    # A sweep whose run was killed names it, and goes on with the others.
    found = ended.problems(1)
    return found if "exit code -9" in ended.errors else [*found, "the sweep doesn't name its run"]


def _after_request(ended: forks.Ended, what: str, folder: pathlib.Path) -> list[str]:
    found = ended.problems(*(128 + signum for signum in (1, 2, 15)))
    last = ended.errors.strip().splitlines()[-1:]
    if not last or not last[0].startswith("Stopped by SIG"):
        found.append(f"its last line is {last}")
    elif "step" in last[0] and not workdirs.saved_steps(folder / "run"):
        found.append(f"nothing is saved after {what}")
    return found


def _lost(before: Sequence[int], after: Sequence[int]) -> list[str]:
    if before and (not after or after[-1] < before[-1]):
        return [f"checkpoint {before[-1]} is gone; left: {after}"]
    return []


def _line_with(text: str, errors: str) -> str:
    return next(one for one in errors.splitlines() if text in one)


def call_of(
    scratch: pathlib.Path,
    kind: str,
    folder: pathlib.Path,
    places: Sequence[Place],
    workdir: pathlib.Path | None = None,
    is_of_run: bool = False,
    is_digested: bool = True,
) -> Callable[[], None]:
    """Return what a process runs: a command, and the digest of what it left if it has ended.

    Args:
      scratch: folder of the references.
      kind: `train`, `prepare` or `sweep`.
      folder: folder for the digest.
      places: places to arm the process with.
      workdir: where the command writes (default: `run` in the folder).
      is_of_run: whether to arm the processes of a sweep's runs instead.
      is_digested: whether to write the digest.
    """
    target = workdir or folder / "run"
    words = {
        "train": lambda: workdirs.train_words(target),
        "prepare": lambda: workdirs.prepare_words(scratch / "references/prepare", target),
        "sweep": lambda: workdirs.sweep_words(target),
    }[kind]()
    digests = {
        "train": workdirs.digest,
        "prepare": workdirs.digest_folder,
        "sweep": workdirs.digest_sweep,
    }

    def call() -> None:
        if kind == "prepare":
            shards.SHARD = 4  # six shards of the 24 images
        for place in places:
            placing.arm_runs(place) if is_of_run else placing.arm(place)
        command.main(words)
        if is_digested:
            (folder / "digest.json").write_text(json.dumps(digests[kind](target)))

    return call


def _read_digest(folder: pathlib.Path) -> dict[str, str]:
    return json.loads((folder / "digest.json").read_text())
