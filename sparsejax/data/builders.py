"""Open datasets by name; prepare them on disk the first time, or report what is missing.

Published image sets are tensorflow-datasets' own builders. Preparing them needs TensorFlow;
reading them, once prepared as array_record, doesn't.
"""

import contextlib
import functools
import importlib.util
import io
import logging
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import tensorflow_datasets as tfds
from absl import logging as absl_logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from sparsejax.data import publishers
from sparsejax.data.digits import Digits
from sparsejax.data.files import Files
from sparsejax.data.hugging_face import HuggingFace
from sparsejax.data.own_images import OwnImages
from sparsejax.data.sketch_builders import Kanjivg, QuickdrawStrokes, Vmnist, VmnistLike
from sparsejax.data.stamps import Stamp, stamp_splits
from sparsejax.errors import ConfigError, reason, require
from sparsejax.storage import require_writable

logger = logging.getLogger(__name__)

_FORMAT = "array_record"
PUBLISHED = {
    "celeb_a_hq": "celeb_a_hq/256",
    "imagenette": "imagenette/full-size-v2",
    "lsun_bedroom": "lsun/bedroom",
}
_SKETCH_BUILDERS = {
    builder.name: builder for builder in (QuickdrawStrokes, Kanjivg, Vmnist, VmnistLike)
}
SKETCHES = tuple(_SKETCH_BUILDERS)
_OWN = ("files", "hf")  # images of one's own
# Keys that only some sets have, and which.
_USERS = {"source": (*_OWN, *SKETCHES), "columns": ("hf",), "held_out": _OWN}
# Sets whose builder needs no source; `register_images` adds to them.
IMAGE_BUILDERS: dict[str, type[tfds.core.DatasetBuilder]] = {"digits": Digits}


def register_images(name: str, builder: type[tfds.core.DatasetBuilder]) -> None:
    """Register an image data set of your own, for `config.task.dataset`.

    Args:
      name: of the data set; registering it again from the same place replaces its builder.
      builder: class of a tfds builder, made as `builder(data_dir=folder)`; its features are
        `image` and, where images have classes, `label`. A new VERSION is prepared again.

    Raises:
      ValueError: another data set has the name.
    """
    other = IMAGE_BUILDERS.get(name)
    is_same = other is not None and (other.__module__, other.__qualname__) == (
        builder.__module__,
        builder.__qualname__,
    )
    if name in datasets() and not is_same:
        raise ValueError(f"data set {name!r} is registered already; accepted: another name")
    IMAGE_BUILDERS[name] = builder


def image_sets() -> tuple[str, ...]:
    """Return the names of image data sets."""
    return (*IMAGE_BUILDERS, *_OWN, *PUBLISHED)


def datasets() -> tuple[str, ...]:
    """Return the names of all data sets."""
    return (*image_sets(), *SKETCHES)


def full_name(settings: ConfigDict) -> str:
    """Return the builder's full name with config and version; see `open_builder`."""
    wanted = _wanted(settings)
    with _quiet(progress=False):
        return _create(wanted).info.full_name


def stamp(settings: ConfigDict) -> dict[str, Stamp]:
    """Return stamps of what a dataset is made from, by the config key of its path.

    Args:
      settings: `config.task`; see `open_builder`.

    Returns:
      Dictionary `{key: stamp}` (`sparsejax.data.stamps`) of `task.source`, or of `task.data_dir`
      for a published set; empty for sets that need no source.

    Raises:
      ConfigError: see `open_builder`.
    """
    wanted = _wanted(settings)
    with _quiet(progress=False):
        builder = _create(wanted)
    if settings.dataset in IMAGE_BUILDERS:
        return {}
    if settings.dataset in (*PUBLISHED, "hf") and not builder.is_prepared():
        builder = open_builder(settings)
    if settings.dataset in PUBLISHED:
        return {"task.data_dir": stamp_splits(builder.info.splits)}
    return {"task.source": builder.stamp()}


