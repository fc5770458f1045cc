"""What the fault suite found: a JSON line per case, a table by phase, the document's table."""

import collections
import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

Line: TypeAlias = dict[str, Any]  # of JSON values
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
COLUMNS = ("cases", "survived", "refused", "losses", "unexplained")


def line(
    part: str,
    phase: str,
    case: int,
    *,
    count: int = 1,
    refused: int = 0,
    losses: Sequence[str] = (),
    unexplained: Sequence[str] = (),
    **others: Any,
) -> Line:
    """Return the line of a case.

    Args:
      part: `kills`, `corruptions`, `fuzz`, ...
      phase: phase, file kind or reader; a row of the table.
      case: its number; with the seed it says all that was drawn.
      count: number of kills, damages or inputs in it.
      refused: how many of them the project refused, in one line that names what is wrong.
      losses: what was lost or wrong in silence, in words.
      unexplained: what came out that isn't the project's error, in words.
      **others: what else is worth keeping; JSON-serializable.
    """
    found = {"part": part, "phase": phase, "case": case, "count": count, "refused": refused}
    return found | {"losses": list(losses), "unexplained": list(unexplained)} | others


def read(path: pathlib.Path) -> list[Line]:
    """Read the lines of earlier calls; a torn last line is left out and removed."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    return [json.loads(text) for text in whole.splitlines()]


def append(path: pathlib.Path, found: Line) -> None:
    """Append a line."""
    with path.open("a") as file:
        file.write(json.dumps(found) + "\n")
        file.flush()
        os.fsync(file.fileno())


def rows(lines: Iterable[Line]) -> list[Line]:
    """Add up the cases by part and phase, in order of appearance."""
    found: dict[tuple[str, str], Line] = collections.defaultdict(lambda: dict.fromkeys(COLUMNS, 0))
    for one in lines:
        row = found[one["part"], one["phase"]]
        bad = len(one["losses"]) + len(one["unexplained"])
        row["cases"] += one["count"]
        row["refused"] += one["refused"]
        row["losses"] += len(one["losses"])
        row["unexplained"] += len(one["unexplained"])
        row["survived"] += max(0, one["count"] - one["refused"] - bad)
    return [{"part": part, "phase": phase, **row} for (part, phase), row in found.items()]


def failures(lines: Iterable[Line], seed: int) -> list[str]:
    """Say what failed, each with what repeats it."""
    found = []
    for one in lines:
        part = one["part"].split()[0]
        flags = f"--{part}=1 --phase={one['phase']!r} --case={one['case']} --seed={seed}"
        for word in ("losses", "unexplained"):
            found += [f"{flags}: {word}: {text}" for text in one[word]]
    return found


def table(found: Sequence[Line]) -> str:
    """Return rows as a table in Markdown, with a sum per part."""
    heads = ("", *("cases", "went on", "refused in one line", "lost", "unexplained"))
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * len(COLUMNS)]
    for part in dict.fromkeys(row["part"] for row in found):
        ours = [row for row in found if row["part"] == part]
        total = {name: sum(row[name] for row in ours) for name in COLUMNS}
        for label, row in [(f"**{part}**", total), *((row["phase"], row) for row in ours)]:
            numbers = " | ".join(f"{row[name]:,}" for name in COLUMNS)
            lines.append(f"| {label} | {numbers} |")
    return "\n".join(lines) + "\n"


def write_table(document: pathlib.Path, folder: pathlib.Path) -> None:
    """Write the tables of all results in a folder between the marks of a document.

    Args:
      document: Markdown file with a line `BEGIN` and a line `END`.
      folder: folder of the JSON files that `--json` wrote.
    """
    parts = []
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        parts.append(f"`{found['command']}`\n\n{table(found['rows'])}\n{versions}.\n")
    text = document.read_text()
    pattern = re.escape(BEGIN) + ".*" + re.escape(END)
    if len(re.findall(pattern, text, re.DOTALL)) != 1:
        raise ValueError(f"{document} doesn't hold {BEGIN} and {END} once")
    body = "\n".join(parts) or "No results yet.\n"
    whole = f"{BEGIN}\n\n{body}\n{END}"
    document.write_text(re.sub(pattern, lambda _: whole, text, flags=re.DOTALL))
