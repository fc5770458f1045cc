"""What a document is made of: sections of text, tables, figures and pictures.

Only `code` and **bold** are markup in texts; writers escape everything else.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from matplotlib.figure import Figure

from sparsejax.reports.sheets import Picture


class Text(NamedTuple):
    """A paragraph; `code` and **bold** are marked as in Markdown."""

    text: str


class Items(NamedTuple):
    """A list of short texts."""

    texts: list[str]


class Table(NamedTuple):
    """A table.

    Attributes:
      caption: a sentence below its number.
      header: names of the columns.
      body: rows of cells.
      words: how many columns from the left hold words, not numbers.
      breaks: indices of rows that begin a part.
    """

    caption: str
    header: list[str]
    body: list[list[str]]
    words: int = 1
    breaks: tuple[int, ...] = ()


class Plot(NamedTuple):
    """A figure with the name of its file and a caption that says what is on its axes."""

    name: str
    figure: Figure
    caption: str


class Pictures(NamedTuple):
    """Pictures to lay side by side, with the name of their file and a caption."""

    name: str
    pictures: list[Picture]
    caption: str


class Code(NamedTuple):
    """Text to show as it is; `language` is for the Markdown."""

    text: str
    language: str


Shown: TypeAlias = Text | Items | Table | Plot | Pictures | Code


class Folded(NamedTuple):
    """Blocks that are shown on demand."""

    summary: str
    blocks: Sequence[Shown]


Block: TypeAlias = Shown | Folded


class Section(NamedTuple):
    """A heading and the blocks under it."""

    heading: str
    blocks: Sequence[Block]


Part: TypeAlias = tuple[Section | None, str]  # a section or None, and what is missing


def anchor(text: str) -> str:
    """Return a name for a file or a place in a page.

    Examples:
      >>> anchor("FD[pixels:8x8]")
      'fd-pixels-8x8'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "part"


class Document(NamedTuple):
    """Sections under a title; `numbers` is `{id(block): "Figure 3"}` for tables and figures."""

    title: str
    sections: Sequence[Section]
    numbers: dict[int, str]


def number(title: str, sections: Sequence[Section]) -> Document:
    """Return a document whose tables and figures are numbered, folded ones too.

    Args:
      title: of the document.
      sections: the first one may have no heading.
    """
    names, counts = {}, {"Figure": 0, "Table": 0}
    blocks = [block for section in sections for block in section.blocks]
    for block in blocks:
        for part in block.blocks if isinstance(block, Folded) else [block]:
            kind = {Table: "Table", Plot: "Figure", Pictures: "Figure"}.get(type(part))
            if kind:
                counts[kind] += 1
                names[id(part)] = f"{kind} {counts[kind]}"
    return Document(title, sections, names)
