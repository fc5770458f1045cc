"""Public functions say what they take and return, in the terms of `sparsejax.types`."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def modules():
    for path in sorted((ROOT / "sparsejax").rglob("*.py")):
        name = path.relative_to(ROOT / "sparsejax").with_suffix("").parts
        yield "/".join(name), ast.parse(path.read_text())


def public_functions(body, prefix=""):
    """Yield the public functions of a module or class, with their names."""
    for node in body:
        name = prefix + getattr(node, "name", "_")
        if name.rpartition(".")[2].startswith("_") and not name.endswith(".__call__"):
            continue
        if isinstance(node, ast.FunctionDef):
            yield name, node
        elif isinstance(node, ast.ClassDef):
            yield from public_functions(node.body, name + ".")


def parameters(function, is_method):
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    named = [*positional[is_method:], *given.kwonlyargs, given.vararg, given.kwarg]
    return [parameter for parameter in named if parameter is not None]


def fields(source):
    """Yield the annotated attributes of a module's public classes, with their names."""
    for node in ast.walk(source):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for field in node.body:
                if isinstance(field, ast.AnnAssign):
                    yield f"{node.name}.{ast.unparse(field.target)}", field.annotation


def is_bare_any(annotation):
    """Tell whether `Any` or `typing.Any` occurs in an annotation, as code or in a string."""
    text = ast.unparse(annotation).replace("typing.Any", "Any")
    return re.search(r"(?<![\w.])Any(?!\w)", text) is not None


def faults(source):
    """Return what lacks in the public signatures of a module, one line each."""
    found = [
        f"{name}: a bare Any in {ast.unparse(annotation)}"
        for name, annotation in fields(source)
        if is_bare_any(annotation)
    ]
    for name, function in public_functions(source.body):
        is_static = any(getattr(d, "id", "") == "staticmethod" for d in function.decorator_list)
        given = parameters(function, "." in name and not is_static)
        found += [f"{name}: {p.arg} has no type" for p in given if p.annotation is None]
        if function.returns is None:
            found.append(f"{name}: nothing says what it returns")
        annotations = [*(p.annotation for p in given), function.returns]
        found += [
            f"{name}: a bare Any in {ast.unparse(annotation)}"
            for annotation in filter(None, annotations)
            if is_bare_any(annotation)
        ]
    return found


def test_public_functions_are_annotated_and_name_what_any_stands_for():
    found = [f"{module}.{fault}" for module, source in modules() for fault in faults(source)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(a: int, *, b: str = '') -> None: ...", []),
        ("def f(a, *, b: str) -> None: ...", ["f: a has no type"]),
        ("def f(*a: int, **b) -> None: ...", ["f: b has no type"]),
        ("def f(): ...", ["f: nothing says what it returns"]),
        ("def f(a: dict[str, Any]) -> None: ...", ["f: a bare Any in dict[str, Any]"]),
        ("def f() -> 'tuple[typing.Any]': ...", ["f: a bare Any in 'tuple[typing.Any]'"]),
        ("class A:\n  def f(self, a) -> None: ...", ["A.f: a has no type"]),
        ("class A:\n  @staticmethod\n  def f(a) -> None: ...", ["A.f: a has no type"]),
        ("class A:\n  a: list[Any] = []", ["A.a: a bare Any in list[Any]"]),
        ("def f(a: AnyThing) -> None: ...", []),
        ("def _f(a): ...\nclass _A:\n  def f(self): ...", []),
    ],
)
def test_faults_are_found(source, expected):
    assert faults(ast.parse(source)) == expected
