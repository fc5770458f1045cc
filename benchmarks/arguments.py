"""Types of the benchmarks' arguments: argparse names the flag, the value and what is accepted."""

import argparse

from sparsejax.command_line import count, number


def counts(text):
    """Return the whole numbers, 1 or more, of a list such as 16,32."""
    return [count(word) for word in text.split(",")]


def level(text):
    """Return a sparsity."""
    value = number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"is {text!r}; accepted: a number in [0, 1)")
    return value
