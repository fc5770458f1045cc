"""Pen drawings as tensorflow-datasets builders: from the publishers' files, or from an npz.

Unusable drawings are left out: a warning counts and names them, and left_out.txt, next to the
prepared records, lists all of them.
"""

import collections
import hashlib
import logging
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds

from sparsejax.data import archives, drawings, kanjivg, listing, packed, quickdraw, strokes
from sparsejax.data.drawings import Found
from sparsejax.data.items import SourceError
from sparsejax.data.stamps import Stamp, stamp_file, stamp_folder
from sparsejax.errors import ConfigError, require
from sparsejax.limits import changed
from sparsejax.types import Example, Value

logger = logging.getLogger(__name__)
# Its own level: absl's logging, silenced while datasets are opened, would suppress others.
logger.setLevel(logging.WARNING)

LEFT_OUT = "left_out.txt"
_LISTED = 20
_NPZ = "an npz in the packed layout (sparsejax/data/packed.py)"


class Sketches(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]  # tfds has no types
    """tfds builder: `points` [n, 4] float32 of a preprocessed drawing, `label` int64, `name`.

    The columns are x, y, pen, t; see `sparsejax.data.strokes`. The config's name contains the
    version of the preprocessing and a hash of the content and the chosen words, so changed files
    are prepared again.
    """

    VERSION = tfds.core.Version("1.0.0")
    ACCEPTED = _NPZ
    HAS_WORDS = False

    def __init__(self, source: str, words: tuple[str, ...] = (), **kwargs: Value) -> None:
        """Inspect the source without reading the drawings yet.

        Args:
          source: path; `ACCEPTED` describes what it may be.
          words: words to keep; () keeps all.
          **kwargs: arguments of tfds.core.GeneratorBasedBuilder.

        Raises:
          ConfigError: the source doesn't exist or isn't accepted, or words are given for drawings
            without words.
        """
        accepted = "a tuple of words" if self.HAS_WORDS else f"() with the dataset {self.name}"
        are_words = isinstance(words, tuple) and all(isinstance(word, str) for word in words)
        require(are_words and (self.HAS_WORDS or not words), "task.words", words, accepted)
        self.source, self.words = source, words
        self.path = pathlib.Path(source).expanduser().absolute()
        try:
            if not self.path.exists():
                raise SourceError("it doesn't exist")
            digest = self._digest()
        except SourceError as error:
            raise self._refusal(error) from error
        # Other limits leave out other drawings.
        content = "\0".join([digest, *sorted(set(words)), *filter(None, [changed()])])
        digest = hashlib.sha256(content.encode()).hexdigest()[:16]
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", self.path.name)[:50]
        config = tfds.core.BuilderConfig(name=f"{name}-{strokes.VERSION}-{digest}")
        super().__init__(config=config, **kwargs)

    def stamp(self) -> Stamp:
        """Return the stamp of the source (`sparsejax.data.stamps`)."""
        if self.path.is_dir():
            return stamp_folder(self.path, self._files())
        # The name of an ndjson file determines its drawings' names, and these their order.
        return stamp_file(self.path, named=self.path.suffix.lower() == ".ndjson")

    def _is_packed(self) -> bool:
        return self.path.is_file() and self.path.suffix.lower() == ".npz"

    def _digest(self) -> str:
        """Hash the content of the source; raise a SourceError if it isn't accepted."""
        if self._is_packed():
            self._check_keys(packed.keys(self.path))
        else:
            files = self._files()
            if self.path.is_dir():
                return listing.digest(self.path, files)
        return archives.digest(self.path)

    def _check_keys(self, keys: set[str]) -> None:
        """Raise a SourceError if an npz with these keys belongs to another dataset."""

    def _files(self) -> list[pathlib.Path]:
        """List the publisher's files in a source that isn't an npz."""
        raise SourceError("it isn't an npz")

    def _publishers(self) -> Iterator[Found]:
        """Read a source that isn't an npz."""
        raise SourceError("it isn't an npz")

    def _files_left_out(self) -> str:
        """Describe the unread files of a source that isn't an npz."""
        return ""

    def _refusal(self, problem: object) -> ConfigError:
        return ConfigError(
            f"config.task.source is {self.source!r}: {problem}; accepted with the dataset "
            f"{self.name}: {self.ACCEPTED}"
        )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "points": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
                    "label": tfds.features.Scalar(np.int64),
                    "name": tfds.features.Text(),
                }
            ),
            description=__doc__,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[tuple[str, Example]]]:
        del dl_manager
        examples, left_out = collections.defaultdict(list), []
        try:
            for found in self._drawings():
                example = _prepared(found)
                if isinstance(example, drawings.Broken):
                    left_out.append(example)
                elif isinstance(found, drawings.Drawing):
                    examples[found.split].append((found.name, example))
        except SourceError as error:
            raise self._refusal(error) from error
        count = len(left_out) + sum(map(len, examples.values()))
        summary = f"{len(left_out)} of {count} drawings left out"
        if "train" not in examples:
            raise self._refusal(f"it has no drawing for train; {_line(summary, left_out)}")
        summary = f"{self.name}: {summary}"
        # tensorflow-datasets renames the whole folder when all is done.
        lines = [summary, *(f"{name}: {reason}" for name, reason in left_out)]
        (self.data_path / LEFT_OUT).write_text("\n".join(lines) + "\n", encoding="utf-8")
        others = "" if self._is_packed() else self._files_left_out()
        if others:
            logger.warning("%s: %s", self.name, others)
        if left_out:
            logger.warning("%s", _report(summary, left_out))
        return {split: examples[split] for split in drawings.SPLITS if split in examples}

    def _drawings(self) -> Iterator[Found]:
        return packed.read(self.path, self.words) if self._is_packed() else self._publishers()

    def _generate_examples(self) -> None:
        """Unused: `_split_generators` gives the generators themselves."""


