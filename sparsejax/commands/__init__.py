"""What `python -m sparsejax` runs: one file per command, each with `main(argv)`."""
