"""Documents as one HTML page, which needs no other file and no JavaScript.

Figures are SVG in the page, pictures PNG. Whatever stands in a document is escaped.
"""

import base64
import html
import io
import pathlib
import re
from collections.abc import Mapping, Sequence

import matplotlib
from PIL import Image

from sparsejax.atomic import write_text
from sparsejax.reports.documents import (
    Block,
    Code,
    Document,
    Folded,
    Items,
    Plot,
    Table,
    Text,
    anchor,
)
from sparsejax.reports.sheets import Picture
from sparsejax.reports.style import STYLE

_TINY = 200  # pixels: narrower pictures are enlarged with hard edges


def write_html(path: pathlib.Path, document: Document) -> None:
    """Write a document as one HTML page, with contents after the section without a heading.

    Args:
      path: pathlib.Path of the file.
      document: what to write.
    """
    title, sections, numbers = document
    contents: list[str] = []
    body: dict[str, list[str]] = {"": [], "rest": []}
    for heading, blocks in sections:
        inside = "\n".join(_html_block(block, numbers) for block in blocks)
        if heading:
            name = anchor(heading)
            contents.append(f'<li><a href="#{name}">{inline(heading)}</a></li>')
            inside = f'<h2 id="{name}">{inline(heading)}</h2>\n{inside}'
        body["rest" if heading else ""].append(f"<section>\n{inside}\n</section>")
    page = _PAGE.format(
        title=html.escape(title),
        style=_CSS,
        opening="\n".join(body[""]),
        contents="".join(contents),
        body="\n".join(body["rest"]),
    )
    write_text(path, page)


def _html_block(block: Block, numbers: Mapping[int, str]) -> str:
    if isinstance(block, Text):
        return f"<p>{inline(block.text)}</p>"
    if isinstance(block, Items):
        return f"<ul>{''.join(f'<li>{inline(text)}</li>' for text in block.texts)}</ul>"
    if isinstance(block, Code):
        return f"<pre><code>{html.escape(block.text)}</code></pre>"
    if isinstance(block, Folded):
        inside = "\n".join(_html_block(part, numbers) for part in block.blocks)
        return f"<details><summary>{inline(block.summary)}</summary>\n{inside}\n</details>"
    caption = f"<b>{numbers[id(block)]}.</b> {inline(block.caption)}"
    if isinstance(block, Table):
        return _html_table(block, caption)
    inside = _svg(block) if isinstance(block, Plot) else _html_pictures(block.pictures)
    kind = "plot" if isinstance(block, Plot) else "pictures"
    return f'<figure class="{kind}">\n{inside}\n<figcaption>{caption}</figcaption>\n</figure>'


def _html_table(table: Table, caption: str) -> str:
    kinds = ["word"] * table.words + ["number"] * (len(table.header) - table.words)
    # A heading may break inside a long name: after a bracket, a colon, before the count.
    headings = [re.sub(r"([\[\]:])", r"\1<wbr>", inline(cell)) for cell in table.header]
    head = "".join(
        f'<th scope="col" class="{kind}">{cell}</th>'
        for kind, cell in zip(kinds, headings, strict=True)
    )
    lines = []
    for index, line in enumerate(table.body):
        begins = ' class="begins"' if index in table.breaks else ""
        cells = "".join(
            f'<td class="{kind}">{inline(cell)}</td>'
            for kind, cell in zip(kinds, line, strict=True)
        )
        lines.append(f"<tr{begins}>{cells}</tr>")
    body = "\n".join(lines)
    return (
        f'<figure class="table">\n<figcaption>{caption}</figcaption>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table">\n<table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>\n</figure>"
    )


def _html_pictures(pictures: Sequence[Picture]) -> str:
    items = []
    for title, pixels in pictures:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="png", optimize=True)
        data = base64.b64encode(buffer.getvalue()).decode()
        kind = ' class="tiny"' if pixels.shape[1] < _TINY else ""
        first, *rest = title.split("\n")
        text = "<br>".join([f"<b>{html.escape(first)}</b>", *map(html.escape, rest)])
        alt = html.escape(title.replace("\n", ", "), quote=True)
        items.append(
            f'<div><img{kind} src="data:image/png;base64,{data}" alt="{alt}" '
            f'width="{pixels.shape[1]}" height="{pixels.shape[0]}"><p>{text}</p></div>'
        )
    return '<div class="grid">\n' + "\n".join(items) + "\n</div>"