class QuickdrawStrokes(Sketches):
    """Quick, Draw!: Google's ndjson files, raw or simplified; see `Sketches`."""

    ACCEPTED = (
        "a .ndjson file (raw or simplified, linked from "
        f"https://github.com/googlecreativelab/quickdraw-dataset), a folder of them, or {_NPZ}"
    )
    HAS_WORDS = True

    def _files(self) -> list[pathlib.Path]:
        return quickdraw.files(self.path)

    def _publishers(self) -> Iterator[Found]:
        return quickdraw.read(self.path, self.words)

    def _files_left_out(self) -> str:
        return quickdraw.left_out(self.path)


class Kanjivg(Sketches):
    """KanjiVG: the publisher's zip of SVG files, or a folder of them; see `Sketches`."""

    ACCEPTED = (
        "KanjiVG's zip (kanjivg-DATE-main.zip of https://github.com/KanjiVG/kanjivg/releases), "
        f"a folder of its SVG files, or {_NPZ}"
    )

    def _files(self) -> list[pathlib.Path]:
        return kanjivg.files(self.path) if self.path.is_dir() else [self.path]

    def _publishers(self) -> Iterator[Found]:
        return kanjivg.read(self.path)

    def _files_left_out(self) -> str:
        return kanjivg.left_out(self.path)


class Vmnist(Sketches):
    """VMNIST, handwritten digits as strokes, packed in an npz; see `Sketches`."""

    ACCEPTED = (
        f"{_NPZ}, made from the drawings that https://github.com/dasayan05/chirodiff links under "
        "Data preparation"
    )

    def _check_keys(self, keys: set[str]) -> None:
        if "mnist_index" in keys:
            problem = "it has the key mnist_index: MNIST's pictures, traced, are not VMNIST"
            raise SourceError(f"{problem} (config.task.dataset = 'vmnist_like')")


class VmnistLike(Sketches):
    """MNIST's pictures, traced to strokes and packed in an npz; see `Sketches`."""

    ACCEPTED = f"{_NPZ} with mnist_index"

    def _check_keys(self, keys: set[str]) -> None:
        if "mnist_index" not in keys:
            raise SourceError("it lacks the key mnist_index (which pictures were traced)")


def _prepared(found: Found) -> Example | drawings.Broken:
    """Return the example of a Drawing, or a Broken with the reason why there is none."""
    if isinstance(found, drawings.Broken):
        return found
    points = drawings.attempt(found.name, strokes.preprocess, found.strokes)
    if isinstance(points, drawings.Broken):
        return points
    return {"points": points, "label": found.label, "name": found.name}


def _line(summary: str, left_out: Sequence[drawings.Broken]) -> str:
    """Describe in one line what was left out: a count per reason, and the first name."""
    if not left_out:
        return summary
    counts = collections.Counter(reason for _, reason in left_out).most_common(_LISTED)
    reasons = "; ".join(f"{reason} ({count})" for reason, count in counts)
    return f"{summary}: {reasons}; the first is {left_out[0].name}"


def _report(summary: str, left_out: Sequence[drawings.Broken]) -> str:
    """Describe what was left out: a count per reason, then the first names."""
    counts = collections.Counter(reason for _, reason in left_out).most_common(_LISTED)
    lines = [f"{count} times: {reason}" for reason, count in counts]
    lines += [f"{name}: {reason}" for name, reason in left_out[:_LISTED]]
    if len(left_out) > _LISTED:
        lines.append(f"and {len(left_out) - _LISTED} more, all of them in {LEFT_OUT}")
    return f"{summary}:" + "".join(f"\n  {line}" for line in lines)
