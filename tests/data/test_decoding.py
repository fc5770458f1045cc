import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sparsejax.data.decoding import decode, encode
from tests.data.sets import encoded, pixels

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def as_rgb(grey):
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    size=st.integers(1, 24),
    seed=st.integers(0, 9),
)
def test_decoding_crops_and_resizes_as_latent_diffusion_does(height, width, size, seed):
    """Its steps: crop the array to the shorter side, about the centre, then resize by Pillow."""
    image = pixels(seed, height, width)
    side = min(height, width)
    rows = slice((height - side) // 2, (height + side) // 2)
    columns = slice((width - side) // 2, (width + side) // 2)
    cropped = Image.fromarray(image[rows, columns])
    expected = np.asarray(cropped.resize((size, size), Image.BICUBIC))
    np.testing.assert_array_equal(decode(encoded(image), size, 3), expected)


def test_an_image_of_the_right_size_keeps_its_pixels():
    image = pixels(0, 16, 16)
    np.testing.assert_array_equal(decode(encoded(image), 16, 3), image)
    np.testing.assert_array_equal(decode(encode(image), 16, 3), image)
    np.testing.assert_array_equal(decode(encode(image[..., :1]), 16, 1), image[..., :1])
    np.testing.assert_array_equal(decode(encode(image[..., 0]), 16, 1), image[..., :1])


def test_greyscale_palette_16_bit_and_transparent_images_become_rgb():
    """A ramp of greys, whose RGB is three times the same, however it is stored."""
    palette = Image.fromarray(RAMP).convert("P")
    transparent = np.dstack([as_rgb(RAMP), RAMP])
    for stored in (
        encoded(RAMP),
        encoded(palette),
        encoded(palette, transparency=bytes(range(256))),
        encoded(RAMP.astype(np.uint16) * 256 + 255 - RAMP),
        encoded(transparent),
        encoded(Image.fromarray(RAMP).convert("LA")),
    ):
        np.testing.assert_array_equal(decode(stored, 16, 3), as_rgb(RAMP))
        np.testing.assert_array_equal(decode(stored, 16, 1), RAMP[..., None])
    bits = Image.fromarray(RAMP > 127)
    np.testing.assert_array_equal(decode(encoded(bits), 16, 3), as_rgb((RAMP > 127) * 255))


def test_cmyk_jpegs_become_rgb():
    """Without black, red is 255 less cyan, and so on."""
    colour = (200, 100, 50)
    cmyk = Image.new("CMYK", (16, 16), (*(255 - c for c in colour), 0))
    decoded = decode(encoded(cmyk, "jpeg", quality=100), 16, 3)
    np.testing.assert_allclose(decoded, np.broadcast_to(colour, decoded.shape), atol=2)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (2, lambda stored: stored[:, ::-1]),
        (3, lambda stored: stored[::-1, ::-1]),
        (6, lambda stored: np.rot90(stored, -1)),
        (8, lambda stored: np.rot90(stored, 1)),
    ],
)
def test_exif_rotated_images_are_set_upright(orientation, upright):
    stored, exif = pixels(0, 8, 8), Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode(encoded(stored, exif=exif), 8, 3), upright(stored))


@pytest.mark.parametrize("cut", [0.02, 0.5, 0.9])
def test_a_truncated_image_raises(cut):
    whole = encoded(pixels(0, 64, 64), "jpeg")
    with pytest.raises(OSError, match="(?i)truncated|identify"):
        decode(whole[: int(cut * len(whole))], 8, 3)
