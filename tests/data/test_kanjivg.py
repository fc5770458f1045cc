import math
import shutil
import zipfile

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from sparsejax.data import kanjivg, packed
from sparsejax.data.drawings import Broken, split_of
from sparsejax.data.items import SourceError
from sparsejax.data.svg_paths import flatten
from tests.data.sets import EXCERPTS
from tests.data.sketches import save_svgs, svg


def times(points):
    """The parameter of a single curve's points, and its powers' complements."""
    t = np.linspace(0, 1, len(points))[:, None]
    return t, 1 - t


def spacing(points):
    return np.hypot(*np.diff(points, axis=0).T).max()


def test_lines_are_cut_evenly():
    points = flatten("M1,2 L4,6", 0.5)
    np.testing.assert_allclose(points, np.linspace([1, 2], [4, 6], 11), atol=1e-12)
    np.testing.assert_array_equal(flatten("M1,2H4V6", 9), [[1, 2], [4, 2], [4, 6]])
    np.testing.assert_array_equal(flatten("M1,2h4v6", 9), [[1, 2], [5, 2], [5, 8]])
    np.testing.assert_array_equal(flatten("M1,2 4,6 5,6", 9), [[1, 2], [4, 6], [5, 6]])
    np.testing.assert_array_equal(flatten("m1,2 3,4 1,0", 9), [[1, 2], [4, 6], [5, 6]])
    np.testing.assert_array_equal(flatten("M1,2", 9), [[1, 2]])


def test_a_closed_path_goes_back_to_its_start():
    square = [[1, 1], [4, 1], [4, 4], [1, 4], [1, 1]]
    np.testing.assert_array_equal(flatten("M1,1H4V4H1Z", 9), square)
    np.testing.assert_array_equal(flatten("M1,1H4V4H1z l0,-1", 9), [*square, [1, 0]])


def test_quadratic_curves_are_beziers():
    points = flatten("M10,20 Q40,0 60,50", 0.5)
    t, s = times(points)
    p, q, r = np.array([[10, 20], [40, 0], [60, 50]])
    np.testing.assert_allclose(points, s**2 * p + 2 * s * t * q + t**2 * r, atol=1e-10)
    assert 0.3 < spacing(points) <= 0.5


def test_cubic_curves_are_beziers():
    points = flatten("M10,20 C40,0 70,90 60,50", 0.5)
    t, s = times(points)
    p, q, r, v = np.array([[10, 20], [40, 0], [70, 90], [60, 50]])
    bezier = s**3 * p + 3 * s**2 * t * q + 3 * s * t**2 * r + t**3 * v
    np.testing.assert_allclose(points, bezier, atol=1e-10)
    assert 0.2 < spacing(points) <= 0.5


@pytest.mark.parametrize(
    ("smooth", "plain"),
    [
        ("C0,5 5,9 9,9 S20,5 30,5", "C0,5 5,9 9,9 C13,9 20,5 30,5"),
        ("C0,5 5,9 9,9 S20,5 30,5 40,9 50,0", "C0,5 5,9 9,9 C13,9 20,5 30,5 C40,5 40,9 50,0"),
        ("S20,5 30,5", "C1,1 20,5 30,5"),
        ("L9,9 S20,5 30,5", "L9,9 C9,9 20,5 30,5"),
        ("Q5,0 9,9 S20,5 30,5", "Q5,0 9,9 C9,9 20,5 30,5"),
        ("Q5,0 9,9 T30,5", "Q5,0 9,9 Q13,18 30,5"),
        ("Q5,0 9,9 T30,5 40,0", "Q5,0 9,9 Q13,18 30,5 Q47,-8 40,0"),
        ("T30,5", "Q1,1 30,5"),
        ("C0,5 5,9 9,9 T30,5", "C0,5 5,9 9,9 Q9,9 30,5"),
    ],
)
def test_smooth_curves_reflect_the_control_point_before(smooth, plain):
    np.testing.assert_allclose(
        flatten(f"M1,1 {smooth}", 0.5), flatten(f"M1,1 {plain}", 0.5), atol=1e-10
    )


