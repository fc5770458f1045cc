"""Model repositories: the folders that `export --hub` writes, here or on the Hugging Face Hub."""

import logging
import os
import pathlib
import re
from types import ModuleType

from sparsejax import __version__
from sparsejax.errors import ConfigError, reason
from sparsejax.types import PathLike

SCHEME = "hf://"
MODEL_FILE = "model.safetensors"  # the sparse file; nothing else in a repository is read

_ACCEPTED = f"{SCHEME}OWNER/NAME, or {SCHEME}OWNER/NAME@REVISION with a branch, tag or commit"


def sparse_file_of(path: PathLike) -> pathlib.Path:
    """Return the sparse file of a model repository.

    Args:
      path: folder that holds model.safetensors and no checkpoints; `hf://OWNER/NAME[@REVISION]`,
        whose file is downloaded to the Hub's own cache, once; or any other path.

    Returns:
      Path of the sparse file, which may not be a valid one; of anything else, the path itself.

    Raises:
      ConfigError: the package huggingface_hub, the network, the repository, the revision or the
        file is missing; says which.
    """
    text = os.fspath(path)
    if text.startswith(SCHEME):
        return _download(text)
    path = pathlib.Path(text)
    is_repository = os.path.isfile(path / MODEL_FILE) and not os.path.exists(path / "checkpoints")
    return path / MODEL_FILE if is_repository else path


def _download(uri: str) -> pathlib.Path:
    found = re.fullmatch(rf"{SCHEME}([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", uri, re.ASCII)
    if not found:
        raise ConfigError(f"{uri!r} names no model repository; accepted: {_ACCEPTED}")
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError as error:
        raise ConfigError(
            f"{uri} needs the package huggingface_hub: pip install 'sparsejax[hub]'"
        ) from error
    logging.getLogger("huggingface_hub").propagate = False  # it prints its warnings itself
    try:
        file = hf_hub_download(
            found[1],
            MODEL_FILE,
            revision=found[2],
            library_name="sparsejax",
            library_version=__version__,
        )
    except Exception as error:  # also those of the network's own libraries
        raise ConfigError(f"{uri}: {_problem(error, errors)}") from error
    return pathlib.Path(file)


def _problem(error: Exception, errors: ModuleType) -> str:
    """Say what an error of huggingface_hub means; of several kinds that fit, the first one."""
    kinds = {
        errors.GatedRepoError: "its page has to grant access first; then run `hf auth login`",
        errors.RepositoryNotFoundError: "no such model repository, or a private one, which needs "
        "`hf auth login`",
        errors.RevisionNotFoundError: "no such revision; accepted: a branch, tag or commit",
        errors.LocalEntryNotFoundError: "the Hub can't be reached, and the file hasn't been "
        "downloaded before",
        errors.EntryNotFoundError: f"it holds no {MODEL_FILE}; accepted: what "
        "`python -m sparsejax export --hub` wrote",
    }
    return next((text for kind, text in kinds.items() if isinstance(error, kind)), reason(error))
