"""Decode, crop and resize image files."""

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from sparsejax.limits import check_limit, limits, too_large
from sparsejax.types import Pictures

METHOD = "centre crop, bicubic"
_ORIENTATION = 0x0112  # in EXIF
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Only the orientation in EXIF matters, so Pillow's warnings about the rest are noise.
_EXIF_WARNINGS = "Corrupt EXIF|Metadata Warning|Tag data larger|Truncated File Read"
# Pillow knows more formats; to read PostScript it would run another program.
_FORMATS = [
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "TIFF",
    "BMP",
    "DIB",
    "PPM",
    "TGA",
    "QOI",
    "AVIF",
    "JPEG2000",
]
_free = threading.Condition()
_held = 0  # pixels of the images that are being decoded
warnings.filterwarnings("ignore", _EXIF_WARNINGS, UserWarning, r"PIL\.TiffImagePlugin")


def decode(encoded: bytes, size: int, channels: int) -> Pictures:
    """Decode an image and crop and resize it to size x size pixels, as Latent Diffusion does.

    Centre crop to the shorter side, then Pillow's bicubic resize (CompVis/latent-diffusion,
    ldm/data/lsun.py); an image of the right size keeps its pixels. Unlike there, EXIF rotation is
    applied, and what is transparent lies on white.

    Args:
      encoded: bytes of a JPEG, PNG or another file of `_FORMATS`; of animations and multi-page
        files, the first image is used.
      size: side length in pixels.
      channels: 1 (greyscale) or 3 (RGB).

    Returns:
      [size, size, channels] uint8.

    Raises:
      TooLargeError: the file has more bytes or pixels than the limits (`sparsejax.limits`).
      Exception: anything that Pillow raises for a broken file; ValueError: pixels of unknown range.
    """
    file = _open(encoded)
    with _room(file.width * file.height):
        image = _square(file)
        del file  # its pixels
        image = _to_mode(image, "L" if channels == 1 else "RGB")
        image = image.resize((size, size), resample=Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, channels)


@contextlib.contextmanager
def _room(pixels: int) -> Iterator[None]:
    """Wait until no more pixels than the limit are decoded at once, over all threads."""
    global _held
    most = limits().image_pixels
    with _free:
        _free.wait_for(lambda: not _held or _held + pixels <= most)
        _held += pixels
    try:
        yield
    finally:
        with _free:
            _held -= pixels
            _free.notify_all()


def _square(file: ImageFile.ImageFile) -> Image.Image:
    """Load an image, close its file, and crop it to the shorter side."""
    with file:
        image = _upright(file)
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image if width == height else image.crop((left, top, left + side, top + side))


def _open(encoded: bytes) -> ImageFile.ImageFile:
    if not encoded:
        raise ValueError("it is empty")
    check_limit("image_bytes", len(encoded), "bytes")
    try:
        file = Image.open(io.BytesIO(encoded), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise too_large("image_pixels", "pixels") from error
    except UnidentifiedImageError as error:
        raise OSError("it isn't an image that Pillow can identify") from error
    check_limit("image_pixels", file.width * file.height, "pixels")
    return file


def _upright(image: ImageFile.ImageFile) -> Image.Image:
    """Load an image and apply its EXIF orientation, 1 to 8; other values are ignored.

    `ImageOps.exif_transpose` would rewrite the rest of EXIF, which fails if it is malformed.
    """
    if image.format == "TIFF":
        return _upright_tiff(image)
    image.load()  # a PNG's EXIF may come after its pixels
    orientation = _orientation(image)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _upright_tiff(image: ImageFile.ImageFile) -> Image.Image:
    """Load a TIFF, which Pillow rotates by itself, without tags that could make it fail."""
    orientation, exif = _orientation(image), image.getexif()
    for tag in list(exif):
        del exif[tag]
    if orientation in _UPRIGHT:
        exif[_ORIENTATION] = orientation
    image.info.pop("xmp", None)
    image.load()
    return image


def _orientation(image: Image.Image) -> int | None:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # Pillow raises many types for broken EXIF.
        return None
    return orientation if isinstance(orientation, int) else None  # not text, not a fraction


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert any Pillow image to 8-bit greyscale or RGB, on white where it is transparent."""
    if image.mode == "F":
        raise ValueError("its pixels are floats, whose range isn't known")
    if image.mode.startswith("I"):
        # 16 bits: keep the high byte, as Pillow does for 16-bit RGB; `convert` would clip.
        high = np.asarray(image) >> 8
        if np.min(high) < 0 or np.max(high) > 255:
            raise ValueError("its pixels go beyond 16 bits")
        image = Image.fromarray(high.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def encode(pixels: Pictures) -> bytes:
    """Encode [height, width] or [height, width, 1 or 3] uint8 as PNG bytes, losslessly.

    Uses Pillow: tensorflow-datasets would need TensorFlow to encode an array.
    """
    buffer = io.BytesIO()
    pixels = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()
