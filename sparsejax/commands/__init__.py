"""What `python -m sparsejax` runs, one file for each command."""
