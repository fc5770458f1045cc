"""Shared fixtures: reference numbers, precision, no access to the user's folders."""

import json
import os
import pathlib

import jax
import numpy as np
import pytest

from sparsejax.training import loop
from sparsejax.training.metrics import read_metrics
from tests.training.tiny import tiny_config

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory):
    """Nothing is read from or written to the user's folders; runs share compilations.

    JAX_COMPILATION_CACHE_DIR, where it is set, keeps compilations from one session to the next.
    """
    folder = tmp_path_factory.mktemp("home")
    compilations = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(folder / "jax"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder / "datasets"))
        patch.setenv("SPARSEJAX_CACHE", str(folder / "cache"))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", compilations)
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
        jax.config.update("jax_compilation_cache_dir", compilations)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
        yield


@pytest.fixture(scope="session", autouse=True)
def _highest_matmul_precision():
    with jax.default_matmul_precision("highest"):
        yield


def _golden_folder():
    return pathlib.Path(os.environ.get("SPARSEJAX_GOLDEN", ROOT / "../shared/golden"))


@pytest.fixture(scope="session")
def golden():
    """Load a reference file by name; skip the test, saying so, where it is absent."""

    def load(name):
        path = _golden_folder() / name
        if not path.exists():
            pytest.skip(f"reference numbers {name} not found; set SPARSEJAX_GOLDEN to their folder")
        if path.suffix == ".json":
            return json.loads(path.read_text())
        arrays = dict(np.load(path, allow_pickle=False))
        for key, array in arrays.items():
            is_text = array.dtype.kind == "U"
            assert is_text or np.isfinite(array).all(), f"{name}: {key} is not finite"
        return arrays

    return load


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """An uninterrupted tiny run and its compilations: names, metrics lines written so far."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    compiled = []

    def note(event, seconds, *, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append((fun_name, len(read_metrics(workdir / "metrics.jsonl"))))

    jax.monitoring.register_event_duration_secs_listener(note)
    assert loop.train(tiny_config(), workdir)
    jax.monitoring.unregister_event_duration_listener(note)
    return workdir, compiled


def pytest_terminal_summary(terminalreporter):
    """Say loudly that reference numbers were absent."""
    if not _golden_folder().exists():
        terminalreporter.write_line(
            "NOTE: reference numbers were not found, so the tests that compare with the "
            "reference implementations were skipped. Set SPARSEJAX_GOLDEN to their folder.",
            yellow=True,
            bold=True,
        )
