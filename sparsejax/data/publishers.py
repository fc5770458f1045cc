"""Data that their publishers offer as files: addresses, licences, and where downloads are kept.

They are used where `config.task.source` names no others. Downloads are kept in the folder of data
sets, in `downloads/DATASET`.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import urllib.parse

import jax
import tensorflow_datasets as tfds
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from sparsejax.data import downloads, unpacking
from sparsejax.data.recorded import Download
from sparsejax.errors import ConfigError, require

# Data sets that are made from files; for others, `config.task.url` has no meaning.
SOURCED = ("files", "quickdraw_strokes", "kanjivg", "vmnist", "vmnist_like")
URLS = {
    "kanjivg": "https://github.com/KanjiVG/kanjivg/releases/download/r20240807/"
    "kanjivg-20240807-main.zip",
    "quickdraw_strokes": "https://storage.googleapis.com/quickdraw_dataset/full/simplified/"
    "{word}.ndjson",
}
WORDS = ("cat",)  # of Quick, Draw!, where `config.task.words` chooses none
_IMAGENETTE = "imagenette2-160.tgz"
_LICENCES = {
    "kanjivg": "CC BY-SA 3.0, (c) Ulrich Apel",
    "quickdraw_strokes": "CC BY 4.0, (c) Google",
    _IMAGENETTE: "photos of ImageNet, for non-commercial research and education",
}


def home(data_dir: str) -> pathlib.Path:
    """Return the folder of data sets: `data_dir`, or else `TFDS_DATA_DIR`, or tfds' default."""
    folder = data_dir or os.environ.get("TFDS_DATA_DIR") or tfds.core.constants.DATA_DIR
    return pathlib.Path(folder).expanduser()


def source(settings: ConfigDict) -> str:
    """Return the path of a dataset's source: that of the config, or where its download is kept.

    Args:
      settings: `config.task`: dataset, source, url, words, data_dir.

    Returns:
      Path, which need not exist yet; empty if the config names none and nobody publishes one.

    Raises:
      ConfigError: `task.url` or `task.words` can't be part of an address.
    """
    files = _files(settings)
    if not files:
        return settings.source
    if len(files) > 1:
        return str(_folder_of_words(files))
    path = files[0].path
    return str(unpacking.folder_of(path) if path.suffix == ".tgz" else path)


def fetch(settings: ConfigDict) -> str:
    """Return what `source` returns, after downloading what is missing.

    Process 0 downloads while the others wait, so every process must call this.

    Args:
      settings: `config.task`.

    Raises:
      ConfigError: see `source`, `downloads.ensure` and `unpacking.unpack`; or this process doesn't
        find what process 0 downloaded.
    """
    files, path = _files(settings), source(settings)
    if files:
        _fetch(files, path)
    return path


def missing(settings: ConfigDict) -> str:
    """Describe what `fetch` would download, and from where; empty if nothing is missing.

    Args:
      settings: `config.task`.

    Raises:
      ConfigError: see `source`.
    """
    files = _files(settings)
    if not files or os.path.exists(source(settings)):
        return ""
    file, names = files[0], ", ".join(file.path.name for file in files)
    return (
        f"{file.title}: {names}, to be downloaded from {file.url.rpartition('/')[0]} to "
        f"{file.path.parent}; licence: {file.licence}"
    )


@functools.cache
def _fetch(files: tuple[Download, ...], path: str) -> None:
    """Download and unpack, once per process."""
    if jax.process_index() == 0:
        is_archive = files[0].path.suffix == ".tgz"
        if not (is_archive and os.path.isdir(path)):  # then the archive itself isn't needed
            for file in files:
                downloads.ensure(file)
        if is_archive:
            unpacking.unpack(files[0].path)
        if len(files) > 1:
            _gather(files, pathlib.Path(path))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"downloaded {path}")
    if not os.path.exists(path):
        raise ConfigError(
            f"{path} was downloaded by process 0, but this process doesn't find it; accepted: a "
            "folder of data sets (config.task.data_dir or TFDS_DATA_DIR) on storage that all "
            "processes share, or a copy on each machine"
        )


def _files(settings: ConfigDict) -> tuple[Download, ...]:
    """Return the files that a dataset without a source in the config consists of."""
    dataset, url = settings.dataset, settings.url or URLS.get(settings.dataset, "")
    if settings.source or not url or dataset not in SOURCED:
        return ()
    require(_file_name(url), "task.url", url, "an address http://... or https://... of a file")
    words = set(settings.words or WORDS) if dataset == "quickdraw_strokes" else {""}
    require(len(words) == 1 or "{word}" in url, "task.url", url, "an address with {word} in it")
    folder, found = home(settings.data_dir) / "downloads" / dataset, []
    for word in sorted(words):
        ours = url.replace("{word}", urllib.parse.quote(word, safe=""))
        name = _file_name(ours)
        require(name, "task.words", settings.words, "words that can be names of files")
        licence = _LICENCES.get(dataset) or _LICENCES.get(name, "see its publisher")
        found.append(Download(dataset, ours, folder / name, licence, _published_sum(name)))
    return tuple(found)


def _file_name(url: str) -> str:
    """Return the name of the file at an address; empty if it is none."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:  # such as half an address of IPv6
        return ""
    name = urllib.parse.unquote(parts.path.rpartition("/")[2])
    is_address = parts.scheme in ("http", "https") and parts.netloc and url.isprintable()
    is_name = name.isprintable() and "/" not in name and name not in (".", "..")
    return name if is_address and is_name and " " not in url and len(name) < 200 else ""


@functools.cache
def _published_sum(name: str) -> str:
    """Return the SHA-256 that tensorflow-datasets has for a file of that name; empty if none."""
    if name != _IMAGENETTE:
        return ""
    known = tfds.builder_cls("imagenette").url_infos
    return next((i.checksum for url, i in known.items() if url.endswith(f"/{name}")), "")


def _folder_of_words(files: tuple[Download, ...]) -> pathlib.Path:
    """Return the folder that holds the files of several words, and no others."""
    names = "\0".join(file.path.name for file in files)
    name = f"{len(files)}-words-{hashlib.sha256(names.encode()).hexdigest()[:8]}"
    return files[0].path.with_name(name)


def _gather(files: tuple[Download, ...], folder: pathlib.Path) -> None:
    """Link files into a folder."""
    folder.mkdir(exist_ok=True)
    for file in files:
        if not (folder / file.path.name).exists():
            with contextlib.suppress(FileExistsError):  # another process was faster
                (folder / file.path.name).symlink_to(pathlib.Path("..", file.path.name))
