"""Documents as Markdown, with their figures as PNG files beside them."""

import io
import pathlib
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from sparsejax.atomic import replacing, write_text
from sparsejax.reports.documents import Block, Code, Document, Folded, Items, Plot, Table, Text
from sparsejax.reports.page import inline
from sparsejax.reports.sheets import Picture, sheet
from sparsejax.reports.style import STYLE

_PLOT_BYTES, SHEET_BYTES = 150_000, 320_000
_RESOLUTIONS = (130, 100, 80)  # of plots: letters of 6 points can still be read at the last
_WIDTHS = (420, 320, 240, 160, 120)  # of pictures in a sheet


def write_markdown(path: pathlib.Path, document: Document) -> None:
    """Write a document as Markdown, its figures as PNG into the folder `figures` beside it.

    Args:
      path: pathlib.Path of the file.
      document: what to write.
    """
    folder = path.parent / "figures"
    folder.mkdir(exist_ok=True)
    title, sections, numbers = document
    parts = [f"# {_markdown(title)}"]
    for heading, blocks in sections:
        parts += [f"## {_markdown(heading)}"] if heading else []
        parts += [_markdown_block(block, numbers, folder) for block in blocks]
    write_text(path, "\n\n".join(parts) + "\n")


def _markdown_block(block: Block, numbers: Mapping[int, str], folder: pathlib.Path) -> str:
    if isinstance(block, Text):
        return _markdown(block.text)
    if isinstance(block, Items):
        return "\n".join(f"- {_markdown(text)}" for text in block.texts)
    if isinstance(block, Code):
        return f"```{block.language}\n{block.text}\n```"
    if isinstance(block, Folded):
        inside = "\n\n".join(_markdown_block(part, numbers, folder) for part in block.blocks)
        return f"<details><summary>{inline(block.summary)}</summary>\n\n{inside}\n\n</details>"
    caption = f"*{numbers[id(block)]}.* {_markdown(block.caption)}"
    if isinstance(block, Table):
        return f"{caption}\n\n{_markdown_table(block)}"
    png = _plot_png(block.figure) if isinstance(block, Plot) else _pictures_png(block.pictures)
    with replacing(folder / f"{block.name}.png") as partial:
        partial.write_bytes(png)
    return f"![{numbers[id(block)]}]({folder.name}/{block.name}.png)\n\n{caption}"


def _markdown_table(table: Table) -> str:
    ends = ["---"] * table.words + ["---:"] * (len(table.header) - table.words)
    lines = [[_markdown_cell(cell) for cell in line] for line in (table.header, *table.body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], ends, *lines[1:]))


def _markdown_cell(text: str) -> str:
    return _markdown(text).replace("|", "\\|")


def _markdown(text: str) -> str:
    """Escape what Markdown would take for HTML."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")


def _plot_png(figure: Figure) -> bytes:
    """Return a plot as a PNG of less than 150 kB, where it can be read at such a resolution."""
    for resolution in _RESOLUTIONS:
        buffer = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            figure.savefig(buffer, format="png", dpi=resolution, metadata={"Software": None})
        png = _small_png(Image.open(buffer).convert("RGB"), _PLOT_BYTES)
        if len(png) <= _PLOT_BYTES:
            break
    return png


def _pictures_png(pictures: Sequence[Picture]) -> bytes:
    """Return pictures as one PNG of less than 320 kB: smaller if need be, their titles are not."""
    for widest in _WIDTHS:
        png = _small_png(Image.fromarray(sheet(pictures, widest=widest)), SHEET_BYTES)
        if len(png) <= SHEET_BYTES:
            break
    return png


def _small_png(image: Image.Image, limit: int) -> bytes:
    """Return an image as a PNG, of fewer colours where it would be larger than `limit` bytes."""
    for colours in (None, 256, 64, 32):
        buffer = io.BytesIO()
        (image.quantize(colours) if colours else image).save(buffer, "png", optimize=True)
        if buffer.tell() <= limit:
            break
    return buffer.getvalue()
