"""Flags of commands that have a config: `--config FILE:ARGUMENT` and `--config.KEY=VALUE`."""

import argparse
import re
import sys
from collections.abc import Sequence

from sparsejax import command_line

_CONFIG_HELP = """config keys:
  --config.KEY=VALUE    Set a key of the config, such as --config.steps=500; docs/configs.md lists
                        all keys. The docstring of a config file explains what may follow the
                        colon in --config FILE:ARGUMENT."""
_OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)


def parse_with_config(
    parser: command_line.Parser, argv: Sequence[str] | None = None, default: str | None = None
) -> argparse.Namespace:
    """Parse the command line of a program that has a config.

    Args:
      parser: parser with all flags except `--config`.
      argv: words of the command line (default: those of this process).
      default: config file, or name of one; the flag is required if None.

    Returns:
      Namespace; `config` is the ConfigDict, keys set on the command line included.

    Raises:
      ConfigError: see `config_files.load_config`.
    """
    parser.add_argument(
        "--config",
        metavar="FILE[:ARGUMENT]",
        default=default,
        required=default is None,
        help="Config file, or the name of one of the project's, such as digits"
        + (f" (default: {default})." if default else "."),
    )
    parser.epilog = _CONFIG_HELP
    rest, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
    values = parser.parse_args(rest)
    from sparsejax.config_files import load_config  # takes seconds; --help shouldn't

    values.config = load_config(values.config, overrides)
    return values


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str | None]]]:
    """Take the config keys out of a command line.

    Args:
      argv: its words, without the program's name.

    Returns:
      Tuple of the other words and of pairs `(key, text)`, in order; the text is None for a key
      without a value.

    Examples:
      >>> split_overrides(["--output=x", "--config.steps=5", "--noconfig.task.flip"])
      (['--output=x'], [('steps', '5'), ('task.flip', 'False')])
    """
    rest, overrides, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        match = _OVERRIDE.fullmatch(word)
        if not match:
            rest.append(word)
            continue
        negated, path, text = match.groups()
        if negated:
            text = "False" if text is None else text
        elif text is None and words and not re.match(r"-+[a-zA-Z]", words[0]):
            text = words.pop(0)
        overrides.append((path, text))
    return rest, overrides
