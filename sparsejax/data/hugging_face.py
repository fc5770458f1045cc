"""Hugging Face datasets as a tensorflow-datasets builder: from the hub, or from a folder.

Columns are found by their type, Image and ClassLabel. Only what the package `datasets` calls an
Image is read, as it is encoded; it runs no code of a dataset's author.
"""

import functools
import hashlib
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparsejax.data import folders, listing
from sparsejax.data.items import Item, SourceError, check, few
from sparsejax.data.own_images import OwnImages
from sparsejax.data.stamps import Stamp, stamp_splits
from sparsejax.errors import ConfigError, reason
from sparsejax.limits import read_file
from sparsejax.types import Value

if TYPE_CHECKING:
    import datasets

_HUB = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::([\w.-]+))?", re.ASCII)  # OWNER/NAME, and a config
_SAVED = ("dataset_dict.json", "state.json")  # files that `save_to_disk` writes
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))


class HuggingFace(OwnImages):
    """tfds builder of a Hugging Face dataset; see `OwnImages`. Its splits keep their names."""

    name = "hf"
    ACCEPTED = (
        "OWNER/NAME, or OWNER/NAME:CONFIG, of a dataset on the Hugging Face hub; a folder that "
        "save_to_disk wrote, or one of parquet files or images"
    )

    def __init__(
        self, source: str, held_out: float = 0.0, columns: Sequence[str] = (), **kwargs: Value
    ) -> None:
        """Inspect the source; see `OwnImages`.

        Args:
          source: what `ACCEPTED` describes; a folder of that name comes first.
          held_out: see `OwnImages`.
          columns: names of the columns of images and, if there are labels, of labels; () finds
            the only ones of their type.
          **kwargs: arguments of tfds.core.GeneratorBasedBuilder.

        Raises:
          ConfigError: the source doesn't exist, isn't accepted or can't be reached, or the package
            `datasets` is needed and missing.
        """
        self.columns = tuple(columns)
        self.path = pathlib.Path(source).expanduser().absolute()
        super().__init__(source, held_out, **kwargs)

    def stamp(self) -> Stamp:
        """Return the stamp of a prepared dataset (`sparsejax.data.stamps`).

        The dataset's own fingerprint changes with every commit of its repository, and with the
        times of files: the stamp is of the images and labels themselves.
        """
        return stamp_splits(self.info.splits) | {"sha256": self._known().content}

    def _digest(self) -> str:
        if self.path.is_dir():
            files = [path for path in listing.visible(self.path) if path.exists()]
            content = [listing.digest(self.path, files)]
        else:
            found = _load(self.source)  # its fingerprints are public in all but name
            content = [f"{name} {dataset._fingerprint}" for name, dataset in found.items()]
        return hashlib.sha256("\0".join([*content, *self.columns]).encode()).hexdigest()

    def _config_name(self) -> str:
        return short_name(self.source)[:50]

    def _datasets(self) -> "Mapping[str, datasets.Dataset]":
        return _load(self.source, self._digest() if self.path.is_dir() else "")

    def _items(self) -> list[Item]:
        return [
            item
            for name, dataset in self._datasets().items()
            for item in _rows(name, dataset, self._columns(dataset))
        ]

    def _class_names(self) -> Sequence[str]:
        dataset, *_ = self._datasets().values()
        label = self._columns(dataset)[1]
        return getattr(dataset.features[label], "names", None) or () if label else ()

    def _columns(self, dataset: "datasets.Dataset") -> tuple[str, str | None]:
        return find_columns(dataset.features, self.columns)


def short_name(source: str) -> str:
    """Return the last part of a path or of a hub's name, as the name of a file.

    Examples:
      >>> short_name("ylecun/mnist"), short_name("uoft-cs/cifar100:cifar100")
      ('mnist', 'cifar100-cifar100')
    """
    return re.sub(r"[^A-Za-z0-9_.-]", "-", pathlib.Path(source).expanduser().absolute().name)


def find_columns(
    features: "datasets.Features", columns: Sequence[str] = ()
) -> tuple[str, str | None]:
    """Return the names of the columns of images and of labels.

    Args:
      features: the dataset's features by column.
      columns: `config.task.columns`.

    Returns:
      Tuple of names; None in place of the second one if there are no labels.

    Raises:
      SourceError: there is no column of images.
      ConfigError: several columns could be meant, or those given can't be used; lists them.
    """
    import datasets

    of_images = [name for name, f in features.items() if isinstance(f, datasets.Image)]
    of_labels = [name for name, f in features.items() if isinstance(f, datasets.ClassLabel)]
    integers = [
        name
        for name, f in features.items()
        if isinstance(f, datasets.Value) and f.dtype in _INTEGERS
    ]
    kinds = [f"{name} ({type(f).__name__})" for name, f in features.items()]
    check(of_images, f"it has no column of type Image; its columns are {few(kinds)}")
    image, *rest = columns or of_images[:1]
    label = [*rest, *(of_labels if not columns else [])]
    fits = image in of_images and len(label) <= 1 and set(label) <= {*of_labels, *integers}
    if not fits or (not columns and len(of_images) > 1):
        raise ConfigError(
            f"config.task.columns is {tuple(columns)!r}; accepted: a column of images "
            f"({few(of_images)}), and one of labels ({few([*of_labels, *integers])}) or none, such "
            f"as --config.task.columns={','.join([*of_images[:1], *of_labels[:1]])}"
        )
    return image, label[0] if label else None


@functools.cache
def _load(source: str, content: str = "") -> "dict[str, datasets.Dataset]":
    """Return a dataset's splits by name; once for each content of a folder.

    Raises:
      SourceError: the package `datasets` is missing, or it can't load the source.
    """
    del content
    path, match = pathlib.Path(source).expanduser().absolute(), _HUB.fullmatch(source)
    check(path.is_dir() or match, "it doesn't exist" if not path.exists() else "it isn't a folder")
    try:
        import datasets
    except ImportError as error:
        problem = "the package datasets can't be imported: pip install 'sparsejax[hf]'"
        raise SourceError(f"{problem} ({reason(error)})") from error
    (datasets.enable_progress_bars if sys.stderr.isatty() else datasets.disable_progress_bars)()
    try:
        if not path.is_dir():
            assert match is not None, "checked above"
            found = datasets.load_dataset(*match.groups())
        elif any((path / name).exists() for name in _SAVED):
            found = datasets.load_from_disk(str(path))
        else:
            found = datasets.load_dataset(str(path))
    except Exception as error:  # datasets raises many types, also of other packages
        raise SourceError(f"datasets can't load it: {reason(error)}") from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def _rows(name: str, dataset: "datasets.Dataset", columns: tuple[str, str | None]) -> list[Item]:
    """List the images of a split of a dataset; a label that is missing is -1."""
    import datasets

    image, label = columns
    images = dataset.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    labels = [None] * len(dataset)
    if label:
        labels = dataset.select_columns([label]).with_format(None)[:][label]
    split = folders.SPLITS.get(name.lower(), re.sub(r"\W", "_", name))
    return [
        Item(
            f"row {i} of {name}",
            split,
            0 if label is None else -1 if number is None else int(number),
            functools.partial(_encoded, images, image, i),
        )
        for i, number in enumerate(labels)
    ]


def _encoded(images: "datasets.Dataset", column: str, index: int) -> bytes:
    """Return the encoded image of a row: its bytes, or those of the file that it names."""
    value: dict[str, Any] = images[index][column] or {}
    if value.get("bytes") is not None:
        return value["bytes"]
    if not value.get("path"):
        raise ValueError("it is empty")
    return read_file(pathlib.Path(value["path"]), "image_bytes")
