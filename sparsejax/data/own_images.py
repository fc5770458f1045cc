"""Images of one's own as a tensorflow-datasets builder, wherever they are stored."""

import abc
import concurrent.futures
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import tqdm_utils

from sparsejax.data.decoding import decode
from sparsejax.data.items import Item, SourceError, few
from sparsejax.errors import ConfigError, reason
from sparsejax.limits import TooLargeError, changed
from sparsejax.types import Example, Value

HELD_OUT = "validation"  # the split of images that are held out
_FEWEST = 2  # images held out, at least: distances need as many
_LISTED = 20
_SIDE = 8  # pixels, to see whether an image is grey


class OwnImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]  # tfds has no types
    """tfds builder: `image` [height, width, 1 or 3] uint8 as stored, `label` int64.

    Encoded images are stored byte for byte. The config's name contains a hash of the content, so a
    changed source is prepared again (older versions stay on disk until deleted).
    tensorflow-datasets shuffles the examples deterministically, so a slice such as train[:1000] is
    a random sample.

    Attributes:
      ACCEPTED: description of the sources that a subclass accepts.
    """

    VERSION = tfds.core.Version("1.0.0")
    ACCEPTED = ""

    def __init__(self, source: str, held_out: float = 0.0, **kwargs: Value) -> None:
        """Inspect the source without reading the images yet.

        Args:
          source: what holds the images.
          held_out: fraction of the training images to hold out as `validation`, if the source has
            no such split.
          **kwargs: arguments of tfds.core.GeneratorBasedBuilder.

        Raises:
          ConfigError: the source doesn't exist, or isn't accepted.
        """
        self.source, self.held_out = source, held_out
        try:
            self.channels = self._channels()
            digest = self._digest()
        except SourceError as error:
            raise self._refusal(error) from error
        # Other limits leave out other images.
        others = [changed(), f"held_out={held_out}" if held_out else ""]
        if any(others):
            digest = hashlib.sha256(" ".join(filter(None, [digest, *others])).encode()).hexdigest()
        config = tfds.core.BuilderConfig(name=f"{self._config_name()}-{digest[:16]}")
        super().__init__(config=config, **kwargs)

    def about(self) -> tuple[str, ...]:
        """Describe a prepared source: a line on what was read, and lines on what was left out."""
        known = self._known()
        sizes = [f"{name} {split.num_examples:,}" for name, split in self.info.splits.items()]
        if known.held_out:
            sizes = [f"{s} (held out)" if s.startswith(f"{HELD_OUT} ") else s for s in sizes]
        words = [", ".join(sizes)]
        if known.classes > 1:
            names = f": {few(known.class_names, 10)}" if known.class_names else ""
            words.append(f"{known.classes:,} classes{names}")
        words += ["all grey"] if known.grey else []
        return tuple(f"{self.source}: {line}" for line in ["; ".join(words), *known.left_out])

    def _known(self) -> "_Known":
        """Return what preparing found.

        Raises:
          ConfigError: its file is damaged.
        """
        try:
            known = _Known(**self.info.metadata)
            texts = [known.content, *known.class_names, *known.left_out]
            if known.classes < 0 or not all(isinstance(text, str) for text in texts):
                raise ValueError("values of other types")
        except Exception as error:  # whatever the damage causes
            problem = f"its metadata.json is damaged ({reason(error)})"
            raise ConfigError(
                f"the data set prepared in {self.data_dir}: {problem}; accepted: a whole one: "
                "remove that folder to prepare it anew"
            ) from error
        return known

    def _channels(self) -> int:
        """Return the channels that images are stored with: 1 or 3."""
        return 3

    @abc.abstractmethod
    def _digest(self) -> str:
        """Hash what identifies the content of the source; raise a SourceError if it is none."""

    @abc.abstractmethod
    def _config_name(self) -> str:
        """Return a name for the folder of the prepared set."""

    @abc.abstractmethod
    def _items(self) -> list[Item]:
        """List the images; raise a SourceError if that isn't possible."""

    def _class_names(self) -> Sequence[str]:
        """Return the names of the classes, in the order of their labels, as far as known."""
        return ()

    def _ignored(self) -> str:
        """Describe the files that aren't images; empty if there are none."""
        return ""

    def _refusal(self, problem: object) -> ConfigError:
        message = f"config.task.source is {self.source!r}: {problem}; accepted: {self.ACCEPTED}"
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
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, Example]]]:
        del dl_manager
        try:
            items = self._items()
            looks = _look_at(items, self.channels)
            kept, left_out = self._without_large(items, looks)
            looks = [look for look in looks if not look.error]
            is_split = self.held_out and HELD_OUT not in {item.split for item in kept}
            if is_split:
                kept = hold_out(kept, [look.digest for look in looks], self.held_out)
            names = list(self._class_names())
        except SourceError as error:
            raise self._refusal(error) from error
        known = _Known(
            classes=len({item.label for item in kept}),
            class_names=names,
            grey=all(look.is_grey for look in looks),
            held_out=bool(is_split),
            left_out=[line for line in (left_out, self._ignored()) if line],
            content=_content_digest(kept, looks),
        )
        self.info.metadata.update(known._asdict())
        splits = dict.fromkeys(item.split for item in kept)
        return {split: self._generate_examples(kept, split) for split in splits}

    def _without_large(
        self, items: Sequence[Item], looks: Sequence["_Look"]
    ) -> tuple[list[Item], str]:
        """Return the images within the limits, and a description of the others.

        Raises:
          SourceError: images can't be read, or none is left to train on.
        """
        pairs = list(zip(items, looks, strict=True))
        failed = [(item.name, look.error) for item, look in pairs if look.error]
        broken = [pair for pair in failed if not isinstance(pair[1], TooLargeError)]
        if broken:
            problem = f"{len(broken)} of {len(items)} images can't be read: {_listed(broken)}"
            raise SourceError(problem)
        kept = [item for item, look in pairs if not look.error]
        if not failed:
            return kept, ""
        summary = f"{len(failed)} of {len(items)} images left out: {_listed(failed)}"
        if "train" not in {item.split for item in kept}:
            raise SourceError(f"it has no image for train; {summary}")
        return kept, summary

    def _generate_examples(
        self, items: Sequence[Item], split: str
    ) -> Iterator[tuple[int, Example]]:
        for index, item in enumerate(items):
            if item.split == split:
                yield index, {"image": item.read(), "label": item.label}