@pytest.mark.parametrize(
    ("relative", "absolute"),
    [
        ("l3,4 1,1", "L13,24 14,25"),
        ("h3 2", "H13 15"),
        ("v3 2", "V23 25"),
        ("c1,2 3,4 5,-6 1,2 3,4 5,5", "C11,22 13,24 15,14 16,16 18,18 20,19"),
        ("c1,2 3,4 5,-6s1,2 3,4", "C11,22 13,24 15,14S16,16 18,18"),
        ("q1,2 9,4", "Q11,22 19,24"),
        ("q1,2 9,4t5,5", "Q11,22 19,24T24,29"),
        ("a5,4 30 0 1 3,4", "A5,4 30 0 1 13,24"),
        ("l3,4z l1,0", "L13,24Z L11,20"),
    ],
)
def test_relative_commands_are_the_absolute_ones(relative, absolute):
    wanted = flatten(f"M10,20 {absolute}", 0.5)
    np.testing.assert_allclose(flatten(f"M10,20{relative}", 0.5), wanted, atol=1e-9)


@pytest.mark.parametrize(
    ("flags", "centre", "turn"),
    [("0 1", (0, 5), 90), ("0 0", (5, 0), -90), ("1 1", (5, 0), 270), ("1 0", (0, 5), -270)],
)
def test_arcs_are_on_their_circle(flags, centre, turn):
    """From (0, 0) to (5, 5) with radius 5: y is down, so sweep 1 turns clockwise on paper."""
    points = flatten(f"M0,0 A5,5 0 {flags} 5,5", 0.1)
    x, y = (points - centre).T
    np.testing.assert_allclose(np.hypot(x, y), 5, rtol=3e-4)
    angles = np.unwrap(np.arctan2(y, x))
    assert math.isclose(np.degrees(angles[-1] - angles[0]), turn, abs_tol=1e-6)
    assert (np.sign(turn) * np.diff(angles) > 0).all()
    np.testing.assert_allclose(points[[0, -1]], [[0, 0], [5, 5]], atol=1e-9)
    assert spacing(points) <= 0.1


def test_arcs_of_ellipses_turn_and_grow():
    x, y = flatten("M0,0 A8,3 30 0 1 6,5", 0.1).T
    along = x * math.cos(math.pi / 6) + y * math.sin(math.pi / 6)
    across = y * math.cos(math.pi / 6) - x * math.sin(math.pi / 6)
    # (along - a)^2 / 64 + (across - b)^2 / 9 = 1 is linear in a, b and the constant.
    terms = np.stack([along / 64, across / 9, np.ones(len(x))], 1)
    square = along**2 / 64 + across**2 / 9
    (a, b, rest), *_ = np.linalg.lstsq(terms, square, rcond=None)
    np.testing.assert_allclose(terms @ [a, b, rest], square, atol=1e-3)
    assert math.isclose(rest + (a / 2) ** 2 / 64 + (b / 2) ** 2 / 9, 1, abs_tol=1e-3)
    half = flatten("M0,0 A1,1 0 0 1 10,0", 0.1)  # a radius too small for the way grows
    np.testing.assert_allclose(np.hypot(*(half - [5, 0]).T), 5, rtol=3e-4)
    np.testing.assert_array_equal(flatten("M0,0 A0,4 0 0 1 6,5", 9), [[0, 0], [6, 5]])
    np.testing.assert_array_equal(flatten("M1,1 a4,0 0 0 1 6,5h1", 9), [[1, 1], [7, 6], [8, 6]])


def centre_of(rx, ry, turn, large, sweep, x, y):
    """Centre, radii, first angle and angle swept of an arc from the origin: SVG 1.1, F.6.5."""
    cos, sin = math.cos(turn), math.sin(turn)
    u, v = -(cos * x + sin * y) / 2, -(cos * y - sin * x) / 2
    grown = math.hypot(u / rx, v / ry)
    if grown > 1:
        rx, ry = grown * rx, grown * ry
    square = max(
        0, ((rx * ry) ** 2 - (rx * v) ** 2 - (ry * u) ** 2) / ((rx * v) ** 2 + (ry * u) ** 2)
    )
    root = math.sqrt(square) * (-1 if large == sweep else 1)
    a, b = root * rx * v / ry, -root * ry * u / rx
    first = math.atan2((v - b) / ry, (u - a) / rx)
    swept = math.atan2((-v - b) / ry, (-u - a) / rx) - first
    swept += 2 * math.pi * ((sweep and swept < 0) - (not sweep and swept > 0))
    return (cos * a - sin * b + x / 2, sin * a + cos * b + y / 2), (rx, ry), first, swept


sizes, places = st.floats(0.5, 30), st.floats(-20, 20)


