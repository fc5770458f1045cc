"""Counts as people read them: three digits and a unit."""


def quantity(value: float) -> str:
    """Format a count with three digits and a unit: 1.23 M.

    Examples:
      >>> quantity(700_123), quantity(101.2e9), quantity(12)
      ('700 k', '101 G', '12')
    """
    for unit, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            digits = 2 if value < 10 * unit else 1 if value < 100 * unit else 0
            return f"{value / unit:.{digits}f} {name}"
    return f"{value:g}"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural unless it is one.

    Examples:
      >>> counted(1, "run"), counted(3, "run")
      ('1 run', '3 runs')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"
