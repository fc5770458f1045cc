"""`python -m sparsejax.data.prepare` is now `python -m sparsejax prepare`."""

from sparsejax import command_line

if __name__ == "__main__":
    command_line.moved("sparsejax.data.prepare", "prepare")
