"""What the site shows besides the pages in docs/: README and others, notebooks, reports, equations.

mkdocs calls these functions (`hooks` in mkdocs.yml). README is the first page, a notebook becomes a
page with its outputs, reports are made from their results.jsonl, and equations are MathML, which
browsers draw without JavaScript.
"""

import base64
import html
import json
import pathlib
import re
import tempfile

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
EVIDENCE = "results/evidence/results.jsonl"
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages for README and its like, for every notebook, and report.html of every grid."""
    docs = pathlib.Path(config.docs_dir)
    for path in sorted(docs.parent.glob("*.md")):
        text = LINK.sub(_moved_link, path.read_text(encoding="utf-8"))
        files.append(File.generated(config, page_name(path), content=text))
    # Those of evidence are of several data sets: their report.md is the page, made by a benchmark.
    for results in sorted({*docs.glob("results/*/results.jsonl")} - {docs / EVIDENCE}):
        page = results.with_name("report.html").relative_to(docs).as_posix()
        files.append(File.generated(config, page, content=report_page(results)))
    for notebook in sorted(docs.glob("*.ipynb")):
        text, pictures = notebook_page(notebook)
        page = notebook.with_suffix(".md").name
        files.append(File.generated(config, page, content=text))
        for name, png in pictures.items():
            files.append(File.generated(config, name, content=png))
    return files


def page_name(path: pathlib.Path) -> str:
    """Return the name of the page that a file beside docs/ becomes."""
    return "index.md" if path.name == "README.md" else path.name.lower()


def _moved_link(match: re.Match[str]) -> str:
    """Return a link of a file beside docs/ as it stands in docs/; text if the site lacks it."""
    text, target = match.groups()
    if re.match(r"\w+:|#", target):
        return match[0]
    if target.startswith("docs/"):
        return f"[{text}]({target.removeprefix('docs/')})"
    is_page = target.endswith(".md") and "/" not in target
    return f"[{text}]({page_name(pathlib.Path(target))})" if is_page else text


def report_page(results: pathlib.Path) -> str:
    """Return a report as one HTML page, under the title of the committed report.md."""
    from sparsejax.reports.groups import compare
    from sparsejax.reports.page import write_html
    from sparsejax.reports.report import build_report
    from sparsejax.reports.results import read_results

    title = results.with_name("report.md").read_text(encoding="utf-8").partition("\n")[0]
    comparison = compare(read_results(results))
    document = build_report(title.removeprefix("# "), comparison, "", None, results.parent)
    with tempfile.TemporaryDirectory() as folder:
        page = pathlib.Path(folder) / "report.html"
        write_html(page, document)
        return page.read_text(encoding="utf-8")


def notebook_page(path: pathlib.Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown, and its pictures by name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}_{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![{''.join(data['text/plain'])}]({name})")
            else:
                text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
                parts.append(f"```text\n{text}\n```")
    parts.append(f"[This page as a notebook]({path.name})")
    return "\n\n".join(parts) + "\n", pictures


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Link the HTML page of a report and the pages of notebooks; let folded tables be tables."""
    if not page.file.generated_by:
        markdown = re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.md)", markdown)
    if re.fullmatch(r"results/\w+/report\.md", page.file.src_uri):
        results = pathlib.Path(page.file.abs_src_path or "").with_name("results.jsonl")
        if results.exists():
            links = "[As one page](report.html), [results.jsonl](results.jsonl)"
            markdown = markdown.replace("\n\n", f"\n\n{links}\n\n", 1)
    return markdown.replace("<details>", '<details markdown="1">')


def on_page_content(content: str, **_: object) -> str:
    """Make MathML of the equations in a page."""
    return EQUATION.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    from latex2mathml.converter import convert

    kind, tex = match[1], html.unescape(match[2])
    shown = convert(tex.strip(), display="block" if kind == "div" else "inline")
    return f'<{kind} class="arithmatex">{shown}</{kind}>'
