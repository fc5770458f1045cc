"""Read images from a folder: list its files, splits and labels, and hash its content."""

import functools
import pathlib
from collections.abc import Sequence

from PIL import features

from sparsejax.data import listing
from sparsejax.data.items import Item, SourceError
from sparsejax.limits import read_file

EXTENSIONS: tuple[str, ...] = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".apng",
    ".webp",
    ".bmp",
    ".dib",
    ".gif",
)
EXTENSIONS += (".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".qoi")
# Optional in builds of Pillow.
EXTENSIONS += (".avif",) if features.check("avif") else ()
EXTENSIONS += (".jp2", ".j2k") if features.check("jpg_2000") else ()
SPLITS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}


def digest(folder: pathlib.Path) -> str:
    """Hash the names, sizes and modification times of a folder's images without opening them.

    Args:
      folder: pathlib.Path.

    Returns:
      Hexadecimal string.

    Raises:
      SourceError: the folder contains no image.
    """
    return listing.digest(folder, images(folder))


def items(folder: pathlib.Path) -> list[Item]:
    """List the images of a folder, sorted by name.

    Subfolders named train, validation, val, valid or test are splits, and then every image must be
    in one of them; otherwise all images are `train`. If all images are in subfolders (of their
    split), those are the classes, sorted by name; otherwise every label is 0.

    Args:
      folder: pathlib.Path.

    Returns:
      List of Items.

    Raises:
      SourceError: there is no image, or some images are outside the folders of splits.
    """
    paths = images(folder)
    splits, places = _splits(folder, paths)
    classes = {name: label for label, name in enumerate(_classes(places))}
    labels = [classes.get(parts[0], 0) for parts in places]
    return [
        Item(
            str(path.relative_to(folder)),
            split,
            label,
            functools.partial(read_file, path, "image_bytes"),
        )
        for path, split, label in zip(paths, splits, labels, strict=True)
    ]


def class_names(folder: pathlib.Path) -> tuple[str, ...]:
    """Return the names of a folder's classes, in the order of their labels; see `items`.

    Args:
      folder: pathlib.Path.

    Returns:
      Names of subfolders; () if images lie outside of subfolders.
    """
    return _classes(_splits(folder, images(folder))[1])


def images(folder: pathlib.Path) -> list[pathlib.Path]:
    """List the images of a folder, sorted; hidden files and links to folders are ignored.

    Args:
      folder: pathlib.Path.

    Raises:
      SourceError: there is none, or one is a broken link.
    """
    found = listing.visible(folder)
    paths = [path for path in found if _is_image(path)]
    for path in paths:
        if not path.exists():
            raise SourceError(f"{path.relative_to(folder)} is a link that leads nowhere")
    if not paths:
        raise SourceError(": ".join(filter(None, ["it holds no image", left_out(folder)])))
    return paths


def left_out(folder: pathlib.Path) -> str:
    """Describe the files in a folder without the suffix of an image; see `listing.left_out`."""
    others = [path for path in listing.visible(folder) if not _is_image(path)]
    return listing.left_out(others, folder)


def _is_image(path: pathlib.Path) -> bool:
    if path.suffix.lower() not in EXTENSIONS:
        return False
    return path.is_file() or (path.is_symlink() and not path.exists())


def _splits(
    folder: pathlib.Path, paths: Sequence[pathlib.Path]
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the split of each image, and its place below that split's folder."""
    places = [path.relative_to(folder).parts for path in paths]
    if not any(_is_in_split(parts) for parts in places):
        return ["train"] * len(paths), places
    for path, parts in zip(paths, places, strict=True):
        if not _is_in_split(parts):
            raise SourceError(f"{path} lies beside the folders {', '.join(SPLITS)}")
    return [SPLITS[parts[0].lower()] for parts in places], [parts[1:] for parts in places]


def _is_in_split(parts: tuple[str, ...]) -> bool:
    return len(parts) > 1 and parts[0].lower() in SPLITS


def _classes(places: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    if any(len(parts) == 1 for parts in places):
        return ()
    return tuple(sorted({parts[0] for parts in places}))
