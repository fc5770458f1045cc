"""Convert the `d` of an SVG path to points, strictly by the SVG grammar.

fontTools' parser skips what it doesn't know and reads 007 as three numbers, so it only gets paths
that were checked and normalized.
"""

import math
import re
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from fontTools.pens.basePen import BasePen
from fontTools.svgLib.path import parse_path

from sparsejax.limits import too_large
from sparsejax.types import NumpyArray

Point: TypeAlias = tuple[float, float]

_SPACE = r"[ \t\r\n\f]*+"
_BETWEEN = f"{_SPACE},?+{_SPACE}"
_KINDS = {"n": r"([-+]?+(?:[0-9]++\.?+[0-9]*+|\.[0-9]++)(?:[eE][-+]?+[0-9]++)?+)", "f": "([01])"}
_ARGUMENTS = {"M": "nn", "L": "nn", "H": "n", "V": "n", "C": "nnnnnn", "S": "nnnn", "Q": "nnnn"}
_ARGUMENTS |= {"T": "nn", "A": "nnnffnn", "Z": ""}  # numbers and flags
_SETS = {c: _BETWEEN.join(_KINDS[kind] for kind in kinds) for c, kinds in _ARGUMENTS.items()}
_SET = {c: re.compile(one) for c, one in _SETS.items()}
_SOME = {c: re.compile(f"{_SPACE}{one}(?:{_BETWEEN}{one})*+{_SPACE}") for c, one in _SETS.items()}
_SOME["Z"] = re.compile(_SPACE)
_COMMAND = re.compile("([MmZzLlHhVvCcSsQqTtAa])")
_CUBIC = np.array([[1, 0, 0, 0], [-3, 3, 0, 0], [3, -6, 3, 0], [-1, 3, -3, 1]])  # of 1, t, ...


def flatten(path: str, spacing: float, most: int = 1_000_000) -> NumpyArray:
    """Return points along a path that is drawn without lifting the pen.

    Lines, quadratic and cubic curves and arcs are divided evenly in their parameter; arcs are
    accurate to 0.03 % of their radius.

    Args:
      path: `d` of an SVG path.
      spacing: maximum distance between points.
      most: maximum number of points.

    Returns:
      [points, 2] float64 of x and y.

    Raises:
      ValueError: the path is invalid; says what is wrong.
      TooLargeError: it has more points.

    Examples:
      >>> flatten("M1,1h1v.5", spacing=0.5)
      array([[1. , 1. ],
             [1.5, 1. ],
             [2. , 1. ],
             [2. , 1.5]])
    """
    pen = _Curves()
    parse_path(_checked(path, most), pen)
    if not pen.curves:
        return np.array([pen.start])
    curves = np.array(pen.curves)  # [curves, 4, 2]
    if not np.isfinite(curves).all():
        raise ValueError("values that aren't finite")
    # The speed of a cubic curve is at most three times its longest leg.
    legs = np.diff(curves, axis=1)
    speed = 3 * np.hypot(legs[..., 0], legs[..., 1]).max(axis=1)
    if max(speed.sum() / spacing, len(curves)) >= most:
        raise too_large("drawing_points", "points")
    counts = np.maximum(1, np.ceil(speed / spacing - 1e-9)).astype(int)
    ends = np.cumsum(counts)
    which = np.repeat(np.arange(len(curves)), counts)
    time = (np.arange(1, ends[-1] + 1) - (ends - counts)[which]) / counts[which]
    powers = time[:, None] ** np.arange(4)
    points = np.einsum("nk,nkd->nd", powers, (_CUBIC @ curves)[which])
    points[ends - 1] = curves[:, 3]  # without rounding
    return np.concatenate([curves[:1, 0], points])


def _checked(path: str, most: int) -> str:
    """Normalize a path: one command per set of numbers, at most `most` of them, single spaces."""
    before, *pieces = _COMMAND.split(path)
    if not path.strip():
        raise ValueError("it is empty")
    if before.strip() or pieces[0] not in "Mm":
        raise ValueError("it doesn't begin with M")
    written = []
    for command, arguments in zip(pieces[::2], pieces[1::2], strict=True):
        kind = command.upper()
        if not _SOME[kind].fullmatch(arguments):
            raise ValueError(f"what follows {command} isn't as it should be")
        if kind == "Z":
            written.append(command)
            continue
        for found in _SET[kind].finditer(arguments):
            if len(written) >= most:
                raise too_large("drawing_points", "points")
            written.append(_written(command, found.groups()))
            # After the first pair, M continues as L.
            command = {"M": "L", "m": "l"}.get(command, command)
    return " ".join(written)


