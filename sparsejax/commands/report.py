"""Write the report of a results file: see `reports.report`."""

from sparsejax.reports.report import main

__all__ = ["main"]
