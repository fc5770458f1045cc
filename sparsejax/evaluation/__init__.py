"""Evaluation: from runs to rows of results, with samples, measures and costs."""