def open_builder(settings: ConfigDict) -> tfds.core.DatasetBuilder:
    """Return a dataset's builder, prepared as array_record.

    Process 0 prepares it while the others wait, so every process must call this. What images of
    one's own hold, and what of them is left out, is logged once.

    Args:
      settings: `config.task`: dataset, source, url, data_dir; words, for pen drawings; columns and
        held_out, for images of one's own. A source that the publisher offers is downloaded, if the
        config names none.

    Returns:
      tfds.core.DatasetBuilder.

    Raises:
      ConfigError: the dataset is unknown, its source can't be used, or it isn't prepared and
        can't be prepared here.
    """
    builder = _open(_wanted(settings), full_name(settings))
    if isinstance(builder, OwnImages) and jax.process_index() == 0:
        _say(builder.about())
    return builder


class _Wanted(NamedTuple):
    """The part of `config.task` that a builder follows from."""

    dataset: str
    source: str
    data_dir: str
    words: tuple[str, ...]
    columns: tuple[str, ...]
    held_out: float


def _wanted(settings: ConfigDict) -> _Wanted:
    """Return what `settings` ask for; a source that they don't name may be downloaded."""
    dataset = settings.dataset
    require(dataset in datasets(), "task.dataset", dataset, ", ".join(datasets()))
    for key, users in _USERS.items():
        value = settings[key]
        accepted = f"{type(value)()!r} with the dataset {dataset}; others with {', '.join(users)}"
        require(not value or dataset in users, f"task.{key}", value, accepted)
    wanted = _Wanted(*(settings[name] for name in _Wanted._fields))
    return wanted._replace(source=publishers.fetch(settings))


@functools.cache
def _say(lines: tuple[str, ...]) -> None:
    """Log what was read and what was left out, once per process."""
    read, *left_out = lines
    logger.info("%s", read)
    for line in left_out:
        logger.warning("%s", line)


@functools.cache
def _open(wanted: _Wanted, full_name: str) -> tfds.core.DatasetBuilder:
    """Prepare and open, once per content: `full_name` changes with the content of the source."""
    dataset = wanted.dataset
    with _quiet(progress=dataset != "digits" and sys.stderr.isatty()):
        builder = _create(wanted)
        if not builder.is_prepared():
            problem = _lacking(dataset, builder)
            if problem:
                raise ConfigError(problem)
            if jax.process_index() == 0:
                where = "the folder of data sets (config.task.data_dir or TFDS_DATA_DIR)"
                require_writable(builder.data_dir, where)
                _prepare(builder, lambda: _create(wanted))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"prepared {full_name}")
        builder = _create(wanted)
        if not builder.is_prepared():
            raise ConfigError(
                f"config.task.dataset is {dataset!r}, which process 0 prepared, but this process "
                f"doesn't find in {builder.data_dir}; accepted: a folder of data sets "
                "(config.task.data_dir or TFDS_DATA_DIR) on storage that all processes share, or "
                "the data set prepared on each machine"
            )
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if _FORMAT not in formats:
        raise ConfigError(
            f"config.task.dataset is {dataset!r}, which is prepared in {builder.data_dir} as "
            f"{', '.join(sorted(formats))} only; accepted: {_FORMAT}. Remove that folder, or set "
            "config.task.data_dir to another, and prepare it anew (which needs pip install "
            f"'sparsejax[images]'):\n  {_command(dataset, builder)}"
        )
    return builder


def _prepare(
    builder: tfds.core.DatasetBuilder, reopen: Callable[[], tfds.core.DatasetBuilder]
) -> None:
    """Prepare a dataset, unless another process that prepares the same one is done first."""
    try:
        builder.download_and_prepare(file_format=_FORMAT)
    except OSError:  # its finished folder can't take the name of one that exists by now
        if not reopen().is_prepared():
            raise


