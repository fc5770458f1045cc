"""Shared fixtures: reference numbers, precision, no access to the user's folders."""

import collections
import fcntl
import gc
import json
import logging
import os
import pathlib
import shutil
import signal
import sys
import tempfile

import jax
import numpy as np
import pytest

from sparsejax import signals
from sparsejax.families.registry import FAMILIES
from sparsejax.training import loop
from sparsejax.training.metrics_log import read_metrics
from tests.training.tiny import small_config, tiny_config

ROOT = pathlib.Path(__file__).resolve().parents[1]
KNOWN_FAMILIES = frozenset(FAMILIES)
# Two workers on two cores: more threads would only wait for each other, spinning.
ONE_THREAD = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
FAST_COMPILATION = "--xla_backend_optimization_level=0"
if jax.__version_info__ < (0, 11):  # later releases have one kind of emitters alone, and no flag
    FAST_COMPILATION += " --xla_cpu_use_fusion_emitters=false"
LONGEST = (
    *("families/test_latents.py", "test_beyond.py", "training/test_loop.py"),
    "compact/test_network.py",
    *("families/test_strokes.py", "evaluation/test_sweep.py", "evaluation/test_runs.py"),
    *("training/test_stopping.py", "compact/test_states.py", "sparsity/test_compact_trees.py"),
    *("sparsity/test_structure.py", "sparsity/test_topology.py", "training/test_soundness.py"),
)


def pytest_configure(config):
    """Let signals through; give workers and processes that they start one compilation cache.

    A shell that runs pytest in the background has it ignore Ctrl-C, and nohup a closed terminal:
    so would all processes whose signals are tested.

    JAX_COMPILATION_CACHE_DIR, where it is set, keeps compilations from one session to the next.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if hasattr(config, "workerinput"):
        return
    if config.getoption("numprocesses", None):
        for name in ONE_THREAD:
            os.environ.setdefault(name, "1")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="sparsejax-compilations-")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    # As `_highest_matmul_precision` has it, so that processes find what was compiled here.
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    # Most of the time would go into compiling; .ci/full runs what users run.
    os.environ.setdefault("XLA_FLAGS", FAST_COMPILATION)


def pytest_collection_modifyitems(items):
    """Begin with the longest files: neither worker is left with one when the other has ended.

    Of the first two one needs no tiny run: else a worker would wait for the other to train it.
    """
    ranks = {ROOT / "tests" / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_collection_finish():
    """What was imported stays: looking for garbage in it took a fifth of the time of tracing."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory):
    """Nothing is read from or written to the user's folders; runs share compilations."""
    folder = tmp_path_factory.mktemp("home")
    seconds = float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder / "datasets"))
        patch.setenv("SPARSEJAX_CACHE", str(folder / "cache"))
        jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
        yield


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """`made_once(name, make)` fills a folder by `make(folder)` in one worker, for all workers.

    Returns a copy of the folder, each worker its own.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def copy(name, make):
        folder, done = shared / "shared" / name, shared / "shared" / f"{name}.done"
        folder.parent.mkdir(exist_ok=True)
        with open(f"{folder}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return shutil.copytree(folder, tmp_path_factory.mktemp(name) / name)

    return copy


@pytest.fixture(scope="session", autouse=True)
def _highest_matmul_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(autouse=True)
def _few_programs(request):
    """Slow tests compile much, and what they compiled is of no use to others."""
    yield
    if request.node.get_closest_marker("slow"):
        jax.clear_caches()


@pytest.fixture(scope="module", autouse=True)
def _few_memory_maps():
    """Compiled programs hold memory maps; Linux ends a process that wants more than 65,530."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


@pytest.fixture(scope="module", autouse=True)
def _known_families():
    """Families that a module registers are unknown to the next; importing them adds them again."""
    yield
    for name in FAMILIES.keys() - KNOWN_FAMILIES:
        sys.modules.pop(FAMILIES.pop(name).model.__module__, None)


@pytest.fixture(scope="session")
def golden():
    """Load a file of reference numbers by name; tests/golden/README.md says where they are from."""

    def load(name):
        path = ROOT / "tests/golden" / name
        if path.suffix == ".json":
            return json.loads(path.read_text())
        arrays = dict(np.load(path, allow_pickle=False))
        for key, array in arrays.items():
            is_text = array.dtype.kind == "U"
            assert is_text or np.isfinite(array).all(), f"{name}: {key} is not finite"
        return arrays

    return load


@pytest.fixture(scope="session")
def tiny_run(made_once):
    """An uninterrupted tiny run and its compilations: names, metrics lines written so far."""

    def make(folder):
        workdir, compiled = folder / "tiny", []

        def note(event, seconds, *, fun_name="", **_):
            if event == "/jax/core/compile/backend_compile_duration":
                compiled.append((fun_name, len(read_metrics(workdir / "metrics.jsonl"))))

        jax.monitoring.register_event_duration_secs_listener(note)
        assert loop.train(tiny_config(), workdir)
        jax.monitoring.unregister_event_duration_listener(note)
        (folder / "compiled.json").write_text(json.dumps(compiled))

    folder = made_once("tiny_run", make)
    return folder / "tiny", json.loads((folder / "compiled.json").read_text())


@pytest.fixture(scope="session")
def small_run(made_once):
    """The workdir of an uninterrupted run of `small_config`."""

    def make(folder):
        assert loop.train(small_config(), folder / "small")

    return made_once("small_run", make) / "small"


@pytest.fixture
def own_logging():
    """Handlers and levels of logging are afterwards as before: commands set their own."""
    root, ours = logging.root, logging.getLogger("sparsejax")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture(autouse=True)
def handed_back():
    """A test leaves signals and loggers as they were: the next one listens to them."""
    before = process_state()
    yield
    assert process_state() == before


def process_state():
    """Return what tests in one process share: handlers of signals, and which messages appear."""
    loggers = [logging.root, logging.getLogger("sparsejax")]
    messages = [(logger.level, logger.disabled, logger.propagate) for logger in loggers]
    return [signal.getsignal(signum) for signum in signals.SIGNALS], messages


def pytest_terminal_summary(terminalreporter):
    """Say in one line for each reason how many tests were skipped."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = (report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in collections.Counter(reasons).items():
        terminalreporter.write_line(f"{count} skipped: {reason}", yellow=True)
