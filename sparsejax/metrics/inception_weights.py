"""The published weights of FID's Inception: find or download, check the hash, convert.

torch-fidelity and pytorch-fid publish the same file, byte for byte, under two names. Neither
checks it; here, no file with another hash is read.
"""

import hashlib
import http.client
import importlib.util
import logging
import os
import pathlib
import shutil
import urllib.request
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from sparsejax import checksums
from sparsejax.atomic import replacing
from sparsejax.errors import ConfigError
from sparsejax.metrics.inception import parameter_shapes
from sparsejax.models.convert import leaf_from_torch, leaf_to_torch
from sparsejax.models.published import read_state_dict
from sparsejax.storage import cache_folder
from sparsejax.types import KeyPath, NumpyArray, Params, PathLike, Shape

VARIABLE = "SPARSEJAX_INCEPTION"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
URLS = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
)
_SUM = "crc32"  # in the metadata of the converted copy
_TIMEOUT = 60  # seconds without an answer

logger = logging.getLogger(__name__)


def load_inception(path: PathLike | None = None) -> Params:
    """Return the published weights, downloading the file (96 MB) if it isn't found.

    Looks for it at `path`, else at the path in the environment variable `SPARSEJAX_INCEPTION`,
    else in the folder `SPARSEJAX_CACHE` (default: ~/.cache/sparsejax). Reading it the first time
    requires PyTorch; a copy that doesn't is kept in that folder.

    Args:
      path: path of the `.pth` file, or None.

    Returns:
      `params` for `inception_features.extract`, numpy arrays. Put them on the device once with
      `jax.device_put` if they are used several times.

    Raises:
      ConfigError: there is no file and none could be downloaded, its hash differs, or PyTorch is
        needed but not installed. The message says what to do.
    """
    state_dict = read_weights(find_weights(path), SHA256)
    try:
        return inception_from_torch(state_dict)
    except ValueError as error:
        raise ConfigError(f"Inception weights: {error}") from error


def find_weights(
    path: PathLike | None = None, sha256: str = SHA256, urls: Sequence[str] = URLS
) -> pathlib.Path:
    """Return the path of a file of weights with the right hash; see `load_inception`.

    Args:
      path: path of the file, or None.
      sha256: hash that the file must have, hexadecimal.
      urls: where to download it, tried in order; their last parts are its names in the cache.

    Raises:
      ConfigError: see `load_inception`.
    """
    given = path or os.environ.get(VARIABLE)
    if given:
        given = pathlib.Path(given).expanduser()
        if not os.path.isfile(given):
            origin = "--inception-weights" if path else VARIABLE
            raise ConfigError(f"{origin} is {given}: no such file. {_advice(sha256, urls)}")
        return _checked(given, sha256)
    for url in urls:
        cached = cache_folder() / _name(url)
        if cached.is_file():
            return _checked(cached, sha256)
    return _download(sha256, urls)


def read_weights(path: PathLike, sha256: str) -> dict[str, NumpyArray]:
    """Return the tensors of a checked file, from the converted copy in the cache if there is one.

    Args:
      path: path of the file, or of one with the same content.
      sha256: its hash, by which the copy is found.

    Returns:
      `{name: array}`.

    Raises:
      ConfigError: the file can't be read, or the copy can't and PyTorch, which is needed to make it
        again, isn't installed.
    """
    copy = cache_folder() / f"inception-{sha256[:16]}.safetensors"
    has_torch = importlib.util.find_spec("torch") is not None
    try:
        if copy.is_file():
            try:
                return _read_copy(copy)
            except ValueError as error:
                if not has_torch:
                    raise
                logger.warning("%s; it is converted again", error)
        if not has_torch:
            raise ConfigError(
                f"reading {path} the first time needs PyTorch: pip install 'sparsejax[torch]'. "
                f"After that, {copy} is read instead"
            )
        state_dict = read_state_dict(path)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"Inception weights: {error}") from error
    copy.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(array) for name, array in state_dict.items()}
    with replacing(copy) as partial:
        save_file(arrays, partial, metadata={_SUM: _checksum(arrays)})
    return state_dict


