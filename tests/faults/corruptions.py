"""Damage files of every kind; the project goes on as if nothing had been, or names the file.

A file whose loss a run must survive (`survives`) is made again, read from a copy, or set aside with
a warning. Everything else may also be refused, in one line with status 2, and is left as it is.
"""

import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sparsejax import command_line
from tests.faults import damage, forks, readers, results, workdirs
from tests.faults.kills import call_of, read_reference
from tests.faults.reading import hashed

HALF = "half"  # a run killed after step 9, whose newest checkpoint is that of step 8


class FileKind(NamedTuple):
    """A kind of file, and what reads it.

    Attributes:
      name: row of the table.
      command: `train`, `prepare` or `sweep`.
      start: what the command finds: the folder of that name beside its reference.
      files: patterns of the files to damage, below the folder.
      is_text: whether it holds no checksum.
      survives: whether the command has to go on.
      share: how many of 100 damages it gets.
    """

    name: str
    command: str
    start: str
    files: tuple[str, ...]
    is_text: bool
    survives: bool
    share: int


_NEWEST = "checkpoints/8"
OF_COMMANDS = (
    FileKind("checkpoint arrays", "train", HALF, (f"{_NEWEST}/state/**/d/*",), False, True, 8),
    FileKind(
        "checkpoint metadata",
        *("train", HALF),
        (f"{_NEWEST}/*", f"{_NEWEST}/extra/*", f"{_NEWEST}/state/*", f"{_NEWEST}/state/*/*"),
        *(False, True, 8),
    ),
    FileKind("config.json", "train", HALF, ("config.json",), True, True, 5),
    FileKind("metrics.jsonl", "train", HALF, ("metrics.jsonl",), True, True, 6),
    FileKind("data.json, facts.json", "train", HALF, ("data.json", "facts.json"), True, True, 5),
    FileKind("summary.json", "train", "run", ("summary.json",), True, True, 5),
    FileKind("results.jsonl", "sweep", "run", ("results.jsonl",), True, True, 3),
    FileKind("latent shard", "prepare", "run", ("*.array_record",), False, True, 7),
    FileKind("stamp.json", "prepare", "run", ("stamp.json",), True, True, 7),
)
OF_READERS = {
    "cache npz": 6,
    "lease file": 5,
    "sparse file": 8,
    "first stage safetensors": 5,
    "prepared data set": 6,
    "download": 5,
    "npz of images": 5,
    "npz of drawings": 5,
    "folder of png": 5,
    "ndjson": 4,
    "svg": 4,
    "zip of svg": 4,
}
KINDS = {kind.name: kind for kind in OF_COMMANDS}
SHARES = {kind.name: kind.share for kind in OF_COMMANDS} | OF_READERS


