"""The files around the code: pages of the site, workflows, the citation, the notebook."""

import ast
import json
import os
import pathlib
import re
import tempfile
import tomllib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import sparsejax
from sparsejax import families, rendering, sparsity, training
from tests.training.tiny import OVERRIDES

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
NOTEBOOK = DOCS / "five_minutes.ipynb"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def pages(nav):
    """Yield the pages of a navigation."""
    for entry in nav:
        for found in entry.values() if isinstance(entry, dict) else [entry]:
            yield from [found] if isinstance(found, str) else pages(found)


def test_the_navigation_has_every_page_once():
    named = list(pages(load(ROOT / "mkdocs.yml")["nav"]))
    files = [*DOCS.glob("**/*.md"), *(path.with_suffix(".md") for path in DOCS.glob("*.ipynb"))]
    there = [path.relative_to(DOCS).as_posix() for path in files]
    there += [path.name.lower().replace("readme", "index") for path in ROOT.glob("*.md")]
    assert sorted(named) == sorted(there)


def directives():
    """Yield module and members (None for all of them) of each `:::` in the pages of the API."""
    for page in sorted((DOCS / "api").glob("*.md")):
        for name, options in re.findall(r"^::: (\S+)\n((?:    .*\n)*)", page.read_text(), re.M):
            members = (yaml.safe_load(options) or {"options": {}})["options"].get("members")
            yield name, members if isinstance(members, list) else None


def public_names(module):
    """Return the names that a module of the package defines, read from its file."""
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    nodes = ast.parse(file.read_text()).body
    return {node.name for node in nodes if hasattr(node, "name") and node.name[0] != "_"}


def test_the_api_pages_name_what_there_is():
    for module, members in directives():
        assert set(members or ()) <= public_names(module), module


@pytest.mark.parametrize("package", [families, rendering, sparsity, training])
def test_the_api_pages_show_every_name_that_a_package_offers(package):
    shown = {
        name
        for module, members in directives()
        if module.startswith(package.__name__)
        for name in [module.rpartition(".")[2], *(members or public_names(module))]
    }
    kinds = (type, types.FunctionType, types.ModuleType)
    offered = {name for name in package.__all__ if isinstance(getattr(package, name), kinds)}
    assert offered <= shown


def steps_of(workflow):
    """Yield the Python and the command of every step, for every entry of a job's matrix."""
    for job in workflow["jobs"].values():
        matrix = job.get("strategy", {}).get("matrix", {})
        entries = matrix.get("include") or [{k: v} for k, vs in matrix.items() for v in vs] or [{}]
        for entry in entries:
            text = json.dumps(job["steps"])
            for key, value in entry.items():
                text = text.replace(f"${{{{ matrix.{key} }}}}", value)
            steps = json.loads(text)
            pythons = [s["with"]["python-version"] for s in steps if "setup-python" in str(s)]
            yield from ((*pythons, step["run"]) for step in steps if "run" in step)


def test_workflows_run_scripts_that_are_there_with_the_python_that_they_look_for():
    script = (ROOT / ".ci" / "full").read_text()
    parts = set(re.search(r"^readonly parts=\((.*)\)", script, re.M)[1].split())
    pythons = dict(re.findall(r"(oldest|usual|newest)_python=([\d.]+)", script))
    ran = set()
    for python, command in (step for path in WORKFLOWS for step in steps_of(load(path))):
        for name, part in re.findall(r"(\.ci/\w+)(?: (\w+))?", command):
            assert os.access(ROOT / name, os.X_OK), name
            assert python == pythons.get(part, pythons["usual"]), command
            ran.add(part)
    assert ran == parts | {""}


def test_a_release_is_published_only_after_its_tag_was_compared_with_the_version():
    jobs = load(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    assert any("GITHUB_REF_NAME" in step.get("run", "") for step in jobs["build"]["steps"])
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}


def test_one_version_stands_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = load(ROOT / "CITATION.cff")
    assert project["version"] == citation["version"] == sparsejax.__version__
    assert f"\n## {sparsejax.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["references"][0]["title"] in (ROOT / "README.md").read_text().replace("\n", " ")


def test_hooks_before_a_commit_are_the_checks_of_every_change():
    hooks = [
        hook["id"]
        for repo in load(ROOT / ".pre-commit-config.yaml")["repos"]
        for hook in repo["hooks"]
    ]
    checks = re.findall(r"^(ruff \w+|mypy)", (ROOT / ".ci" / "run").read_text(), re.M)
    assert [check.replace(" ", "-") for check in checks] == hooks


def cells_of(notebook, kind):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind]


def test_the_notebook_is_committed_with_outputs_that_are_small():
    outputs = [output for cell in cells_of(NOTEBOOK, "code") for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}
    assert NOTEBOOK.stat().st_size < 100_000


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    """In order; the diffusion model is a tiny one."""
    monkeypatch.chdir(DOCS)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = "\n".join("".join(cell["source"]) for cell in cells_of(NOTEBOOK, "code"))
    tiny = [(key, str(value)) for key, value in (OVERRIDES | {"steps": 6}).items()]
    whole = 'load_config("../configs/digits.py:sweep")'
    assert whole in code
    names = {}
    exec(code.replace(whole, f"{whole[:-1]}, {tiny})"), names)
    assert names["accuracy"] > 0.9
    inactive = ~np.asarray(names["masks"]["hidden"])
    assert not np.asarray(names["params"]["hidden"])[inactive].any()
    without_ink = np.asarray(names["x_train"]).max(0) == 0
    first, last = (np.asarray(names[n]["hidden"])[without_ink] for n in ("first_masks", "masks"))
    assert last.sum() < first.sum() / 2
    assert names["samples"].shape == (36, 8, 8, 1)


def test_this_jax_sums_the_products_of_many_rows():
    """Release 0.10.2 goes wrong on a CPU (jax issue 39103): pyproject.toml excludes it."""
    rows = np.zeros((32_769, 3), np.float32)
    rows[:, 0] = np.arange(len(rows))
    squares = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
    np.testing.assert_array_equal(squares, rows[:, 0] ** 2)
