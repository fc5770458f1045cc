"""Load config files, `path.py:argument` or `name:argument`, and apply overrides.

Errors are one line that names the file or the key.
"""

import difflib
import importlib.machinery
import os
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from sparsejax import schema, values
from sparsejax.configuration import complete, set_key
from sparsejax.errors import ConfigError, nearest, require
from sparsejax.families.registry import FAMILIES, model_keys
from sparsejax.plugins import import_modules
from sparsejax.schema import Key
from sparsejax.types import Value

# The configs of the project: a wheel holds them in the package, a checkout beside it.
_PACKAGE = pathlib.Path(__file__).resolve().parent
_CONFIGS = [_PACKAGE / "configs", _PACKAGE.parent / "configs"]


def load_config(file: str, overrides: Sequence[tuple[str, str | None]] = ()) -> ConfigDict:
    """Load a config file and apply overrides.

    Args:
      file: path of a Python file with a function `get_config`, or the name of one of the
        project's configs, such as `digits`; what follows a colon is its argument.
      overrides: pairs `(key, text)`; `values.parse` converts texts to the key's type.

    Returns:
      ConfigDict with every key of `schema.KEYS`.

    Raises:
      ConfigError: the file doesn't exist or raises an error, or a key or value is invalid.
    """
    imports = next(key for key in schema.KEYS if key.path == "imports")
    for path, text in overrides:
        if path == "imports":  # before the file, whose argument may name what they register
            import_modules(_parse(imports, text))
    path, colon, argument = file.partition(":")
    path = _find(path)
    get_config = _run_file(path)
    config = _call(path, lambda: get_config(argument) if colon else get_config(), file)
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise ConfigError(f"config file {path}: get_config returns {kind}; accepted: a ConfigDict")
    try:
        config = complete(config.copy_and_resolve_references().to_dict())
    except ConfigError as error:
        raise ConfigError(f"config file {path}: {error}") from error
    import_modules(config.imports)
    return _override(config, overrides)


def _find(path: str) -> str:
    """Return the path of a config file, given that or the name of one of the project's."""
    if os.path.isfile(path):
        return path
    folder = next((folder for folder in _CONFIGS if folder.is_dir()), _CONFIGS[0])
    names = [file.stem for file in sorted(folder.glob("*.py"))]
    if path in names:
        return str(folder / f"{path}.py")
    problem = "no file" if path and os.path.exists(path) else "no such file"
    accepted = f"accepted: a config file, or one of {', '.join(names)}"
    if names and re.fullmatch(r"\w+", path):
        there = f"nearest: {nearest(path, names)}"
    else:
        folder = pathlib.Path(path) if os.path.isdir(path) else pathlib.Path(path).parent
        known = [str(p) for p in sorted(folder.glob("*.py"))] if os.path.isdir(folder) else []
        near = difflib.get_close_matches(path, known, n=1, cutoff=0)
        there = f"nearest: {near[0]}" if near else f"there is no .py file in {folder}"
    raise ConfigError(f"--config is {path!r}: {problem}; {accepted}; {there}")


def _run_file(path: str) -> Callable[..., Value]:
    """Return the `get_config` of a Python file, which may import those beside it.

    `from . import other` works wherever the files are: their folder is a package for them.
    """
    file = pathlib.Path(path)
    folder = str(file.resolve().parent)
    package = types.ModuleType(
        f"configs in {folder}".replace(".", "%2e")
    )  # a dot would name a parent
    package.__path__ = [folder]
    package = sys.modules.setdefault(package.__name__, package)
    spec = importlib.machinery.ModuleSpec(f"{package.__name__}.{file.stem}", None)
    names: dict[str, Value] = {"__name__": file.stem, "__file__": path, "__spec__": spec}
    _call(path, lambda: exec(compile(file.read_bytes(), path, "exec"), names), path)
    if not callable(names.get("get_config")):
        raise ConfigError(f"config file {path} has no function get_config")
    return names["get_config"]


def _call(path: str, function: Callable[[], Value], named: str) -> Value:
    """Call code of a config file; any exception becomes a one-line ConfigError."""
    try:
        return function()
    except ConfigError as error:
        raise ConfigError(f"--config {named}: {error}") from error
    except (Exception, SystemExit) as error:
        text = str(error)
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == path]
        if isinstance(error, SyntaxError) and error.filename == path:
            text, lines = error.msg, [error.lineno]
        where = f" in line {lines[-1]}" if lines else ""
        kind = type(error).__name__
        raise ConfigError(f"--config {named} raises {kind}{where}: {text}") from error


def _override(config: ConfigDict, overrides: Sequence[tuple[str, str | None]]) -> ConfigDict:
    """Set keys; those of networks last, since other keys choose the network."""
    fixed = schema.BY_PATH
    overrides = [(schema.RENAMED.get(path, path), text) for path, text in overrides]
    sections = tuple(f"{section}." for section in schema.NETWORK_SECTIONS)
    ours = [pair for pair in overrides if not pair[0].startswith(sections)]
    known = {**{key.path: key for key in model_keys(config)}, **fixed}
    for path, text in ours:
        if path not in fixed:
            values.require_key(path, text, known)
        _set_text(config, known[path], text)
    networks = {key.path: key for key in model_keys(config)}
    for path, text in overrides:
        section = next((s for s in sections if path.startswith(s)), None)
        if section is None:
            continue
        arguments = [p for p in networks if p.startswith(section)]
        if not arguments:
            _name_network(config, section)
        names = ", ".join(p.removeprefix(section) for p in arguments)
        values.require_key(path, text, arguments, f"config.{section}* with {names}")
        _set_text(config, networks[path], text)
    return config


def _name_network(config: ConfigDict, section: str) -> None:
    """Raise ConfigError: arguments were given for an unknown network."""
    if section == "model.":
        name = config.task.name
        require(name in FAMILIES, "task.name", name, ", ".join(FAMILIES))
        require(False, "task.kind", config.task.kind, ", ".join(FAMILIES[name].networks))
    require(False, "first_stage.kind", config.first_stage.kind, "vq, kl")


def _set_text(config: ConfigDict, key: Key, text: str | None) -> None:
    value = _parse(key, text)
    require(values.is_accepted(key, value), key.path, value, values.describe_accepted(key))
    set_key(config, key.path, value)


def _parse(key: Key, text: str | None) -> Value:
    """Return the value of a key that a text stands for; it has the key's type."""
    accepted = values.describe_accepted(key)
    if text is None:
        flag = values.without_none(key.type) is bool
        require(flag, key.path, "", f"a value: --config.{key.path}=VALUE, {accepted}")
        text = "True"
    try:
        value = values.parse(key.type, text)
    except ValueError:
        require(False, key.path, text, accepted)
    return values.typed(key, value)
