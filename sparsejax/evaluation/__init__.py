"""Evaluation: feature extractors, distances, reports of one or more runs."""
