"""Parts of the package know what README's table says; no file and no function is long."""

import ast
import collections
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "sparsejax"
LONGEST_FUNCTION = 60  # lines, without docstring
LONGEST_FILE = 450


def sources(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def table():
    """Return README's table: pairs of the names of a row and the names that they know of."""
    text = (ROOT / "README.md").read_text().split("| part of `sparsejax` |")[1].split("\n\n")[0]
    rows = [line.split("|")[1:-1] for line in text.splitlines()[2:]]
    found = []
    for names, _, knows in rows:
        above = {name for row, _ in found for name in row}
        known = above if "all of these" in knows else set(re.findall(r"`(\w+)`", knows))
        found.append((set(re.findall(r"`(\w+)`", names)), known))
    return found


def part_of(path):
    """Return the part that a file of the package belongs to."""
    name = path.relative_to(PACKAGE).with_suffix("").parts[0]
    return "sparsejax" if name in ("__init__", "__main__") else name


def imported_parts(source):
    """Return the parts of the package that a module imports, within functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "sparsejax":
            modules = [f"sparsejax.{name.name}" for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "the package has no relative imports"
            modules = [node.module]
        else:
            continue
        found |= {module.split(".")[1] for module in modules if module.startswith("sparsejax.")}
    return found - {"__version__"}


def imports():
    """Return `{part: parts that its modules import}`."""
    found = collections.defaultdict(set)
    for path in sources("sparsejax"):
        found[part_of(path)] |= imported_parts(path.read_text())
    return {part: known - {part} for part, known in found.items()}


def test_every_part_has_one_row():
    names = [name for row, _ in table() for name in row]
    assert sorted(names) == sorted(imports())


def test_parts_know_of_what_their_row_names():
    rows, found = table(), imports()
    light = rows[0][0]
    for names, known in rows:
        for part in names:
            too_much = found[part] - known - names - light
            assert not too_much, f"{part} imports {', '.join(sorted(too_much))}"


def test_rows_name_nothing_that_is_not_imported():
    found = imports()
    for names, known in table()[:-1]:
        used = set().union(*(found[part] for part in names))
        assert known <= used, f"{names} doesn't import {known - used}"


def test_no_arrow_goes_up():
    below = set()
    for names, known in table():
        assert known <= below, f"{names} knows of {known - below}, further down in the table"
        below |= names


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import sparsejax.data.images as images", {"data"}),
        ("from sparsejax import models, __version__", {"models"}),
        ("def f():\n  from sparsejax.training import runs", {"training"}),
        ("import jax\nfrom sparsejax_else import x", set()),
    ],
)
def test_imports_are_found(source, expected):
    assert imported_parts(source) == expected


def lengths(path):
    """Yield names and lines, without docstrings, of the functions of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            first = node.body[0]
            is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            text = first.end_lineno - first.lineno + 1 if is_text else 0
            yield node.name, node.end_lineno - node.lineno + 1 - text


def test_no_function_and_no_file_is_long():
    found = set()
    for path in [*sources("sparsejax", "configs", "docs", "benchmarks"), *ROOT.glob("*.py")]:
        name = path.relative_to(ROOT).as_posix()
        if len(path.read_text().splitlines()) > LONGEST_FILE:
            found.add(name)
        found |= {f"{name}: {f}" for f, lines in lengths(path) if lines > LONGEST_FUNCTION}
    assert found == set()
