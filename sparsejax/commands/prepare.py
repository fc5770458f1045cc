"""Make a config's data ready before training: datasets on disk, latents encoded.

    python -m sparsejax.commands.prepare --config configs/celebahq_ldm.py

Training does the same at its start; this does it alone, say on a machine with TensorFlow. An
interrupted call goes on when it is given again.
"""

from sparsejax import signals

if __name__ == "__main__":
    signals.watch("The same command goes on.")  # before the imports that take seconds

from sparsejax import command_line


def main():
    """Prepare the data."""
    # The scripts know tasks, the data package doesn't.
    from sparsejax.config_files import parse_with_config
    from sparsejax.configuration import resolve
    from sparsejax.families import build_task

    parser = command_line.Parser(__doc__, prog="python -m sparsejax.commands.prepare")
    build_task(resolve(parse_with_config(parser).config)).prepare()
    print("The data is ready.")


if __name__ == "__main__":
    command_line.run(main)
