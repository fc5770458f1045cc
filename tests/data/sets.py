"""Settings, image files and places of real data that the tests of data share."""

import io
import pathlib

import ml_collections
import numpy as np
from PIL import Image

# Real drawings and pictures; the README there says from where.
EXCERPTS = pathlib.Path(__file__).resolve().parent / "excerpts"


def task(data_dir, **changes):
    """The data part of `config.task`."""
    defaults = {
        "dataset": "files",
        "source": "",
        "url": "",
        "image_size": 8,
        "padding": 0,
        "channels": None,
        "columns": (),
        "held_out": 0.0,
        "split": "train",
        "reference_split": "validation",
        "flip": False,
        "words": (),
        "data_dir": str(data_dir),
    }
    return ml_collections.FrozenConfigDict(
        defaults | {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in changes.items()}
    )


def pixels(seed, height=8, width=8, channels=3):
    """Random pixels, uint8."""
    return np.random.default_rng(seed).integers(256, size=(height, width, channels), dtype=np.uint8)


def encoded(image, file_format="png", **options):
    """The bytes of an image file of pixels, or of a Pillow image."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def write(folder, **files):
    """Write images into a folder: `write(folder, **{"a/b.png": pixels(0)})`."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else encoded(content))
    return folder