def _read_copy(path: pathlib.Path) -> dict[str, NumpyArray]:
    """Read a converted copy; raise ValueError if it is damaged."""
    state_dict = read_state_dict(path)
    with safe_open(path, framework="numpy") as file:
        written = (file.metadata() or {}).get(_SUM)  # older versions wrote none
    if written not in (None, _checksum(state_dict)):
        raise ValueError(f"{path} is damaged: its checksum is not the one that was written")
    return state_dict


def _checksum(arrays: Mapping[str, NumpyArray]) -> str:
    """Return a checksum of all arrays: safetensors detects no flipped bits."""
    return str(checksums.of_json({k: checksums.of_array(array) for k, array in arrays.items()}))


def inception_from_torch(state_dict: Mapping[str, NumpyArray]) -> Params:
    """Convert the state dict of the FID Inception network.

    Args:
      state_dict: `{name: array}` in PyTorch's layout, with the names that torch-fidelity and
        pytorch-fid share. Entries `num_batches_tracked`, used only in training, are ignored.

    Returns:
      `params` for `metrics.inception_features.extract`: convolutions HWIO, dense [in, out].

    Raises:
      ValueError: tensors are missing, unknown or of another shape; names them.
    """
    arrays = {
        name: np.asarray(array)
        for name, array in state_dict.items()
        if not name.endswith(".num_batches_tracked")
    }
    leaves, treedef = jax.tree_util.tree_flatten_with_path(parameter_shapes())
    shapes = dict(_inception_entry(path, leaf.shape) for path, leaf in leaves)
    problems = {
        "missing": [name for name in shapes if name not in arrays],
        "unknown": [name for name in arrays if name not in shapes],
        "of another shape": [
            f"{name} {array.shape} for {shapes[name]}"
            for name, array in arrays.items()
            if array.shape != shapes.get(name, array.shape)
        ],
    }
    if any(problems.values()):
        listed = (
            f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for kind, names in problems.items()
            if names
        )
        raise ValueError(f"tensors aren't those of FID's Inception: {'; '.join(listed)}")
    values = [leaf_from_torch("", name.rpartition(".")[2], arrays[name])[1] for name in shapes]
    return jax.tree.unflatten(treedef, values)


def _checked(path: pathlib.Path, sha256: str) -> pathlib.Path:
    found = _digest(path)
    if found != sha256:
        raise ConfigError(
            f"{path} is not the published Inception: its sha256 is {found}, not {sha256}. It is "
            "damaged or another network, whose distances aren't FIDs; delete it or name another"
        )
    return path


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(sha256: str, urls: Sequence[str]) -> pathlib.Path:
    failures = []
    for url in urls:
        path = cache_folder() / _name(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        logger.info("downloading the Inception weights from %s", url)
        try:
            with replacing(path) as partial:
                _fetch(url, partial)
                found = _digest(partial)
                if found != sha256:
                    raise OSError(f"the downloaded file has the sha256 {found}, not {sha256}")
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{url}: {error}")
        else:
            return path
    raise ConfigError(
        f"the Inception weights could not be downloaded ({'; '.join(failures)}). "
        f"{_advice(sha256, urls)}"
    )


def _fetch(url: str, partial: pathlib.Path) -> None:
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer, partial.open("wb") as file:
        shutil.copyfileobj(answer, file)


def _advice(sha256: str, urls: Sequence[str]) -> str:
    return (
        f"Get {' or '.join(urls)} and put it into {cache_folder()} under that name, or name it "
        f"with --inception-weights or the environment variable {VARIABLE}; its sha256 must be "
        f"{sha256}"
    )


def _name(url: str) -> str:
    return url.rpartition("/")[2]


def _inception_entry(path: KeyPath, shape: Shape) -> tuple[str, Shape]:
    """Return PyTorch's name and shape of the parameter at `path` in the tree."""
    *modules, leaf = (entry.key for entry in path)
    kinds = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    # Broadcast zeros have the shape but take no memory.
    restored = leaf_to_torch("", leaf, np.broadcast_to(np.float32(0), shape))
    return ".".join([*modules, kinds.get(leaf, leaf)]), restored.shape
