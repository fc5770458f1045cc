"""The look of the figures: fonts, colours and marks, the same in all of them.

Marks differ in shape as well as in colour; error bars and bands are one standard deviation over
seeds.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeAlias, TypeVar

import matplotlib

from sparsejax.reports.groups import Group
from sparsejax.reports.results import higher_is_better

Settings: TypeAlias = Any  # matplotlib's rcParams
Look: TypeAlias = dict[str, Any]  # keyword arguments of matplotlib's lines

STYLE: Settings = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "text.parse_math": False,
}
# Distinct in print, in grey and to the colour-blind (Okabe and Ito).
BLACK, BLUE, ORANGE, PURPLE = "#1A1A1A", "#0072B2", "#E69F00", "#CC79A7"
VERMILION, GREEN, SKY = "#D55E00", "#009E73", "#56B4E9"
BROWN, GREY = "#7A4E1D", "#7F7F7F"
MARKS = {
    "dense": (BLACK, "*"),
    "small_dense": (SKY, "s"),
    "small_dense_flops": (PURPLE, "D"),
    "static": (BLUE, "o"),
    "rigl": (VERMILION, "^"),
    "magran": (GREEN, "v"),
    "gradual": (BROWN, "h"),
    "one_shot": (GREY, "H"),
}
OTHER = (ORANGE, "P")
MEANING = "Marks are means over seeds, bars one standard deviation, faint dots single runs."
# The shapes of further structures, in the colours of the methods.
_SHAPES = (
    {"static": "p", "rigl": "<", "magran": ">"},
    {"static": "P", "rigl": "X", "magran": "d"},
)

_Parameters = ParamSpec("_Parameters")
_Returned = TypeVar("_Returned")


def styled(function: Callable[_Parameters, _Returned]) -> Callable[_Parameters, _Returned]:
    """Let a function draw in this style."""

    @functools.wraps(function)
    def draw(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Returned:
        with matplotlib.rc_context(STYLE):
            return function(*args, **kwargs)

    return draw


def mark(group: Group) -> tuple[str, str]:
    """Return colour and shape of a group: the method's, and a shape per structure."""
    colour, shape = MARKS.get(group.method, OTHER)
    if group.kind:
        shapes = _SHAPES[(group.kind - 1) % len(_SHAPES)]
        shape = shapes.get(group.method, shape)
    return colour, shape


def label(measure: str) -> str:
    """Return the label of an axis: the measure, and which direction is better."""
    direction = "higher" if higher_is_better(measure) else "lower"
    return f"{measure}\n({direction} is better)"
