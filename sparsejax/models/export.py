"""`python -m sparsejax.models.export` is now `python -m sparsejax export`."""

from sparsejax import command_line

if __name__ == "__main__":
    command_line.moved("sparsejax.models.export", "export")