def _written(command: str, numbers: Sequence[str]) -> str:
    """Format a command with its numbers."""
    values = [repr(float(number)) for number in numbers]
    if command in "Aa":
        values[3:5] = numbers[3:5]
    if "inf" in "".join(values):
        raise ValueError("values that aren't finite")
    return " ".join([command, *values])


class _Curves(BasePen):
    """Collects what is drawn as cubic curves of four points."""

    def __init__(self) -> None:
        super().__init__()
        self.start: Point | None = None
        self._last: Point = (0.0, 0.0)
        self.curves: list[tuple[Point, Point, Point, Point]] = []

    def _moveTo(self, point: Point) -> None:  # noqa: N802
        if self.start is not None and math.dist(point, self._last) > 1e-9:
            raise ValueError("the pen lifts within it")
        self.start = self._last = point

    def _lineTo(self, point: Point) -> None:  # noqa: N802
        (x, y), (u, v) = self._last, point
        third, two_thirds = ((2 * x + u) / 3, (2 * y + v) / 3), ((x + 2 * u) / 3, (y + 2 * v) / 3)
        self._curveToOne(third, two_thirds, point)

    def arcTo(  # noqa: N802
        self, rx: float, ry: float, rotation: float, large: bool, sweep: bool, end: Point
    ) -> None:
        """Draw an elliptical arc; SVG 1.1, F.6.2 and F.6.6 for parameters out of range."""
        start = self._getCurrentPoint()
        if end == start:
            return
        if not rx or not ry or math.dist(start, end) < 1e-300:
            self.lineTo(end)
            return
        for curve in _arc(start, rx, ry, math.radians(rotation), large, sweep, end):
            self.curveTo(*map(tuple, curve))

    def _curveToOne(self, first: Point, second: Point, point: Point) -> None:  # noqa: N802
        self.curves.append((self._last, first, second, point))
        self._last = point


@np.errstate(over="ignore", invalid="ignore")  # values that aren't finite raise ValueError later
def _arc(
    start: Point, rx: float, ry: float, rotation: float, large: bool, sweep: bool, end: Point
) -> NumpyArray:
    """Divide an elliptical arc into cubic curves, [curves, 3, 2]: two control points and the end.

    SVG 1.1, F.6.5, but without the centre: relative to it, points of a large circle would be lost
    to rounding. In coordinates where the ellipse is the unit circle and the middle of the chord the
    origin, the chord goes along `e` from sin -h to sin h, the arc bulges along `n`, and its points
    are e sin a + n (cos a - cos h) for a from -h to h.
    """
    first, last = np.array(start), np.array(end)
    turn = np.array(
        [[math.cos(rotation), -math.sin(rotation)], [math.sin(rotation), math.cos(rotation)]]
    )
    # Radii relative to the larger one, so that their squares neither underflow nor overflow.
    scale = max(rx, ry)
    axes = np.array([rx / scale, ry / scale])
    half = (turn.T @ ((last - first) / 2)) / axes
    length = math.hypot(*half)
    scale = max(scale, length)  # F.6.6: radii that are too small are scaled up until they just fit
    e = half / length
    n = np.array([e[1], -e[0]]) if sweep else np.array([-e[1], e[0]])
    h = math.asin(min(1, length / scale))
    h = math.pi - h if large else h
    count = max(1, math.ceil(4 * h / math.pi - 1e-3))
    a = np.linspace(-h, h, count + 1)[:, None]
    rise = -2 * np.sin((a + h) / 2) * np.sin((a - h) / 2)  # cos a - cos h
    points = e * np.sin(a) + n * rise
    reach = 4 / 3 * math.tan(h / count / 2) * (e * np.cos(a) - n * np.sin(a))
    curves = np.stack([points[:-1] + reach[:-1], points[1:] - reach[1:], points[1:]], axis=1)
    curves = (first + last) / 2 + (scale * axes * curves) @ turn.T
    curves[-1, 2] = last  # without rounding
    return curves
