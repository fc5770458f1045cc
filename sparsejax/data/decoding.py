"""From the bytes of an image file to the pixels that a network sees: decode, crop, resize."""

import io

import numpy as np
from PIL import Image, ImageOps

METHOD = "centre crop, bicubic"


def decode(encoded, size, channels):
    """Decode an image and bring it to size x size pixels as Latent Diffusion does.

    Centre crop to the shorter side, then Pillow's bicubic resize (CompVis/latent-diffusion,
    ldm/data/lsun.py); an image that has the size already keeps its pixels. Unlike there, EXIF
    rotation is applied.

    Args:
      encoded: bytes of a JPEG, PNG or any other file that Pillow reads.
      size: pixels of a side.
      channels: 1 (greyscale) or 3 (RGB).

    Returns:
      [size, size, channels] uint8.

    Raises:
      Exception: whatever Pillow raises on a broken file.
    """
    with Image.open(io.BytesIO(encoded)) as file:
        image = _to_mode(ImageOps.exif_transpose(file), "L" if channels == 1 else "RGB")
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    image = image.resize((size, size), resample=Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, channels)


def _to_mode(image, mode):
    """Convert any Pillow image to 8 bits of greyscale or RGB; transparency is dropped."""
    if image.mode.startswith("I"):
        # 16 bits: the high byte, as Pillow reads 16-bit RGB; `convert` would clip.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P":
        # By way of the palette's own transparency, about which Pillow warns otherwise.
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def encode(pixels):
    """Encode [height, width] or [height, width, 1 or 3] uint8 as PNG bytes, lossless.

    By Pillow: tensorflow-datasets would need TensorFlow to encode an array.
    """
    buffer = io.BytesIO()
    pixels = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()