@hypothesis.given(sizes, sizes, st.floats(-400, 400), st.booleans(), st.booleans(), places, places)
def test_arcs_follow_the_specification(rx, ry, turn, large, sweep, x, y):
    hypothesis.assume(math.hypot(x, y) > 0.1)
    points = flatten(f"M0,0A{rx!r},{ry!r} {turn!r} {large:d} {sweep:d} {x!r},{y!r}", 0.5)
    turn = math.radians(turn)
    centre, radii, first, swept = centre_of(rx, ry, turn, large, sweep, x, y)
    across = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    u, v = ((points - centre) @ across / radii).T
    np.testing.assert_allclose(np.hypot(u, v), 1, atol=1e-3)
    angles = np.unwrap(np.arctan2(v, u))
    # Near half a turn the root of what is next to nothing moves the centre.
    assert math.isclose(angles[-1] - angles[0], swept, abs_tol=1e-3)
    np.testing.assert_array_equal(points[[0, -1]], [[0, 0], [x, y]])
    assert math.isclose(math.remainder(angles[0] - first, 2 * math.pi), 0, abs_tol=1e-3)


@pytest.mark.parametrize("radius", ["0", "0.0", "-0", "0,5", "5,0", "00"])
def test_an_arc_without_a_radius_is_a_line(radius):
    radii = radius if "," in radius else f"{radius},{radius}"
    np.testing.assert_array_equal(flatten(f"M1,2A{radii} 30 1 0 7,6", 9), [[1, 2], [7, 6]])
    np.testing.assert_array_equal(flatten(f"M1,2a{radii} 30 1 0 6,4", 9), [[1, 2], [7, 6]])


@pytest.mark.parametrize("radii", ["5,4", "0,0", "1e-200,1e-200", "1e200,1e200"])
def test_an_arc_to_where_it_starts_is_left_out(radii):
    points = flatten(f"M1,2A{radii} 30 1 0 1,2L3,2", 9)
    np.testing.assert_array_equal(points, [[1, 2], [3, 2]])


@pytest.mark.parametrize("radius", ["1e-3", "1e-100", "1e-170", "1e-200", "5e-324", "-1e-200"])
def test_an_arc_of_vanishing_radius_grows_to_half_a_circle(radius):
    x, y = flatten(f"M1,2A{radius},{radius} 30 1 1 7,10", 0.1).T
    np.testing.assert_allclose(np.hypot(x - 4, y - 6), 5, rtol=3e-4)
    assert (6 * (y - 2) - 8 * (x - 1) <= 1e-9).all()  # on the one side


@pytest.mark.parametrize("radius", ["1e9", "1e20", "1e150", "1e200", "1e300"])
def test_an_arc_of_vast_radius_is_a_line(radius):
    points = flatten(f"M1,2A{radius},{radius} 30 0 1 7,10", 0.5)
    direction = (points - [1, 2]) @ [[8], [-6]]
    np.testing.assert_allclose(direction, 0, atol=1e-6)
    assert spacing(points) <= 0.5 + 1e-9


@pytest.mark.parametrize(
    "arc", ["1e200,1e200 0 1 1 3,4", "1e-320,5 0 0 1 3,4", "5,1e-200 9 0 1 3,4"]
)
def test_arcs_that_go_beyond_all_bounds_are_refused(arc):
    with pytest.raises(ValueError, match="more points|finite"):
        flatten(f"M1,2A{arc}", 0.5)


def test_an_arc_of_vanishing_radius_does_not_end_the_others(tmp_path):
    arcs = {
        "05b57": "M1,1h9",
        "05b58": "M1,1A1e-200,1e-200 0 0 1 9,9",
        "05b59": "M1,1A0,0 0 0 1 9,9",
    }
    arcs["05b5a"] = "M1,1A1e-320,5 0 0 1 9,9"
    found = kanjivg.read(save_svgs(tmp_path, **{name: svg(arc) for name, arc in arcs.items()}))
    *whole, broken = found
    assert [drawing.name for drawing in whole] == ["05b57", "05b58", "05b59"]
    assert isinstance(broken, Broken)


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("M007,1.L.5.5-1-1", "M7,1 L0.5,0.5 L-1,-1"),
        (" M 1 , 2 L\n+3\t4\r\n", "M1,2 L3,4"),
        ("M1e1,2E-1L-.5e+1,3", "M10,0.2 L-5,3"),
        ("M1-2-3-4", "M1,-2 L-3,-4"),
        ("M0,0a5,5 0 015,5", "M0,0 A5,5 0 0 1 5,5"),
        ("M0,0a5,5,0,0,1,5,5", "M0,0 A5,5 0 0 1 5,5"),
        ("M0,0a5 5 0 0\n1 5 5 5 5 0 005 5", "M0,0 A5,5 0 0 1 5,5 A5,5 0 0 0 10,10"),
    ],
)
def test_numbers_are_read_as_svg_writes_them(written, plain):
    np.testing.assert_allclose(flatten(written, 0.5), flatten(plain, 0.5), atol=1e-12)


