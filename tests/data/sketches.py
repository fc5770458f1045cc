"""Sources of drawings that their tests share."""

import json

import numpy as np

# Two strokes of two points each, as in a raw file.
DRAWING = [[[0, 3], [0, 4], [0, 50]], [[3, 3], [5, 8], [70, 90.5]]]


def line(word="cat", key="1", drawing=DRAWING, **changes):
    """A line of an ndjson file, as Google writes it."""
    return json.dumps(
        {"word": word, "recognized": True, "key_id": key, "drawing": drawing, **changes}
    )


def save_lines(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def svg(*paths, name="05b57", before=""):
    """An SVG file of KanjiVG; each path is a stroke's `d`."""
    strokes = "".join(
        f'<path id="kvg:{name}-s{i}" kvg:type="x" d="{d}"/>' for i, d in enumerate(paths, 1)
    )
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE svg [\n<!ATTLIST path\n'
    fixed = 'xmlns:kvg CDATA #FIXED "http://kanjivg.tagaini.net" kvg:type CDATA #IMPLIED >\n]>\n'
    body = f'<svg xmlns="http://www.w3.org/2000/svg"><g id="kvg:{name}">{strokes}</g></svg>'
    return head + before + fixed + body


def save_svgs(folder, **files):
    """Write SVG files: `save_svgs(folder, **{"05b57": svg("M1,1h9")})`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.svg").write_text(content)
    return folder


def packed_arrays(**changes):
    """The arrays of an npz in the packed layout: three drawings, the second of two strokes."""
    points = [
        [0, 0, 0],
        [6, 8, 1],
        [1, 1, 0],
        [1, 3, 1],
        [4, 7, 0],
        [4, 9, 1],
        [0, 0, 0],
        [2, 0, 1],
    ]
    arrays = {"points": np.int16(points), "offsets": np.array([0, 2, 6, 8])}
    return {key: value for key, value in (arrays | changes).items() if value is not None}


def save_packed(path, **changes):
    np.savez(path, **packed_arrays(**changes))
    return path
