"""Command lines: flags, help texts, and messages and errors as plain lines."""

import argparse
import logging
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TextIO, TypeAlias

from sparsejax.errors import ConfigError, nearest
from sparsejax.seeds import ACCEPTED, check_seed

Flags: TypeAlias = Any  # an argparse.Namespace, or the object that values were set on


class Parser(argparse.ArgumentParser):
    """An ArgumentParser with one-line errors and no abbreviations; `--a_b` means `--a-b`."""

    def __init__(self, doc: str, **options: Any) -> None:
        super().__init__(
            description=doc,
            usage="%(prog)s [flags]",
            formatter_class=_Formatter,
            allow_abbrev=False,
            add_help=False,
            **options,
        )
        self.add_argument("--help", "-h", action="help", help="show this text and exit")

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and one line."""
        message = re.sub(r"^argument (\S+): ", r"\1 ", " ".join(message.split()))
        self.exit(2, f"error: {message}; see --help\n")

    def parse_args(self, args: Iterable[str] | None = None, namespace: Flags = None) -> Flags:
        """Parse a command line; an unknown flag exits with an error that names the nearest one.

        Args:
          args: command line as a list of words (default: that of this process).
          namespace: object to set the values on (default: a new namespace).
        """
        argv = [_dashed(word) for word in (sys.argv[1:] if args is None else args)]
        # Check required flags last: one may be present but misspelled.
        required = [action for action in self._actions if action.required]
        for action in required:
            action.required = False
        values, others = self.parse_known_args(argv, namespace)
        for action in required:
            action.required = True
        if others:
            word = others[0].split("=")[0]
            known = [name for name in self._option_string_actions if name.startswith("--")]
            if word.startswith("-"):
                self.error(f"there is no flag {word}; nearest: {nearest(word, known)}")
            self.error(f"unexpected argument {word!r}")
        missing = [_name(a) for a in required if getattr(values, a.dest) is None]
        if missing:
            self.error(f"{', '.join(missing)} must be given")
        return values


def _name(action: argparse.Action) -> str:
    """Return how a command line writes an argument: `--flag`, or the name of a positional one."""
    return next(iter(action.option_strings), str(action.metavar or action.dest))


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps line breaks; appends defaults other than None, False and empty text."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default, text = action.default, action.help
        if text is None or default is None or default is False:
            return text
        if default in ("", argparse.SUPPRESS) or "default:" in text:
            return text
        return text.rstrip(".") + " (default: %(default)s)."


def _dashed(word: str) -> str:
    """Return a flag with hyphens; older command lines had underscores."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def words(text: str) -> list[str]:
    """Split the value of a flag at commas.

    Raises:
      argparse.ArgumentTypeError: there is nothing between the commas.
    """
    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found:
        raise _refused(text, "one or more, with commas between")
    return found


def numbers(kind: type) -> Callable[[str], tuple]:
    """Return a parser of comma-separated whole numbers (int) or numbers (float).

    The parser raises argparse.ArgumentTypeError for any other text.
    """
    accepted = {int: "whole numbers", float: "numbers"}[kind]

    def parse(text: str) -> tuple[float, ...]:
        try:
            return tuple(kind(word) for word in words(text))
        except ValueError:
            raise _refused(text, f"{accepted} with commas between") from None

    return parse


def number(text: str) -> float:
    """Return a finite number.

    Raises:
      argparse.ArgumentTypeError: `text` is none; names what is accepted.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _refused(text, "a finite number")
    return value


def count(text: str) -> int:
    """Parse a whole number, 1 or more.

    Raises:
      argparse.ArgumentTypeError: `text` is something else; says what is accepted.
    """
    if not text.isdecimal() or int(text) < 1:
        raise _refused(text, "a whole number, 1 or more")
    return int(text)


def index(text: str) -> int:
    """Parse a whole number, 0 or more.

    Raises:
      argparse.ArgumentTypeError: `text` is something else; says what is accepted.
    """
    if not text.isdecimal():
        raise _refused(text, "a whole number, 0 or more")
    return int(text)


def seed(text: str) -> int:
    """Parse a seed.

    Raises:
      argparse.ArgumentTypeError: `text` is something else; says what is accepted.
    """
    try:
        return check_seed(int(text))
    except ValueError:
        raise _refused(text, ACCEPTED) from None


def seeds(text: str) -> tuple[int, ...]:
    """Parse comma-separated seeds.

    Raises:
      argparse.ArgumentTypeError: one of them is not a seed; says what is accepted.
    """
    return tuple(seed(word) for word in words(text))


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """Return a parser that accepts one of the given names.

    The parser raises argparse.ArgumentTypeError, with the nearest name, for any other text.
    """

    def parse(text: str) -> str:
        if text not in names:
            raise _refused(text, f"{', '.join(names)}; nearest: {nearest(text, names)}")
        return text

    return parse


def _refused(text: str, accepted: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"is {text!r}; accepted: {accepted}")


def run(main: Callable[[], None]) -> None:
    """Run a command; errors that users can cause become one line on stderr.

    ConfigError exits with status 2, OSError (such as a full disk) and FloatingPointError (a loss
    that is not finite) with status 1; any other exception keeps its traceback.
    """
    show_messages()
    try:
        main()
    except (ConfigError, OSError, FloatingPointError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


def moved(module: str, command: str) -> NoReturn:
    """End with status 2, saying which command replaces `python -m MODULE`."""
    print(f"error: python -m {module} is now python -m sparsejax {command}", file=sys.stderr)
    sys.exit(2)


def one_line(error: Exception) -> str:
    r"""Return the message of an error on a single line.

    Examples:
      >>> one_line(ValueError("of another config:\n  steps: 5\n  seed: 1"))
      'of another config: steps: 5; seed: 1'
    """
    text = re.sub(r":\s*\n\s*", ": ", str(error).strip())
    return re.sub(r"\s*\n\s*", "; ", text)


def show_messages() -> None:
    """Write log messages to stderr as plain lines, warnings (also Python's) marked as such.

    Only warnings of other libraries are shown.
    """
    for handler in list(logging.root.handlers):  # added by libraries when they were imported
        logging.root.removeHandler(handler)
    logging.root.addHandler(_Lines())
    logging.getLogger("sparsejax").setLevel(logging.INFO)
    warnings.showwarning = _show_warning


class _Lines(logging.Handler):
    """Prints to the current stderr, which a progress bar replaces so that it isn't broken."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.name.split(".")[0] == "sparsejax"

    def emit(self, record: logging.LogRecord) -> None:
        mark = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        print(mark + record.getMessage(), file=sys.stderr, flush=True)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    del category, filename, lineno, file, line
    logging.getLogger("py.warnings").warning("%s", message)
