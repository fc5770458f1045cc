"""`python -m sparsejax.evaluation.report` is now `python -m sparsejax report`."""

from sparsejax import command_line

if __name__ == "__main__":
    command_line.moved("sparsejax.evaluation.report", "report")
