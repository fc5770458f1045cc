import re
from xml.etree import ElementTree

import numpy as np
import pytest

from sparsejax.rendering import rasterize, svg_grid, to_svg
from tests.rendering.drawings import DOT, HOUSE, LINE, random_walks

SVG = "{http://www.w3.org/2000/svg}"


def paths(document):
    return ElementTree.fromstring(document).findall(f".//{SVG}path")


def points(path):
    data = path.get("d")
    assert re.fullmatch(r"M-?[\d.]+ -?[\d.]+( L-?[\d.]+ -?[\d.]+)+", data)
    assert all(len(decimals) <= 2 for decimals in re.findall(r"\.(\d+)", data))
    return np.array(re.findall(r"-?[\d.]+", data), float).reshape(-1, 2)


def test_one_path_a_stroke_at_its_place():
    root = ElementTree.fromstring(to_svg(HOUSE, 64))
    assert root.get("viewBox") == "0 0 64 64"
    triangle, bar, dot = paths(to_svg(HOUSE, 64))
    # 19 units high, in 54 pixels around the centre; 17 units wide.
    expected = (HOUSE[:4, :2] - [0.5, -0.5]) * 54 / 19 + 32
    np.testing.assert_allclose(points(triangle), expected, atol=0.006)
    assert len(points(bar)) == 2
    assert len({path.get("stroke") for path in (triangle, bar, dot)}) == 3


def test_dots_are_lines_of_no_length_with_round_caps():
    (path,) = paths(to_svg(DOT, 64))
    np.testing.assert_array_equal(points(path), [[32, 32], [32, 32]])
    group = ElementTree.fromstring(to_svg(DOT, 64)).find(f"{SVG}g")
    assert group.get("stroke-linecap") == group.get("stroke-linejoin") == "round"
    assert group.get("fill") == "none"
    assert float(group.get("stroke-width")) == 2


def test_vertices_lie_on_the_ink_of_the_raster():
    drawing = random_walks(1, 200)[0]
    picture = rasterize(drawing)[0, :, :, 0]
    for path in paths(to_svg(drawing, 64)):
        x, y = points(path).astype(int).T
        assert (picture[y, x] < 0).all()


def test_grid_places_each_drawing():
    document = svg_grid(np.stack([LINE] * 5), cell=32)
    root = ElementTree.fromstring(document)
    assert (root.get("width"), root.get("height")) == ("100", "67")
    groups = root.findall(f"{SVG}g")
    places = [group.get("transform") for group in groups]
    assert places[0] == "translate(1 1)"
    assert places[4] == "translate(34 34)"
    assert {group[0].get("d") for group in groups} == {paths(to_svg(LINE, 32))[0].get("d")}
    white = [rect for rect in root.findall(f"{SVG}rect") if rect.get("fill") == "white"]
    assert len(white) == 6


def test_drawings_without_points_are_white():
    assert paths(to_svg(np.full((3, 3), np.nan))) == []
    assert paths(svg_grid(np.zeros((0, 3, 3)))) == []


def test_one_drawing_at_a_time():
    with pytest.raises(ValueError, match="one drawing"):
        to_svg(random_walks(2, 10))
