"""Thousands of absurd files and flags: each is read rightly, or refused by the project's errors.

A case is a block of `BLOCK` inputs for one reader, in a process of its own with bounded memory.
"""

import contextlib
import io
import json
import os
import pathlib
import shutil
from collections.abc import Callable

import numpy as np

from tests.faults import damage, forks, mutations, options, readers, results

BLOCK = 50
ROOM = 2 * 2**30  # bytes of address space beyond what the imports take
FILES = (
    *(
        "npz of images",
        "npz of encoded images",
        "npz of drawings",
        "folder of png",
        "ndjson",
        "svg",
    ),
    *("zip of svg", "sparse file", "sparse file of a run", "first stage safetensors"),
    *("published weights", "published config.json", "cache npz", "statistics npz", "lease file"),
    *("stamp.json", "config.json", "facts.json", "summary.json", "metrics.jsonl", "results.jsonl"),
    *("model repository", "record of a download"),
)
NAMES = (*FILES, "config keys", "command lines")
Input = Callable[[damage.Rng], tuple[bool, str, str]]  # was it refused, what is wrong, what it was


def cases_of(wanted: int) -> range:
    """Return the numbers of each reader's cases among `wanted` inputs in all."""
    return range(-(-wanted // (BLOCK * len(NAMES))))


def fuzz(scratch: pathlib.Path, name: str, case: int, seed: int) -> results.Line:
    """Try a block of inputs; return its line."""
    folder = scratch / "fuzz" / f"{''.join(c if c.isalnum() else '-' for c in name)}-{case}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    answer = folder / "answer.json"

    def call() -> None:
        answer.write_text(json.dumps(_block(scratch, folder, name, case, seed)))

    try:
        ended = forks.run(call, folder / "printed", memory=_address_space() + ROOM)
    except TimeoutError as error:
        return results.line("fuzz", name, case, unexplained=[str(error)])
    if ended.status != 0:
        reached = (folder / "number").read_text() if (folder / "number").exists() else "0"
        problem = f"input {reached}: {ended.problems(0)[-1]}"
        return results.line("fuzz", name, case, count=BLOCK, unexplained=[problem])
    found = json.loads(answer.read_text())
    if not found["losses"] and not found["unexplained"]:
        shutil.rmtree(folder)
    return results.line("fuzz", name, case, count=BLOCK, **found)


def _block(
    scratch: pathlib.Path, folder: pathlib.Path, name: str, case: int, seed: int
) -> dict[str, object]:
    refused, losses, unexplained = 0, [], []
    try_input = _input(scratch, folder, name)
    for number in range(BLOCK):
        (folder / "number").write_text(str(number))
        rng = np.random.default_rng([seed, NAMES.index(name), case, number])
        is_refused, problem, what = try_input(rng)
        if problem:
            unexplained.append(f"input {number}{what}: {problem}")
            if (folder / "input").exists():
                (folder / "input").rename(folder / f"kept-{number}")
        refused += is_refused and not problem
    return {"refused": refused, "losses": losses, "unexplained": unexplained}


def _input(scratch: pathlib.Path, folder: pathlib.Path, name: str) -> Input:
    if name == "config keys":
        return options.try_keys
    if name == "command lines":
        return lambda rng: options.try_words(folder, rng)
    reader = readers.readers(scratch)[name]
    whole = reader.write(_made(folder / "whole"))

    def try_file(rng: damage.Rng) -> tuple[bool, str, str]:
        target = folder / "input"
        shutil.rmtree(target, ignore_errors=True)
        # Files beside it are part of what is read.
        shutil.copytree(folder / "whole", target, symlinks=True)
        path = target / whole.relative_to(folder / "whole")
        mutations.mutate_file(reader.kind, path, rng)
        with contextlib.redirect_stderr(io.StringIO()):
            _, refusal, problem = readers.attempt(reader, path)
        return bool(refusal), problem, ""

    return try_file


def _made(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir()
    return folder


def _address_space() -> int:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")
