"""Absurd config keys and command lines."""

import contextlib
import io
import pathlib
from typing import Any

from sparsejax.errors import ConfigError
from tests.faults import mutations
from tests.faults.damage import Rng
from tests.faults.deadline import TooSlow, deadline

CONFIGS = ("digits", "chirodiff", "celebahq_ldm", "kanjivg_chirodiff", "fashion_dit")
_TEXTS = (
    *(
        "",
        "0",
        "-1",
        "1e999",
        "nan",
        "inf",
        "-inf",
        "2147483648",
        "9" * 400,
        "1e38",
        "true",
        "None",
    ),
    *(
        "()",
        "(1,)",
        "(1, 2, 3)",
        "[]",
        "((),)",
        "(0,)",
        "(-1,)",
        "(1e9,)",
        "'x'",
        "x",
        "\ud800",
        "a/b",
    ),
    *(
        "train[5:2]",
        "train[:0]",
        "train[",
        "rigl",
        "magran",
        "erk",
        "cosine",
        "0.5",
        "7",
        "1000000007",
    ),
    *("__import__('os')", "{}", "{'a': 1}", "lambda: 0", "((('a', 0.5),),)", "(('[', 0.5),)"),
)


def try_keys(rng: Rng) -> tuple[bool, str, str]:
    """Set a few keys of a config to strange values; returns refused, what is wrong, the keys."""
    from sparsejax.config_files import load_config
    from sparsejax.configuration import resolve, to_json
    from sparsejax.network_values import NETWORK_VALUES
    from sparsejax.schema import BY_PATH

    names = [*sorted(BY_PATH), *(f"model.{name}" for name in NETWORK_VALUES)]
    file = f"configs/{CONFIGS[int(rng.integers(len(CONFIGS)))]}.py"
    overrides = []
    for _ in range(1 + int(rng.integers(3))):
        name = names[int(rng.integers(len(names)))]
        name = name + "x" if rng.random() < 0.05 else name
        text = _TEXTS[int(rng.integers(len(_TEXTS)))]
        overrides.append((name, None if rng.random() < 0.03 else text))

    def call() -> None:
        config = resolve(load_config(file, overrides))
        if rng.random() < 0.3:
            to_json(config)

    return _tried(call, f" ({file} {overrides!r})"[:400])


def try_words(folder: pathlib.Path, rng: Rng) -> tuple[bool, str, str]:
    """Run a command with strange words; it must end with status 2 and one line."""
    from sparsejax import __main__ as command

    names = list(command.COMMANDS)
    name = names[int(rng.integers(len(names)))] if rng.random() < 0.95 else "x"
    flags = ("--workdir", "--run", "--results", "--output", "--count", "--seed", "--levels", "--x")
    flags += ("--config", "--config.steps", "--config.sparsity.level", "--methods", "--samples")
    words = [name]
    for _ in range(int(rng.integers(4))):
        flag = flags[int(rng.integers(len(flags)))]
        value = str(mutations.STRANGE[int(rng.integers(len(mutations.STRANGE)))])
        value = value if rng.random() < 0.7 else _TEXTS[int(rng.integers(len(_TEXTS)))]
        words += [flag, value] if rng.random() < 0.3 else [f"{flag}={value}"]
    # Whatever else they say, nothing starts: this flag doesn't exist.
    words.append("--no-such-flag=1")
    printed = io.StringIO()

    def call() -> None:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
            command.run(name, words[1:]) if name in names else command.main(words)

    try:
        refused, problem, what = _tried(call, f" ({words!r})"[:400])
    except SystemExit as error:
        lines = printed.getvalue().splitlines()
        is_fine = error.code == 2 and len(lines) == 1 and lines[0].startswith("error: ")
        problem = "" if is_fine else f"status {error.code}, {lines}"
        return True, problem, f" ({words!r})"[:400]
    return refused, problem or "nothing was refused", what


def _tried(call: Any, what: str) -> tuple[bool, str, str]:
    try:
        with deadline():
            call()
    except ConfigError as error:
        return True, "" if str(error) else "an empty message", what
    except (Exception, TooSlow) as error:  # whatever else comes out is what we look for
        return False, f"{type(error).__name__}: {str(error)[:200]}", what
    return False, "", what
