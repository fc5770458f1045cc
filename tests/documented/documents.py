"""The commands in README and docs/."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# These need nothing that documents before them leave behind, and take the longest.
ALONE = [path for path in DOCUMENTS if path.name in ("choosing.md", "faster_and_smaller.md")]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PROGRAMS = ("python", "pip", "pytest")


def blocks_of(document):
    """The bash blocks of a document, in order."""
    return [code for kind, code in FENCED.findall(document.read_text()) if kind in ("bash", "sh")]


def inline_of(document):
    """Commands within the text: `python -m benchmarks.memory`."""
    spans = re.findall(r"`([^`\n]+)`", FENCED.sub("", document.read_text()))
    return [span for span in spans if span.split()[0] in PROGRAMS and " " in span]


def is_part_of_any(command, scripts):
    """Whether a command's words stand in a script in this order, so that it runs with it."""

    def is_part_of(script):
        words = iter(script.split())
        return all(word in words for word in command.replace("...", "").split())

    return any(map(is_part_of, scripts))


SCRIPTS = [script for document in DOCUMENTS for script in blocks_of(document)]


def commands_of(document):
    """Every `python` command in a document, with variables as written."""
    scripts = "\n".join([*blocks_of(document), *inline_of(document)]).replace("\\\n", " ")
    return re.findall(r"(?<![\w./-])python ([^\"`\n#]+)", scripts)


def run_all(document, shell):
    """Run every command of a document; print how long each took."""
    inline = [
        command
        for command in inline_of(document)
        if command.startswith("python") and not is_part_of_any(command, SCRIPTS)
    ]
    for script in [*blocks_of(document), *inline]:
        for line in shell(script):
            print("not run" if line["not_run"] else f"{line['seconds']:.0f} s", line["command"])
