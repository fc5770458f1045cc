"""Import the modules in `config.imports`, which register methods of your own."""

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator

from sparsejax.errors import ConfigError


def import_modules(names: Iterable[str]) -> None:
    """Import modules, also from the current folder; those imported already are left as they are.

    Args:
      names: dotted module names, such as `my_package.my_method`.

    Raises:
      ConfigError: there is no such module, or it raises an error.
    """
    for name in names:
        try:
            with _current_folder_on_path():
                importlib.import_module(name)
        except (Exception, SystemExit) as error:
            raise ConfigError(f"config.imports names {name!r}: {_problem(name, error)}") from error


@contextlib.contextmanager
def _current_folder_on_path() -> Iterator[None]:
    folder = os.getcwd()
    if folder in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _problem(name: str, error: BaseException) -> str:
    """Say in a line why a module can't be imported, and what could be."""
    if not all(part.isidentifier() for part in name.split(".")) or name.endswith(".py"):
        return "not the name of a module; accepted: names such as my_package.my_method"
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and f"{name}.".startswith(f"{missing}."):
        return f"there is no module {missing}; accepted: modules in {os.getcwd()}, or installed"
    here = (__file__, contextlib.__file__, importlib.__file__)
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if f.filename not in here and "<frozen" not in f.filename]
    where = f" in line {outside[0].lineno} of {outside[0].filename}" if outside else ""
    text = " ".join(str(error).split())
    return f"importing it raises {type(error).__name__}{where}: {text}"