def hold_out(items: Sequence[Item], digests: Sequence[bytes], fraction: float) -> list[Item]:
    """Move a fraction of the training images to the split `validation`, by their content.

    An image is held out if its digest, read as a number, is below `fraction` of the largest one. So
    it stays where it is when others are added, renamed or sorted into classes, and copies of an
    image stay together. At least two images are held out: those with the smallest digests.

    Args:
      items: the images.
      digests: hash of the content of each, 8 bytes or more.
      fraction: fraction of the training images, in (0, 1).

    Returns:
      The Items, in the same order.

    Raises:
      SourceError: no image would be left to train on.
    """
    training = [i for i, item in enumerate(items) if item.split == "train"]
    order = sorted(training, key=digests.__getitem__)
    limit = int(fraction * 2**64)
    held = {i for i in order if int.from_bytes(digests[i][:8]) < limit} | set(order[:_FEWEST])
    if len(held) == len(training) > 0:
        raise SourceError(
            f"it has {len(training)} images for train, too few to hold out {fraction:g} of them "
            "(config.task.held_out; 0 holds none out)"
        )
    return [item._replace(split=HELD_OUT) if i in held else item for i, item in enumerate(items)]


class _Known(NamedTuple):
    """What preparing found, stored with the data set; of older versions, nothing."""

    classes: int = 0
    class_names: Sequence[str] = ()
    grey: bool = False
    held_out: bool = False
    left_out: Sequence[str] = ()
    content: str = ""


class _Look(NamedTuple):
    """What reading an image shows: what is wrong with it, a hash of its content, its colours."""

    error: Exception | None
    digest: bytes = b""
    is_grey: bool = False


def _look_at(items: Sequence[Item], channels: int) -> list[_Look]:
    """Read and decode every image once."""

    def look(item: Item) -> _Look:
        try:
            encoded = item.read()
            pixels = decode(encoded, _SIDE, channels)
        except Exception as error:  # Pillow raises many types for broken files.
            return _Look(error.with_traceback(None))
        digest = hashlib.sha256(item.content() if item.content else encoded).digest()
        return _Look(None, digest, bool((pixels == pixels[..., :1]).all()))

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        looks = tqdm_utils.tqdm(
            pool.map(look, items), desc="Checking", total=len(items), unit=" images", leave=False
        )
        return list(looks)


def _content_digest(items: Sequence[Item], looks: Sequence[_Look]) -> str:
    """Hash the splits, labels and contents of all images."""
    content = hashlib.sha256()
    for item, look in zip(items, looks, strict=True):
        content.update(f"{item.split} {item.label} ".encode() + look.digest)
    return content.hexdigest()


def _listed(problems: Sequence[tuple[str, Exception]]) -> str:
    """Name the first images with what is wrong with them, in one line."""
    lines = [f"{name}: {reason(error)}" for name, error in problems[:_LISTED]]
    more = [f"and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
    return "; ".join(lines + more)
