"""Compiled programs are kept for the next command; no problem with their folder stops one."""

import os
import pathlib
import resource
import subprocess
import sys

import pytest

from sparsejax.compilations import prune
from tests.training.test_loop import assert_equal_runs
from tests.training.tiny import tiny_flags

ROOT = pathlib.Path(__file__).resolve().parents[1]
SETTINGS = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
COMPILE = """
from sparsejax import command_line, compilations
command_line.show_messages()
compilations.keep()
import jax
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
result = jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((3, 3)))
hits, misses = (events.count(f"/jax/compilation_cache/cache_{x}") for x in ("hits", "misses"))
print(float(result.sum()), hits, misses)
"""
CHOOSE = """
import os, sys
from sparsejax.__main__ import run
try:
    run(sys.argv[1], sys.argv[2:])
finally:
    print([os.environ.get(name) for name in %r])
"""


def python(*arguments, cache, **changes):
    """Run Python as a user does who keeps nothing yet, from a process that has imported jax."""
    others = os.environ.keys() - {*SETTINGS}
    environment = {key: os.environ[key] for key in others}
    environment |= {"SPARSEJAX_CACHE": str(cache), "PYTHONPATH": str(ROOT)} | changes
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


def compile_something(cache, before=""):
    """Return the result, the programs found and those compiled, and the lines on stderr."""
    always = {SETTINGS[1]: "0"}
    done = python("-c", before + COMPILE, cache=cache, **always)
    assert done.returncode == 0, done.stderr
    result, hits, misses = done.stdout.split()
    assert result == "36.0"
    return int(hits), int(misses), done.stderr.splitlines()


def files(cache):
    """The sizes of what is kept, by name."""
    (folder,) = (cache / "compilations").iterdir()
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def test_the_next_command_finds_what_was_compiled_and_replaces_what_is_damaged(tmp_path):
    hits, misses, lines = compile_something(tmp_path)
    assert (hits, lines) == (0, [])
    kept = files(tmp_path)
    assert len(kept) >= misses > 0
    hits, *others = compile_something(tmp_path)
    assert hits >= misses
    assert others == [0, []]
    (folder,) = (tmp_path / "compilations").iterdir()
    for path in folder.iterdir():
        os.truncate(path, path.stat().st_size // 2)
    assert compile_something(tmp_path) == (0, misses, [])
    assert files(tmp_path).keys() == kept.keys()
    assert compile_something(tmp_path) == (hits, 0, [])


def test_a_folder_that_cannot_be_used_costs_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    hits, _, lines = compile_something(tmp_path / "file")
    assert hits == 0
    assert len(lines) == 1
    assert lines[0].startswith("compiled programs can't be kept: [Errno 20] Not a directory")


def test_a_full_disk_costs_a_line_and_leaves_no_part_of_a_program(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    full = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, {limit}))"
    _, _, lines = compile_something(tmp_path, before=full)
    assert len(lines) == 1
    assert lines[0].startswith("compiled programs can't be kept: [Errno 27] File too large")
    assert files(tmp_path) == {}


def chosen(*arguments, **environment):
    """The settings with which a command ends, here with an error of its flags."""
    done = python("-c", CHOOSE % (SETTINGS,), *arguments, cache="/cache", **environment)
    return done.stdout.strip()


def test_the_users_own_settings_come_first():
    folder, seconds = SETTINGS
    assert chosen("train", "--x", **{folder: "/mine"}) == "['/mine', None]"
    assert chosen("train", "--x", **{folder: ""}) == "['', None]"
    assert "'/cache/compilations/" in chosen("train", "--x", **{seconds: "7"})
    assert chosen("train", "--x", **{seconds: "7"}).endswith("', '7']")


def test_each_kind_of_machine_has_its_folder_and_several_processes_have_none():
    machines = {chosen("evaluate", "--x", NPROC=number) for number in "112"}
    assert len(machines) == 2
    assert all(machine.startswith("['/cache/compilations/") for machine in machines)
    assert chosen("train", "--distributed", "--x") == "[None, None]"
    assert chosen("train", "--num_processes=2", "--x") == "[None, None]"


def test_what_was_used_least_recently_goes_first(tmp_path):
    (tmp_path / "old").mkdir()
    for number, name in enumerate(("old/a", "old/b", "c", "d")):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (0, number + 1))
    os.utime(tmp_path / "old/b", (9, 2))  # read after all others were written
    prune(tmp_path, 40)
    assert (tmp_path / "old/a").exists()
    prune(tmp_path, 25)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["b", "d"]
    prune(tmp_path / "nowhere", 0)


@pytest.mark.slow
def test_a_run_is_the_same_with_kept_programs_with_new_ones_and_without(tmp_path):
    for name, keep in (("without", "false"), ("new", "true"), ("kept", "true")):
        flags = [f"--workdir={tmp_path / name}", *tiny_flags()]
        done = python(
            *("train.py", *flags), cache=tmp_path / "cache", JAX_ENABLE_COMPILATION_CACHE=keep
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "cache").exists() is (keep == "true")
    assert files(tmp_path / "cache")
    assert_equal_runs(tmp_path / "without", tmp_path / "new")
    assert_equal_runs(tmp_path / "without", tmp_path / "kept")
