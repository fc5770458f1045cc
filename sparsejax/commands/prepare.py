"""Prepare the data of a config before training: datasets on disk, latents encoded.

    python -m sparsejax prepare --config celebahq_ldm

Training does the same when it starts; this command does only that, for example on a machine with
TensorFlow. The same command resumes an interrupted preparation.
"""

from collections.abc import Sequence

from sparsejax import command_line
from sparsejax.config_flags import parse_with_config


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare the data.

    Raises:
      ConfigError: the config is invalid, or its data is missing.
    """
    parser = command_line.Parser(__doc__, prog="python -m sparsejax prepare")
    flags = parse_with_config(parser, argv)
    # Imported here since it takes seconds, which --help and a mistyped flag shouldn't wait for.
    from sparsejax.configuration import resolve
    from sparsejax.families import build_data

    build_data(resolve(flags.config)).prepare()
    print("The data is ready.")
