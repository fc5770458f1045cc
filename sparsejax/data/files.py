"""Your own images from files: a folder of images, or an npz."""

import pathlib
import re
from types import ModuleType

from sparsejax.data import archives, folders
from sparsejax.data.items import Item, SourceError
from sparsejax.data.own_images import OwnImages
from sparsejax.data.stamps import Stamp, stamp_file, stamp_folder
from sparsejax.types import Value

ACCEPTED = (
    f"a folder of images ({', '.join(e[1:] for e in folders.EXTENSIONS)}), or an npz with "
    "images, or with jpeg and offsets"
)


class Files(OwnImages):
    """tfds builder of a folder or an npz; see `OwnImages`.

    `sparsejax.data.folders` and `sparsejax.data.archives` document how splits and labels are
    found.
    """

    ACCEPTED = ACCEPTED

    def __init__(self, source: str, held_out: float = 0.0, **kwargs: Value) -> None:
        """Inspect the source; see `OwnImages`. `source` is the path of a folder or an npz."""
        self.path = pathlib.Path(source).expanduser().absolute()
        super().__init__(source, held_out, **kwargs)

    def stamp(self) -> Stamp:
        """Return the stamp of the source (`sparsejax.data.stamps`)."""
        if self.path.is_dir():
            return stamp_folder(self.path, folders.images(self.path))
        return stamp_file(self.path)

    def _kind(self) -> ModuleType:
        if not self.path.exists():
            raise SourceError("it doesn't exist")
        return folders if self.path.is_dir() else archives

    def _channels(self) -> int:
        return archives.channels(self.path) if self._kind() is archives else 3

    def _digest(self) -> str:
        return self._kind().digest(self.path)

    def _config_name(self) -> str:
        return re.sub(r"[^A-Za-z0-9_.-]", "_", short_name(self.source))[:50]

    def _items(self) -> list[Item]:
        return self._kind().items(self.path)

    def _class_names(self) -> tuple[str, ...]:
        return folders.class_names(self.path) if self.path.is_dir() else ()

    def _ignored(self) -> str:
        return folders.left_out(self.path) if self.path.is_dir() else ""


def short_name(source: str) -> str:
    """Return the name of a folder, or of an npz without its suffix."""
    path = pathlib.Path(source).expanduser().absolute()
    return path.stem if path.suffix.lower() == ".npz" else path.name
