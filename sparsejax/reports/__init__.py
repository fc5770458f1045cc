"""Rows of results as tables, figures and documents; knows dictionaries, no run."""