def _create(wanted: _Wanted) -> tfds.core.DatasetBuilder:
    dataset, data_dir = wanted.dataset, wanted.data_dir
    try:
        return _build(wanted)
    except ConfigError:
        raise
    except Exception as error:  # tensorflow-datasets raises whatever the damage causes
        folder = publishers.home(data_dir) / PUBLISHED.get(dataset, dataset).split("/")[0]
        if not folder.exists():
            raise
        raise ConfigError(
            f"config.task.dataset is {dataset!r}, whose files prepared in {folder} are damaged "
            f"({reason(error)}); accepted: whole ones: remove that folder to prepare it anew"
        ) from error


def _build(wanted: _Wanted) -> tfds.core.DatasetBuilder:
    """Return a builder; it reads what is prepared, if anything is."""
    dataset, source, folder = wanted.dataset, wanted.source, wanted.data_dir or None
    if dataset in SKETCHES:
        where = f"with the dataset {dataset}, the path of {_SKETCH_BUILDERS[dataset].ACCEPTED}"
        require(source, "task.source", source, where)
        return _SKETCH_BUILDERS[dataset](source, wanted.words, data_dir=folder)
    if dataset in IMAGE_BUILDERS:
        return IMAGE_BUILDERS[dataset](data_dir=folder)
    if dataset == "files":
        require(source, "task.source", source, f"the path of {Files.ACCEPTED}")
        return Files(source, wanted.held_out, data_dir=folder)
    if dataset == "hf":
        require(source, "task.source", source, HuggingFace.ACCEPTED)
        return HuggingFace(source, wanted.held_out, wanted.columns, data_dir=folder)
    return tfds.builder(PUBLISHED[dataset], data_dir=folder)


def lacking(settings: ConfigDict) -> str:
    """Describe what a dataset that isn't prepared can't be prepared without; empty if nothing is.

    Args:
      settings: `config.task`.

    Raises:
      ConfigError: see `open_builder`.
    """
    if settings.dataset not in PUBLISHED:
        return ""
    with _quiet(progress=False):
        builder = _create(_wanted(settings))
    return "" if builder.is_prepared() else _lacking(settings.dataset, builder)


def _lacking(dataset: str, builder: tfds.core.DatasetBuilder) -> str:
    """List what tensorflow-datasets lacks to prepare one of its datasets."""
    if dataset not in PUBLISHED:
        return ""
    missing = []
    if importlib.util.find_spec("tensorflow") is None:
        missing.append("TensorFlow: pip install 'sparsejax[images]'")
    # tensorflow-datasets reads LSUN's databases with it.
    if dataset == "lsun_bedroom" and importlib.util.find_spec("tensorflow_io") is None:
        missing.append("tensorflow-io: pip install 'tensorflow-datasets[lsun]'")
    if dataset == "celeb_a_hq":
        archive = pathlib.Path(builder.data_dir).parents[2] / "downloads/manual/data256x256.tar"
        if not archive.exists():
            missing.append(
                f"{archive}: the 30,000 images of 256x256 pixels as png, made as "
                "https://github.com/tkarras/progressive_growing_of_gans describes"
            )
    if not missing:
        return ""
    needs = "".join(f"\n  {line}" for line in missing)
    return (
        f"config.task.dataset is {dataset!r}, which isn't prepared in {builder.data_dir}. "
        f"tensorflow-datasets needs, to prepare it:{needs}\nThen start again, or prepare it "
        f"by\n  {_command(dataset, builder)}\nImages that you have as files can be used "
        "without any of this: config.task.dataset = 'files' and config.task.source."
    )


def _command(dataset: str, builder: tfds.core.DatasetBuilder) -> str:
    # tensorflow-datasets' own command, tfds build, would also need apache-beam.
    data_dir = pathlib.Path(builder.data_dir).parents[2]
    return (
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{PUBLISHED[dataset]}', data_dir='{data_dir}')"
        f".download_and_prepare(file_format='{_FORMAT}')\""
    )


@contextlib.contextmanager
def _quiet(progress: bool) -> Iterator[None]:
    """Suppress tensorflow-datasets' messages about TensorFlow and OpenCV, which aren't needed."""
    (tfds.enable_progress_bar if progress else tfds.disable_progress_bar)()
    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl_logging.set_verbosity(verbosity)
