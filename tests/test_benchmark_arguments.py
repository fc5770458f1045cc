"""Benchmarks refuse counts below one before anything compiles, in one line that names the flag."""

import argparse
import importlib
import pathlib

import pytest

from benchmarks import structured
from benchmarks.arguments import count, counts, level
from sparsejax import command_line

ROOT = pathlib.Path(__file__).parents[1]
MODULES = sorted(
    path.stem
    for path in (ROOT / "benchmarks").glob("*.py")
    if "def main(" in path.read_text() and not path.stem.endswith(("_torch", "_report"))
)

WITHOUT_COUNTS = ("evidence",)


def parser_of(module, monkeypatch):
    """Return the parser of a benchmark's command line; nothing else of it runs."""

    found = []

    def stop(parser, *_):
        found.append(parser)
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        with pytest.raises(SystemExit):
            module.main()
    return found[0]


@pytest.mark.parametrize("name", MODULES)
def test_counts_below_one_are_refused_with_their_flag_and_what_is_accepted(
    name, monkeypatch, capsys
):
    module = importlib.import_module(f"benchmarks.{name}")
    actions = parser_of(module, monkeypatch)._actions
    assert int not in {action.type for action in actions}, "a count may be zero"
    flags = [action.option_strings[0] for action in actions if action.type in (count, counts)]
    assert flags or name in WITHOUT_COUNTS
    for flag in flags:
        for value in ("0", "-1", "2.5", "few"):
            monkeypatch.setattr("sys.argv", [name, f"{flag}={value}"])
            with pytest.raises(SystemExit) as stopped:
                module.main()
            assert stopped.value.code == 2
            last = capsys.readouterr().err.splitlines()[-1]
            assert last == (
                f"error: {flag} is '{value}'; accepted: a whole number, 1 or more; see --help"
            )


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (count, "1", 1),
        (counts, "16,32", [16, 32]),
        (level, "0", 0.0),
        (level, "0.9", 0.9),
        (structured.block_size, "64", 64),
        (structured.block_size, "16x64", (16, 64)),
    ],
)
def test_accepted_arguments_have_their_value(kind, text, value):
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (counts, "16,"),
        (counts, "16,0"),
        (level, "1"),
        (level, "-0.1"),
        (level, "nan"),
        (structured.block_size, "0x64"),
        (structured.block_size, "8x8x8"),
        (structured.block_size, "x"),
    ],
)
def test_other_arguments_are_refused(kind, text):
    with pytest.raises(argparse.ArgumentTypeError, match="accepted: "):
        kind(text)


def test_a_positional_argument_that_is_missing_is_named(capsys):
    parser = command_line.Parser("", prog="report")
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("--output", required=True)
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args([])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: FOLDER, --output must be given; see --help\n"
