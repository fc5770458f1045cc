"""A few cases of every kind of fault, by the command that tries thousands."""

import collections
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.faults import corruptions, disks, fuzz, kills, long

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.faults


def start(*flags, **environment):
    """Start the suite."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults", *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def finish(process):
    """Return exit status, stdout and stderr."""
    output = process.communicate(timeout=3000)
    return process.returncode, *output


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Two calls of the suite at a small count, at once: lines by part, and how each ended."""
    folder, processes = tmp_path_factory.mktemp("faults"), []
    # Of each phase, file kind, reader and disk one; 210 steps have 209 topology updates.
    counts = ("--kills=8", "--chain=1", "--corruptions=13", "--fuzz=1150", "--disks=4")
    for name, flags in (("counts", counts), ("long", ("--long=210",))):
        results = folder / f"{name}.json"
        processes.append(start(*flags, f"--json={results}", TMPDIR=str(folder)))
    ended = [finish(process) for process in processes]
    lines = collections.defaultdict(list)
    for path in folder.glob("*.jsonl"):
        for text in path.read_text().splitlines():
            lines[json.loads(text)["part"]].append(json.loads(text))
    return lines, ended


def without_losses(lines):
    """Return the number of cases by row of the table, after checking that nothing was wrong."""
    bad = [text for line in lines for text in (*line["losses"], *line["unexplained"])]
    assert bad == []
    counts = collections.Counter()
    for line in lines:
        counts[line["phase"]] += line["count"]
    return counts


def test_a_run_that_is_killed_ends_as_if_it_had_not_been(found):
    counts = without_losses(found[0]["kills"])
    assert set(counts) == set(kills.ALL)
    assert min(counts.values()) >= 1


def test_no_damaged_file_stops_a_run_or_is_read_wrongly(found):
    assert set(without_losses(found[0]["corruptions"])) == set(corruptions.SHARES)


def test_absurd_input_is_read_or_refused(found):
    counts = without_losses(found[0]["fuzz"])
    assert set(counts) == set(fuzz.NAMES)
    refused = sum(line["refused"] for line in found[0]["fuzz"])
    assert 200 <= refused < sum(counts.values())


def test_a_bad_disk_is_named_and_the_run_goes_on_on_a_good_one(found):
    lines, ((_, printed, _), _) = found
    counts = without_losses(lines["disks"])
    assert {"files limited in size", "deleted workdir"} <= set(counts)
    if set(counts) != set(disks.PHASES):
        assert "SKIPPED, since this user may not mount" in printed
        pytest.skip("full disks and read-only folders need the right to mount a file system")


def test_a_long_run_stays_as_it_is(found):
    without_losses(found[0]["long run"])
    (line,) = found[0]["long run"]
    assert line["figures"]["topology updates"] >= 200
    assert line["figures"]["compilations after the warm-up"] == 0


def steady(**changes):
    """Return what a run of 20,000 steps notes that stays as it is: twenty equal parts."""
    notes = long.Notes([2**30] * 20, [60.0 * k for k in range(20)], [0.5] * 20, [90] * 20)
    return notes._replace(**changes)


def test_a_steady_run_is_accepted_also_on_a_machine_that_slows_down():
    assert long.judge(steady(), [3, 5], [3, 5], 20_000)[0] == []
    speed = np.linspace(1.0, 1.3, 20)
    slowing = steady(cpu=np.cumsum(60.0 * speed).tolist(), fixed=(0.5 * speed).tolist())
    assert long.judge(slowing, [3, 5], [3, 5], 20_000)[0] == []


@pytest.mark.parametrize(
    ("changes", "counts", "loss"),
    [
        ({"memory": [2**30 + k * 2**23 for k in range(20)]}, [3, 5], "memory grew by 144 MiB"),
        ({"cpu": np.cumsum(np.linspace(60.0, 66.0, 20)).tolist()}, [3, 5], "take 7.3% longer"),
        ({"compiled": [90] * 19 + [91]}, [3, 5], "1 compilations after the first 1,000 steps"),
        ({}, [3, 4], r"active weights are \[3, 4\], not \[3, 5\]"),
        ({}, [], "active weights are"),
    ],
)
def test_a_run_that_grows_slows_recompiles_or_miscounts_is_refused(changes, counts, loss):
    losses, _ = long.judge(steady(**changes), counts, [3, 5] if counts else [], 20_000)
    assert len(losses) == 1
    assert re.search(loss, losses[0]), losses


def test_the_suite_ends_with_status_0_and_a_table(found):
    for (status, printed, errors), part in zip(found[1], ("kills", "long run"), strict=True):
        assert status == 0, errors
        assert f"| **{part}** |" in printed


def test_a_loss_ends_the_suite_with_status_1_and_says_how_to_repeat_it(tmp_path):
    """The suite itself: a line with a loss, of an earlier call, makes it fail."""
    found = {"part": "kills", "phase": "save", "case": 7, "count": 3, "refused": 0}
    found |= {"losses": ["checkpoint 8 is gone"], "unexplained": []}
    (tmp_path / "a.jsonl").write_text(json.dumps(found) + "\n")
    status, _, errors = finish(start(f"--json={tmp_path / 'a.json'}", TMPDIR=str(tmp_path)))
    assert status == 1
    repeat = "--kills=1 --phase='save' --case=7 --seed=0: losses: checkpoint 8 is gone"
    assert repeat in errors
    assert json.loads((tmp_path / "a.json").read_text())["rows"][0]["losses"] == 1
