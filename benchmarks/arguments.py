"""Types of the benchmarks' arguments: argparse names the flag, the value and what is accepted."""

import argparse


def count(text):
    """Return a positive integer."""
    return _number(int, text, lambda number: number >= 1, "integers from 1")


def counts(text):
    """Return the positive integers of a list such as 16,32."""
    return [count(word) for word in text.split(",")]


def level(text):
    """Return a sparsity."""
    return _number(float, text, lambda number: 0 <= number < 1, "numbers from 0 to below 1")


def _number(kind, text, is_accepted, accepted):
    """Return the number that a text names; argparse's own error otherwise."""
    try:
        number = kind(text)
    except ValueError:
        number = None
    if number is None or not is_accepted(number):
        raise argparse.ArgumentTypeError(f"{text!r}; accepted: {accepted}")
    return number