def cases_of(wanted: int, name: str) -> range:
    """Return the numbers of the cases of a file kind among `wanted` damages in all."""
    return range(-(-wanted * SHARES[name] // sum(SHARES.values())))


def make_half(scratch: pathlib.Path) -> None:
    """Keep a run that was killed half way, as a kill leaves it."""
    from tests.faults.placing import Place

    folder = scratch / "references/train" / HALF
    if folder.exists():
        return
    making = scratch / "references/train-half"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    place = Place("step", 10, 1.0, True, 9, str(making / "run"), str(making / "mark.json"))
    ended = forks.run(call_of(scratch, "train", making, [place]), making / "printed")
    if ended.status != -9 or workdirs.saved_steps(making / "run")[-1:] != [8]:
        raise RuntimeError(f"no run was left half way: {ended}")
    (making / "run").rename(folder)


def corruption(scratch: pathlib.Path, name: str, case: int, seed: int) -> results.Line:
    """Damage a file, let the project read it; return the line of the case."""
    rng = np.random.default_rng([seed, list(SHARES).index(name), case])
    folder = scratch / "corruptions" / f"{''.join(c if c.isalnum() else '-' for c in name)}-{case}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        if name in KINDS:
            found = _by_command(scratch, folder, KINDS[name], rng)
        else:
            found = readers.corrupted(scratch, folder, name, rng)
    except TimeoutError as error:
        found = {"unexplained": [str(error)]}
    line = results.line("corruptions", name, case, **found)
    if not line["losses"] and not line["unexplained"]:
        shutil.rmtree(folder)
    return line


def _by_command(
    scratch: pathlib.Path, folder: pathlib.Path, kind: FileKind, rng: damage.Rng
) -> dict[str, object]:
    reference = read_reference(scratch, kind.command)
    run = damage.copy(scratch / "references" / kind.command / kind.start, folder / "run")
    paths = sorted({p for pattern in kind.files for p in run.glob(pattern) if p.is_file()})
    at = damage.damage_one(paths, damage.OF_TEXT if kind.is_text else damage.OF_BINARY, rng)
    damaged = workdirs.digest_folder(run)
    ended = forks.run(call_of(scratch, kind.command, folder, []), folder / "printed")
    found = {"at": at, "losses": [], "unexplained": ended.problems(0, 2)}
    if ended.status == 2:
        return found | _refusal(kind, ended, workdirs.digest_folder(run) == damaged)
    if ended.status == 0:
        digest = json.loads((folder / "digest.json").read_text())
        differing = workdirs.differences(reference.digest, digest)
        if kind.name == "metrics.jsonl":
            differing = _unexplained_lines(scratch, run, ended, differing)
        if kind.name == "latent shard" and differing:
            return {"at": at} | _when_read(scratch, folder, reference.digest)
        found["losses"] = [f"{name} differs, and nothing said so" for name in differing]
    return found


def _when_read(
    scratch: pathlib.Path, folder: pathlib.Path, expected: dict[str, str]
) -> dict[str, object]:
    """Read the latents, as training does: damage is named then, and encoded again by the next call.

    A finished cache isn't read whole whenever a run starts. What is never read, such as padding,
    may stay as it is.
    """
    whole = scratch / "references/prepare/run"
    one, other = folder / "whole.json", folder / "damaged.json"
    reference = forks.run(lambda: _read_latents(whole, one), folder / "whole")
    ended = forks.run(lambda: _read_latents(folder / "run", other), folder / "read")
    problems = reference.problems(0) + ended.problems(0, 2)
    if not problems and ended.status == 0:
        return {"losses": [] if one.read_text() == other.read_text() else ["latents differ"]}
    again = forks.run(call_of(scratch, "prepare", folder, []), folder / "again")
    problems += again.problems(0)
    digest = json.loads((folder / "digest.json").read_text())
    differing = [] if problems else workdirs.differences(expected, digest)
    return {"losses": [f"{name} differs" for name in differing], "unexplained": problems}


def _read_latents(cache: pathlib.Path, target: pathlib.Path) -> None:
    """Write the hashes of all latents of a cache; errors end the process as they end a command."""
    from sparsejax.data import latents

    def read() -> None:
        stamp = json.loads((cache / "stamp.json").read_text())
        found, std = latents.open_latents(cache, stamp["identity"], stamp.get("content"))
        hashes = [hashed(found[index]) for index in range(len(found))]
        target.write_text(json.dumps([*hashes, std]))

    command_line.run(read)


def _refusal(kind: FileKind, ended: forks.Ended, is_kept: bool) -> dict[str, object]:
    """Judge a refusal: one line that names the file, which is left as it is."""
    lines = [line for line in ended.errors.splitlines() if line.startswith("error:")]
    losses = [] if is_kept else ["a refused file was changed"]
    if kind.survives:
        losses.append(f"it was refused, though all else is whole: {lines[:1]}")
    names = {pathlib.Path(pattern).name for pattern in kind.files}
    is_named = any(word in line for line in lines for word in (*names, "checkpoint", "cache"))
    bad = [] if len(lines) == 1 and is_named else [f"it was refused without its name: {lines}"]
    return {"refused": int(not losses and not bad), "losses": losses, "unexplained": bad}


def _unexplained_lines(
    scratch: pathlib.Path, run: pathlib.Path, ended: forks.Ended, differing: Sequence[str]
) -> list[str]:
    """Return what differs beyond lines that are lost, with a warning that names the file.

    A damaged line can't be had back; it has to be set aside, and no other may change.
    """
    expected = workdirs.metrics_lines(scratch / "references/train/run")
    found = workdirs.metrics_lines(run)
    rest = [name for name in differing if name not in ("metrics.jsonl", "curves.png")]
    is_subset = [line for line in expected if line in found] == found
    is_told = found == expected or "metrics.jsonl" in ended.errors
    return rest + ([] if is_subset and is_told else ["metrics.jsonl"])
