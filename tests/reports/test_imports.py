"""Reports know rows: no run, no config, no jax. Importing them takes no time to speak of."""

import ast
import pathlib
import subprocess
import sys

import pytest

import sparsejax.reports

HEAVY = ("jax", "flax", "optax", "orbax", "grain", "tensorflow_datasets", "ml_collections")
ABOVE = ("training", "models", "families", "metrics", "evaluation", "data")
ABOVE += ("configuration", "rendering", "types")
MODULES = sorted(path.stem for path in pathlib.Path(sparsejax.reports.__file__).parent.glob("*.py"))
CODE = """
import importlib, os, sys
import matplotlib.figure, numpy, PIL.Image, scipy.special  # what they may use, imported once
for name in {names}:
    read, write = os.pipe()
    if os.fork() == 0:  # nothing of sparsejax is imported yet
        importlib.import_module(name)
        os.write(write, " ".join(m for m in sys.modules).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        print(repr((name, pipe.read().split())))
    os.wait()
"""


@pytest.fixture(scope="module")
def loaded():
    """What is in `sys.modules` after importing a module alone, by module."""
    names = [f"sparsejax.reports.{name}" for name in MODULES if name != "__init__"]
    names.append("sparsejax.commands.report")
    arguments = [sys.executable, "-c", CODE.format(names=names)]
    out = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    return dict(ast.literal_eval(line) for line in out.splitlines())


def test_every_module_can_be_imported_alone(loaded):
    assert len(loaded) == len(MODULES)
    assert all(name in modules for name, modules in loaded.items())


@pytest.mark.parametrize("heavy", [*HEAVY, *(f"sparsejax.{room}" for room in ABOVE)])
def test_no_module_imports_what_is_heavy_or_knows_runs(loaded, heavy):
    assert [name for name, modules in loaded.items() if heavy in modules] == []
