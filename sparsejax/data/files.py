"""Your own images as a tensorflow-datasets builder: a folder of images, or an npz."""

import concurrent.futures
import hashlib
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import tqdm_utils

from sparsejax.data import archives, folders
from sparsejax.data.decoding import decode
from sparsejax.data.items import Item, SourceError
from sparsejax.data.stamps import Stamp, stamp_file, stamp_folder
from sparsejax.errors import ConfigError, reason
from sparsejax.limits import TooLargeError, changed
from sparsejax.types import Example, Value

logger = logging.getLogger(__name__)
# Its own level: absl's logging, silenced while datasets are opened, would suppress others.
logger.setLevel(logging.WARNING)

ACCEPTED = (
    f"a folder of images ({', '.join(e[1:] for e in folders.EXTENSIONS)}), or an npz with "
    "images, or with jpeg and offsets"
)
_LISTED = 20


class Files(tfds.core.GeneratorBasedBuilder):
    """tfds builder: `image` [height, width, 1 or 3] uint8 as stored, `label` int64.

    `sparsejax.data.folders` and `sparsejax.data.archives` document how splits and labels are
    found. Encoded images are stored byte for byte. The config's name contains a hash of the
    content, so changed files are prepared again (older versions stay on disk until deleted).
    tensorflow-datasets shuffles the examples deterministically, so a slice such as train[:1000] is
    a random sample.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, source: str, **kwargs: Value) -> None:
        """Inspect the source without reading the images yet.

        Args:
          source: path of a folder or an npz.
          **kwargs: arguments of tfds.core.GeneratorBasedBuilder.

        Raises:
          ConfigError: the source doesn't exist, or is neither of the two.
        """
        self.source = source
        self.path = pathlib.Path(source).expanduser().absolute()
        try:
            self.channels = self._kind().channels(self.path) if self.path.is_file() else 3
            digest = self._kind().digest(self.path)
        except SourceError as error:
            raise self._refusal(error) from error
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", short_name(source))[:50]
        if changed():  # other limits leave out other images
            digest = hashlib.sha256(f"{digest} {changed()}".encode()).hexdigest()
        config = tfds.core.BuilderConfig(name=f"{name}-{digest[:16]}")
        super().__init__(config=config, **kwargs)

    def stamp(self) -> Stamp:
        """Return the stamp of the source (`sparsejax.data.stamps`)."""
        if self.path.is_dir():
            return stamp_folder(self.path, folders.images(self.path))
        return stamp_file(self.path)

    def _kind(self) -> ModuleType:
        if not self.path.exists():
            raise SourceError("it doesn't exist")
        return folders if self.path.is_dir() else archives

    def _refusal(self, problem: object) -> ConfigError:
        message = f"config.task.source is {self.source!r}: {problem}; accepted: {ACCEPTED}"
        return ConfigError(message)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, self.channels)),
                    "label": tfds.features.Scalar(np.int64),
                }
            ),
            description=__doc__,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, Example]]]:
        del dl_manager
        try:
            items = self._kind().items(self.path)
        except SourceError as error:
            raise self._refusal(error) from error
        problems = _problems(items, self.channels)
        broken = [p for p in problems if p and not isinstance(p.error, TooLargeError)]
        if broken:
            listed = _listed(broken)
            raise self._refusal(f"{len(broken)} of {len(items)} images can't be read: {listed}")
        large = [problem for problem in problems if problem]
        summary = f"{len(large)} of {len(items)} images left out: {_listed(large)}"
        items = [item for item, problem in zip(items, problems, strict=True) if not problem]
        if large and "train" not in {item.split for item in items}:
            raise self._refusal(f"it has no image for train; {summary}")
        if large:
            logger.warning("%s: %s", self.source, summary)
        others = folders.left_out(self.path) if self.path.is_dir() else ""
        if others:
            logger.warning("%s: %s", self.source, others)
        splits = dict.fromkeys(item.split for item in items)
        return {split: self._generate_examples(items, split) for split in splits}

    def _generate_examples(
        self, items: Sequence[Item], split: str
    ) -> Iterator[tuple[int, Example]]:
        for index, item in enumerate(items):
            if item.split == split:
                yield index, {"image": item.read(), "label": item.label}


def short_name(source: str) -> str:
    """Return the name of a folder, or of an npz without its suffix."""
    path = pathlib.Path(source).expanduser().absolute()
    return path.stem if path.suffix.lower() == ".npz" else path.name


class _Problem(NamedTuple):
    """An image that can't be read: its name, and what was raised."""

    name: str
    error: Exception


def _listed(problems: Sequence[_Problem]) -> str:
    """Name the first images with what is wrong with them, in one line."""
    lines = [f"{name}: {reason(error)}" for name, error in problems[:_LISTED]]
    more = [f"and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
    return "; ".join(lines + more)


def _problems(items: Sequence[Item], channels: int) -> list[_Problem | None]:
    """Decode every image once; return what is wrong with each, None if nothing is."""

    def problem(item: Item) -> _Problem | None:
        try:
            decode(item.read(), 1, channels)
        except Exception as error:  # Pillow raises many types for broken files.
            return _Problem(item.name, error.with_traceback(None))
        return None

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = tqdm_utils.tqdm(
            pool.map(problem, items), desc="Checking", total=len(items), unit=" images", leave=False
        )
        return list(found)