REFUSED = {
    "": "empty",
    " \n": "empty",
    "10,20": "begin with M",
    "L1,2": "begin with M",
    "xM1,2": "begin with M",
    "M": "follows M",
    "M1": "follows M",
    "M1,2,": "follows M",
    "M1,2 3": "follows M",
    "M1,,2": "follows M",
    "M1;2": "follows M",
    "M1,2X3,4": "follows M",
    "M1,2 l3,4 oops": "follows l",
    "M1,2c1,2,3,4,5": "follows c",
    "M1,2c1,2,3,4,5,": "follows c",
    "M1,2c1,2,3,4,5,-": "follows c",
    "M1,2c1,2,3,4,5,6,7": "follows c",
    "M1,2c": "follows c",
    "M1,2cl1,2": "follows c",
    "M1,2 L 3,0x4": "follows L",
    "M1,2Lnan,4": "follows L",
    "M1,2L3,4e": "follows L",
    "M1,2 Z 3,4": "follows Z",
    "M1,2A5,5 0 2 1 3,4": "follows A",
    "M1,2A5,5 0 0": "follows A",
    "M1,2L1e999,4": "finite",
    "M1,2L1e300,4": "more points",
    "M1,2L3,4M5,6L7,8": "lifts",
    "M1" + "1" * 50000 + "x": "follows M",
}


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: path[:12])
def test_what_svg_does_not_allow_is_refused(path):
    with pytest.raises(ValueError, match=REFUSED[path]):
        flatten(path, 0.5)


def test_the_publishers_zip_is_read_like_a_folder_of_its_files(tmp_path):
    path = EXCERPTS / "kanjivg.zip"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "release")
        count = len(archive.namelist())
    found = list(kanjivg.read(path))
    assert len(found) == count == len({drawing.name for drawing in found})
    shutil.copytree(tmp_path / "release/kanji", tmp_path / "flat")
    shutil.make_archive(tmp_path / "nested", "zip", tmp_path, "release")
    for other in ("release", "release/kanji", "flat", "nested.zip"):
        for one, two in zip(found, kanjivg.read(tmp_path / other), strict=True):
            assert one[:3] == two[:3]
            assert all(map(np.array_equal, one.strokes, two.strokes))
            assert len(one.strokes) == len(two.strokes)


def test_the_publishers_zip_agrees_with_the_packed_file():
    """The packed file was made by other code: coordinates of 1/64, points about 2.5 apart."""
    path = EXCERPTS / "kanjivg.npz"
    with np.load(path, allow_pickle=False) as arrays:
        points = zip(arrays["codepoint"], arrays["variant"], strict=True)
        names = [f"{point:05x}" + (f"-{variant}" if variant else "") for point, variant in points]
    others = dict(zip(names, packed.read(path), strict=True))
    found = list(kanjivg.read(EXCERPTS / "kanjivg.zip"))
    assert len(found) == len(others) == 100
    for drawing in found:
        other = others[drawing.name].strokes
        assert len(drawing.strokes) == len(other), drawing.name
        for one, two in zip(drawing.strokes, other, strict=True):
            np.testing.assert_allclose(one[[0, -1], :2], two[[0, -1], :2], atol=1 / 128 + 1e-9)
            gaps = np.hypot(*(one[:, None, :2] - two[None, :, :2]).transpose(2, 0, 1))
            assert gaps.min(axis=0).max() < 0.25 + 0.02, drawing.name
            assert spacing(one[:, :2]) <= 0.5


