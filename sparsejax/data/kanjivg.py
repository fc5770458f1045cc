"""Read drawings from KanjiVG: one SVG per character, in a zip or a folder.

Files are named after the character's hexadecimal code point, and possibly a variant:
kanji/05b57.svg, kanji/05b57-Kaisho.svg. A stroke is a `path` whose id is kvg:NAME-sN; paths are in
drawing order. The canvas is 109 wide and high.
"""

import functools
import pathlib
import re
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable, Iterable, Iterator

from sparsejax.data import listing
from sparsejax.data.drawings import Broken, Drawing, Found, as_text, attempt, split_of, with_times
from sparsejax.data.items import SourceError
from sparsejax.data.svg_paths import flatten
from sparsejax.errors import reason
from sparsejax.limits import limits, read_file
from sparsejax.zips import read_member

SPACING = 0.5
_NAME = re.compile(r"([0-9a-fA-F]{1,8})(-[^/]+)?")
_STROKE = re.compile(r"kvg:.+-s\d+")


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    """List the SVG files in a folder and in folders named `kanji` below it, sorted.

    Args:
      folder: pathlib.Path.

    Raises:
      SourceError: there is none.
    """
    found = [path for path in listing.visible(folder) if path.is_file()]
    return [folder / name for name in _characters([_relative(path, folder) for path in found])]


def left_out(path: pathlib.Path) -> str:
    """Describe the files of a zip or folder that aren't read; see `listing.left_out`."""
    if path.is_dir():
        read = set(files(path))
        return listing.left_out([p for p in listing.visible(path) if p not in read], path)
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    chosen = set(_characters(names))
    visible = [name for name in names if all(map(listing.is_visible, name.split("/")))]
    return listing.left_out([name for name in visible if name not in chosen])


def _relative(path: pathlib.Path, folder: pathlib.Path) -> str:
    return path.relative_to(folder).as_posix()


def read(path: pathlib.Path) -> Iterator[Found]:
    """Read the characters of KanjiVG's zip, or of a folder of SVG files, sorted by name.

    The split follows from the hash of the code point, so variants of a character share it; the
    label is 0.

    Args:
      path: pathlib.Path.

    Yields:
      Drawing, named after its file without the suffix; or Broken, with the stroke's id.

    Raises:
      SourceError: the file isn't a zip or is damaged, or there is no SVG file.
      ConfigError: the limits that the environment sets are invalid.
    """
    limits()  # one that is set wrongly is no drawing's fault
    if path.is_dir():
        for file in files(path):
            yield _character(file.name, functools.partial(read_file, file, "drawing_bytes"))
        return
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises many types.
        raise SourceError(f"it isn't a zip, or is damaged ({reason(error)})") from error
    with archive:
        for member in _characters(archive.namelist()):
            content = functools.partial(read_member, archive, member, "drawing_bytes")
            yield _character(member.rpartition("/")[2], content)


def _characters(names: Iterable[str]) -> list[str]:
    """Sort the names of SVG files by their last part; raise SourceError for duplicates."""
    chosen: dict[str, str] = {}
    for name in sorted(names):
        *folders, last = name.split("/")
        is_svg = last.lower().endswith(".svg") and not last.startswith(".")
        if not is_svg or folders[-1:] not in ([], ["kanji"]):
            continue
        stem = last[: -len(".svg")]
        if stem in chosen:
            raise SourceError(f"it holds {stem}.svg twice: {chosen[stem]} and {name}")
        chosen[stem] = name
    if not chosen:
        others = listing.left_out([name for name in names if not name.endswith("/")])
        raise SourceError(": ".join(filter(None, ["it holds no kanji/NAME.svg", others])))
    return [chosen[stem] for stem in sorted(chosen)]


def _character(file: str, read_bytes: Callable[[], bytes]) -> Found:
    """Read one file; `file` is its name, without folders."""
    name = as_text(file[: -len(".svg")])
    parts = _NAME.fullmatch(name)
    if not parts:
        return Broken(name, "its name isn't a code point")
    paths = attempt(name, lambda: _paths(read_bytes()))
    if isinstance(paths, Broken):
        return paths
    strokes, room = [], limits().drawing_points
    for stroke, d in paths:
        points = attempt(f"{name} {stroke}", flatten, d, SPACING, room)
        if isinstance(points, Broken):
            return points
        strokes.append(points)
        room -= len(points)
    return Drawing(name, split_of(f"{int(parts[1], 16):05x}"), 0, with_times(strokes))


def _paths(content: bytes) -> list[tuple[str, str]]:
    """List the id and `d` of the strokes in an SVG file's bytes."""
    # As text, so that no other encoding hides an entity; entities could expand without bound.
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ValueError("it isn't UTF-8") from error
    if "<!ENTITY" in text:
        raise ValueError("it defines entities")
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise ValueError("it isn't XML, or is cut short") from error
    found = []
    for element in root.iter():
        kind = element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
        if kind in ("svg", "g", "path") and "transform" in element.attrib:
            raise ValueError("it has a transform, which isn't read")
        if kind == "path" and _STROKE.fullmatch(element.get("id", "")):
            found.append((element.get("id", ""), element.get("d", "")))
    return found
