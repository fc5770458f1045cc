"""Your own images as a tensorflow-datasets builder: a folder of images, or an npz."""

import concurrent.futures
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from types import ModuleType

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import tqdm_utils

from sparsejax.data import archives, folders
from sparsejax.data.decoding import decode
from sparsejax.data.items import Item, SourceError, reason
from sparsejax.data.stamps import Stamp, stamp_file, stamp_folder
from sparsejax.errors import ConfigError
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
        broken = _broken(items, self.channels)
        if broken:
            more = [f"and {len(broken) - _LISTED} more"] if len(broken) > _LISTED else []
            listed = "; ".join(broken[:_LISTED] + more)
            raise self._refusal(f"{len(broken)} of {len(items)} images can't be read: {listed}")
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


def _broken(items: Sequence[Item], channels: int) -> list[str]:
    """Decode every image once; return one line per failure."""

    def problem(item: Item) -> str | None:
        try:
            decode(item.read(), 1, channels)
        except Exception as error:  # Pillow raises many types for broken files.
            return f"{item.name}: {reason(error)}"
        return None

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        lines = tqdm_utils.tqdm(
            pool.map(problem, items), desc="Checking", total=len(items), unit=" images", leave=False
        )
        return [line for line in lines if line]