def test_variants_share_the_split_of_their_character(tmp_path):
    chosen = [f"{i:05x}" for i in range(0x4E00, 0x4E40)]
    for case, suffix in ((str.lower, ""), (str.lower, "-Kaisho"), (str.upper, "-HzFst")):
        save_svgs(tmp_path, **{case(name) + suffix: svg("M1,1h9") for name in chosen})
    splits = {}
    for drawing in kanjivg.read(tmp_path):
        splits.setdefault(drawing.name[:5].lower(), []).append(drawing.split)
    assert splits == {name: [split_of(name)] * 3 for name in chosen}
    assert {split for found in splits.values() for split in found} == {
        "train",
        "validation",
        "test",
    }


def test_strokes_are_the_paths_with_their_ids_in_their_order(tmp_path):
    other = '<path id="frame" d="M0,0h99"/><path d="M0,0h9"/></g></svg>'
    content = svg("M5,5h9", "M1,1v9").replace("</g></svg>", other)
    save_svgs(tmp_path, **{"05b57": content, ".05b58": "?"})
    (drawing,) = kanjivg.read(tmp_path)
    assert (drawing.name, drawing.label, len(drawing.strokes)) == ("05b57", 0, 2)
    first, second = drawing.strokes
    np.testing.assert_array_equal([first[0], first[-1]], [[5, 5, 0], [14, 5, 9]])
    way = 9 + math.hypot(13, 4)  # with the pen in the air
    np.testing.assert_allclose([second[0], second[-1]], [[1, 1, way], [1, 10, way + 9]])


def test_broken_files_are_named_and_the_others_kept(tmp_path):
    bomb = '<!ENTITY a "aaaa"> <!ENTITY b "&a;&a;">'
    files = {
        "05b57": svg("M1,1h9"),
        "05b58": svg("M1,1h9")[:-20],
        "05b59": svg("M1,1h9", "M1,1c2,3,4"),
        "05b5a": svg("M1,1h9", ""),
        "05b5b": svg("M1,1h9", before=bomb),
        "05b5c": svg("M1,1h9").replace("<g ", '<g transform="scale(2)" '),
        "05b5d": "",
        "05b5e": svg(),
        "readme": svg("M1,1h9"),
    }
    save_svgs(tmp_path, **files)
    (tmp_path / "05b5f.svg").write_bytes(svg("M1,1h9").encode("utf-16"))
    (tmp_path / "05b60.svg").write_text(svg("M1,1h9").replace('d="M1,1h9"', ""))
    found = list(kanjivg.read(tmp_path))
    assert [drawing.name for drawing in found if not isinstance(drawing, Broken)] == [
        "05b57",
        "05b5e",
    ]
    assert dict(drawing for drawing in found if isinstance(drawing, Broken)) == {
        "05b58": "it isn't XML, or is cut short",
        "05b59 kvg:05b57-s2": "what follows c isn't as it should be",
        "05b5a kvg:05b57-s2": "it is empty",
        "05b5b": "it defines entities",
        "05b5c": "it has a transform, which isn't read",
        "05b5d": "it isn't XML, or is cut short",
        "05b5f": "it isn't UTF-8",
        "05b60 kvg:05b57-s1": "it is empty",
        "readme": "its name isn't a code point",
    }


def test_a_member_damaged_in_the_zip_is_named_and_the_others_kept(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("05b57", "05b58"):
            archive.writestr(f"kanji/{name}.svg", svg("M1,1h9", name=name))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"kvg:05b58-s1", b"kvg:05b58-s7", 1))
    found, broken = kanjivg.read(path)
    assert found.name == "05b57"
    assert broken.name == "05b58"
    assert "CRC" in broken.reason
    path.write_bytes(content[:-30])
    with pytest.raises(SourceError, match="damaged"):
        list(kanjivg.read(path))


def test_sources_without_characters_and_with_twins_are_refused(tmp_path):
    with pytest.raises(SourceError, match="holds no kanji/NAME.svg"):
        list(kanjivg.read(save_svgs(tmp_path / "empty")))
    save_svgs(tmp_path / "a/kanji", **{"05b57": svg("M1,1h9")})
    save_svgs(tmp_path / "a/b/kanji", **{"05b57": svg("M1,1h9")})
    with pytest.raises(SourceError, match="05b57.svg twice: b/kanji/05b57.svg and kanji/"):
        list(kanjivg.read(tmp_path / "a"))
    save_svgs(tmp_path / "c", **{"05b57": svg("M1,1h9")})
    (tmp_path / "c/05b57.SVG").write_text(svg("M1,1h9"))
    with pytest.raises(SourceError, match="05b57.svg twice: 05b57.SVG and 05b57.svg"):
        list(kanjivg.read(tmp_path / "c"))
