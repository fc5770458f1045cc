"""One command line: what it runs, says, and loads."""

import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

from sparsejax.__main__ import COMMANDS, main, run
from sparsejax.evaluation.grids import BASELINES
from sparsejax.schema import STRUCTURES
from sparsejax.sparsity.methods import METHODS

ROOT = pathlib.Path(__file__).resolve().parents[2]


def python(*arguments, cwd=ROOT):
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_every_file_of_commands_is_a_command():
    files = {path.stem for path in (ROOT / "sparsejax" / "commands").glob("*.py")}
    assert files - {"__init__"} == set(COMMANDS)


def test_help_names_every_command_and_shows_examples(capsys):
    main(["--help"])
    text = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in text
        assert command.summary in text
    assert text.count("python -m sparsejax train --config") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["evalute"], "error: there is no command 'evalute'; accepted: train, evaluate, "),
        (["evalute"], "nearest: evaluate; see --help"),
        (["--workdir=x"], "error: there is no command '--workdir=x'; accepted: train, "),
        ([], "error: a command must be given; accepted: train, "),
    ],
)
def test_a_command_that_does_not_exist_is_one_line_with_the_nearest(argv, message, capsys):
    with pytest.raises(SystemExit) as exit_of:
        main(argv)
    printed = capsys.readouterr()
    assert exit_of.value.code == 2
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert message in line


HEAVY = """
import sys
from sparsejax.__main__ import run
try:
    run(sys.argv[1], sys.argv[2:])
finally:
    print([name for name in ("jax", "numpy", "rich") if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [*([name, "--help"] for name in COMMANDS), ["train", "--wrokdir=x"]],
    ids=" ".join,
)
def test_help_and_mistyped_flags_wait_for_no_import(arguments):
    done = python("-c", HEAVY, *arguments)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.usefixtures("own_logging")
def test_the_help_of_a_sweep_names_what_its_axes_accept(capsys):
    """In words of its own, since what registers them takes seconds to import."""
    with pytest.raises(SystemExit):
        run("sweep", ["--help"])
    text = capsys.readouterr().out
    for axis, names in (("methods", [*METHODS, *BASELINES]), ("structures", STRUCTURES)):
        line = re.search(rf"--{axis} NAMES(.*?)--", text, re.DOTALL)[1]
        assert re.search(r"Any of ([\w,\s]+?)(, or\s+your own|\()", line)[1].split() == [
            *(f"{name}," for name in names[:-1]),
            names[-1],
        ], axis


def test_the_console_script_is_the_same_function():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"sparsejax": f"{main.__module__}:{main.__name__}"}


@pytest.mark.parametrize(("name", "flag"), [("train", "--workdir"), ("evaluate", "--workdirs")])
def test_the_scripts_run_their_command(name, flag):
    done = python(f"{name}.py", f"{flag}s=x")
    assert done.stderr == f"error: there is no flag {flag}s; nearest: {flag}; see --help\n"
    assert (done.returncode, done.stdout) == (2, "")


def test_the_default_config_is_found_from_any_folder(tmp_path):
    done = python("-m", "sparsejax", "train", "--config.steps=0", cwd=tmp_path)
    assert done.stderr == "error: config.steps is 0; accepted: a whole number, 1 to 1000000000\n"


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("sparsejax.models.export", "export"),
        ("sparsejax.data.prepare", "prepare"),
        ("sparsejax.evaluation.sweep", "sweep"),
        ("sparsejax.evaluation.report", "report"),
    ],
)
def test_old_commands_say_where_they_went(module, command):
    done = python("-m", module, "--config=x")
    assert done.stderr == f"error: python -m {module} is now python -m sparsejax {command}\n"
    assert (done.returncode, done.stdout) == (2, "")
