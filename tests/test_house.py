"""Parts know what a table says, tests no private name; no file, no function is long."""

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
    """Return the pairs of docs/architecture.md: names of a row, and the names they know of."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    text = text.split("| part of `sparsejax` |")[1].split("\n\n")[0]
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


def private_names(source):
    """Return the private names of the package that a module uses, by attribute or by word."""
    tree, ours, found = ast.parse(source), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            for alias in node.names:
                if (module or alias.name).split(".")[0] == "sparsejax":
                    ours.add(alias.asname or (alias.name if module else "sparsejax"))
                    found |= {alias.name} if module and is_private(alias.name) else set()

    def is_ours(node):
        while isinstance(node, ast.Attribute):
            node = node.value
        return isinstance(node, ast.Name) and node.id in ours

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and is_ours(node.value):
            found.add(node.attr)
        # `setattr(module, "_name", ...)`, or such a pair in a table of what to patch
        parts = getattr(node, "args" if isinstance(node, ast.Call) else "elts", None) or []
        for owner, name in zip(parts, parts[1:], strict=False):
            word = name.value if isinstance(name, ast.Constant) else None
            if isinstance(word, str) and is_private(word) and is_ours(owner):
                found.add(word)
    return found


def is_private(name):
    """Return whether a name is private; those of named tuples, such as `_replace`, are not."""
    public = {"_asdict", "_field_defaults", "_fields", "_make", "_replace"}
    return bool(re.fullmatch(r"_(?!_)\w+", name)) and name not in public


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from sparsejax.training import loop\nloop._announce(1)", {"_announce"}),
        ("from sparsejax.training.loop import train, _announce", {"_announce"}),
        ("import sparsejax\nsparsejax.training.loop._x", {"_x"}),
        ("import sparsejax.training.loop as l\ndef f():\n  return l._CONFIGS", {"_CONFIGS"}),
        ("from sparsejax import sweep as s\npatch.setattr(s, '_close', 1)", {"_close"}),
        ("from sparsejax import a, b\nfor m, n in ((a, 'x'), (b, '_y')): f(m, n)", {"_y"}),
        ("from sparsejax import Model\nModel._fields, Model._replace, Model.__doc__", set()),
        ("import os\nfrom sparsejax_else import x, _y\nos._exit(0), x._z, f('_w')", set()),
    ],
)
def test_private_names_are_found(source, expected):
    assert private_names(source) == expected


def test_tests_use_no_private_name():
    found = {path: private_names(path.read_text()) for path in sources("tests")}
    assert {path.name: names for path, names in found.items() if names} == {}


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