def _svg(plot: Plot) -> str:
    """Return a figure as SVG to stand in a page: ids of its own, no metadata, any width."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": plot.name}):
        plot.figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    for place in ('id="', 'href="#', "url(#"):
        # A function, since a text would be a template, in which backslashes have a meaning.
        text = re.sub(rf"\b{re.escape(place)}", lambda found: f"{found[0]}{plot.name}-", text)
    width = round(plot.figure.get_figwidth() * 96)
    label = html.escape(plot.caption.replace("`", ""), quote=True)
    shape = f'role="img" aria-label="{label}" style="max-width:{width}px"'
    text = re.sub(r"<svg\b", lambda found: f"{found[0]} {shape}", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    return f'<div class="scroll" tabindex="0" role="region" aria-label="Figure">{text}</div>'


def inline(text: str) -> str:
    """Write a paragraph's text as HTML: escaped, with `code` and **bold**."""
    parts = re.split(r"`([^`]*)`", text)
    for index, part in enumerate(parts):
        escaped = html.escape(part)
        bold = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escaped)
        parts[index] = f"<code>{escaped}</code>" if index % 2 else bold
    return "".join(parts)


_CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1.25rem 3rem; max-width: 76rem; background: #fff;
  color: #1a1a1a; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
  Arial, "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid #bbb; }
p, ul { max-width: 48rem; margin: .6rem 0; }
ul { padding-left: 1.25rem; }
a { color: #00558a; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: .875em; }
code { overflow-wrap: anywhere; }
pre { overflow-x: auto; background: #f4f4f4; padding: .75rem; }
nav ol { columns: 18rem; padding-left: 1.5rem; }
figure { margin: 1.5rem 0; }
figcaption { font-size: .875rem; color: #333; max-width: 52rem; margin: .4rem 0; }
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid #0072b2; }
.scroll svg { display: block; width: 100%; min-width: 30rem; height: auto; }
table { border-collapse: collapse; font-size: .8125rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; }
th { vertical-align: bottom; white-space: normal; border-bottom: 2px solid #555; }
td { border-bottom: 1px solid #ddd; }
tr.begins td { border-top: 2px solid #999; }
.word { text-align: left; }
td.word:nth-child(n + 2) { white-space: normal; min-width: 12rem; overflow-wrap: anywhere; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
td code { overflow-wrap: normal; }
details { margin: 1rem 0; }
summary { cursor: pointer; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1rem; }
.grid img { width: 100%; height: auto; display: block; border: 1px solid #ddd; }
.grid p { margin: .3rem 0 0; font-size: .8125rem; line-height: 1.35; }
.tiny { image-rendering: pixelated; }
@media print {
  @page { margin: 14mm; }
  html { font-size: 9pt; }
  body { font-size: 1rem; max-width: none; padding: 0; }
  h2 { margin-top: 1.5rem; }
  figure { margin: .75rem 0; }
  p, ul, figcaption { max-width: none; }
  nav { display: none; }
  .scroll, pre { overflow: visible; }
  .scroll svg { min-width: 0; width: 85%; max-height: 230mm; }
  pre { white-space: pre-wrap; }
  figure.plot, .grid > div, tr { break-inside: avoid; }
  h2, figure.table figcaption { break-after: avoid; }
  figure.pictures figcaption { break-before: avoid; }
  table { font-size: 6pt; width: 100%; }
  th, td { padding: .1rem .2rem; white-space: normal; overflow-wrap: normal; }
  td code { overflow-wrap: break-word; }
  th:first-child, td:first-child { position: static; }
  td.word:nth-child(n + 2) { min-width: 0; }
  .grid { grid-template-columns: repeat(5, 1fr); }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{opening}
<nav aria-label="Contents"><ol>{contents}</ol></nav>
<main>
{body}
</main>
</body>
</html>
"""
