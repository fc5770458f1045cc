import struct
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


def test_greyscale_palette_16_bit_and_opaque_images_become_rgb():
    """A ramp of greys, whose RGB is three times the same, however it is stored."""
    palette = Image.fromarray(RAMP).convert("P")
    for stored in (
        encoded(RAMP),
        encoded(palette),
        encoded(palette, transparency=bytes(256 * [255])),
        encoded(RAMP.astype(np.uint16) * 256 + 255 - RAMP),
        encoded(np.dstack([as_rgb(RAMP), np.full_like(RAMP, 255)])),
        encoded(Image.fromarray(RAMP).convert("LA")),
    ):
        np.testing.assert_array_equal(decode(stored, 16, 3), as_rgb(RAMP))
        np.testing.assert_array_equal(decode(stored, 16, 1), RAMP[..., None])
    bits = Image.fromarray(RAMP > 127)
    np.testing.assert_array_equal(decode(encoded(bits), 16, 3), as_rgb((RAMP > 127) * 255))


def test_transparent_images_lie_on_white():
    """Alpha x + (1 - alpha) 255, whatever colour hides behind what is transparent."""
    alpha, hidden = RAMP[::-1], pixels(0, 16, 16)
    expected = (hidden * (alpha[..., None] / 255) + 255 - alpha[..., None]).round()
    for file_format, options in (("png", {}), ("webp", {"lossless": True, "exact": True})):
        stored = encoded(np.dstack([hidden, alpha]), file_format, **options)
        np.testing.assert_allclose(decode(stored, 16, 3), expected, atol=1)
    grey = Image.merge("LA", [Image.fromarray(RAMP), Image.fromarray(alpha)])
    expected = RAMP * (alpha / 255) + 255 - alpha
    np.testing.assert_allclose(decode(encoded(grey), 16, 1)[..., 0], expected, atol=1)
    palette = Image.fromarray(RAMP).convert("P")
    stored = encoded(palette, transparency=bytes(range(255, -1, -1)))
    expected = RAMP * ((255.0 - RAMP) / 255) + RAMP
    np.testing.assert_allclose(decode(stored, 16, 3), as_rgb(expected), atol=1)
    one_colour = encoded(hidden, transparency=tuple(int(c) for c in hidden[3, 4]))
    found = decode(one_colour, 16, 3)
    assert (found[3, 4] == 255).all()
    assert (found != hidden).any(axis=2).sum() == 1


def test_the_first_picture_of_a_phones_file_of_several_is_read():
    """MPO: JPEGs one after another, as phones write them for depth and gain maps."""
    first, second = (Image.fromarray(pixels(seed, 16, 16)) for seed in (0, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = encoded(first, "mpo", save_all=True, append_images=[second], exif=exif)
    alone = encoded(first, "jpeg", exif=exif)
    assert stored != alone
    np.testing.assert_array_equal(decode(stored, 8, 3), decode(alone, 8, 3))


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
        (4, lambda stored: stored[::-1]),
        (5, lambda stored: stored.transpose(1, 0, 2)),
        (7, lambda stored: stored[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda stored: np.rot90(stored, 1)),
    ],
)
def test_exif_rotated_images_are_set_upright(orientation, upright):
    stored, exif = pixels(0, 8, 8), Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode(encoded(stored, exif=exif), 8, 3), upright(stored))


def exif(*entries):
    """An EXIF block of entries (tag, type, count, bytes), little-endian, in this order."""
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 12: 8}
    head, behind = b"II*\0" + struct.pack("<IH", 8, len(entries)), b""
    for tag, kind, count, value in entries:
        value = value.ljust(max(4, sizes[kind] * count), b"\0")
        if len(value) > 4:
            behind, value = behind + value, struct.pack("<I", 14 + 12 * len(entries) + len(behind))
        head += struct.pack("<HHI", tag, kind, count) + value
    return b"Exif\0\0" + head + bytes(4) + behind


TURNED = (0x0112, 3, 1, struct.pack("<H", 6))
ODD = {
    "width as a fraction": (0x0100, 5, 1, struct.pack("<II", 12, 1)),
    "width as text": (0x0100, 2, 3, b"12"),
    "height of no value": (0x0101, 4, 0, b""),
    "bits as text": (0x0102, 2, 6, b"8 8 8"),
    "photometric as text": (0x0106, 2, 4, b"RGB"),
    "strips as a double": (0x0111, 12, 1, struct.pack("<d", 0.5)),
    "resolution over zero": (0x011A, 5, 1, bytes(8)),
    "a block beyond the end": (0x8769, 4, 1, b"\xff" * 4),
    "a block as text": (0x8825, 2, 4, b"GPS"),
    "a maker's note": (0x927C, 7, 9, b"\xff" * 9),
}


# The tags of a TIFF are its EXIF: those below the orientation's describe how its pixels lie.
PAIRS = [(kind, odd) for kind in ("jpeg", "png", "webp") for odd in ODD]
PAIRS += [("tiff", odd) for odd in ODD if ODD[odd][0] > 0x0112]


@pytest.mark.parametrize(("file_format", "odd"), PAIRS)
def test_of_exif_the_orientation_alone_matters(file_format, odd):
    options = {"png": {}, "jpeg": {"quality": 95}, "webp": {"lossless": True}, "tiff": {}}
    stored = pixels(0, 8, 8)
    whole = encoded(stored, file_format, **options[file_format])
    upright = np.rot90(decode(whole, 8, 3), -1)
    if file_format == "tiff":
        turned = tiff(stored, *sorted([ODD[odd], TURNED]))
    else:
        block = exif(*sorted([ODD[odd], TURNED]))
        turned = encoded(stored, file_format, exif=block, **options[file_format])
    np.testing.assert_array_equal(decode(turned, 8, 3), upright)


def tiff(image, *entries):
    """An uncompressed TIFF of RGB pixels with more tags."""
    height, width, _ = image.shape
    short = {0x0100: width, 0x0101: height, 0x0103: 1, 0x0106: 2, 0x0115: 3, 0x0116: height}
    tags = {tag: (3, 1, struct.pack("<H", value)) for tag, value in short.items()}
    tags[0x0102] = 3, 3, struct.pack("<3H", 8, 8, 8)
    tags[0x0117] = 4, 1, struct.pack("<I", image.size)
    tags |= {tag: entry for tag, *entry in entries}
    tags[0x0111] = 4, 1, bytes(4)

    def head():
        return exif(*((tag, *entry) for tag, entry in sorted(tags.items())))[6:]

    tags[0x0111] = 4, 1, struct.pack("<I", len(head()))
    return head() + image.tobytes()


@pytest.mark.parametrize("file_format", ["jpeg", "png", "webp"])
@pytest.mark.parametrize(
    "orientation",
    [
        (0x0112, 3, 1, b"\0\0"),
        (0x0112, 3, 1, b"\x09\0"),
        (0x0112, 2, 2, b"6"),
        (0x0112, 5, 1, struct.pack("<II", 6, 1)),
        (0x0112, 12, 1, struct.pack("<d", 6)),
        (0x0112, 7, 1, b"\6"),
        (0x0112, 3, 0, b""),
    ],
)
def test_an_orientation_that_is_none_is_ignored(file_format, orientation):
    stored = pixels(0, 8, 8)
    options = {"lossless": True} if file_format == "webp" else {}
    whole = encoded(stored, file_format, exif=exif(orientation), **options)
    plain = encoded(stored, file_format, **options)
    np.testing.assert_array_equal(decode(whole, 8, 3), decode(plain, 8, 3))


@pytest.mark.parametrize("cut", range(0, 30, 3))
def test_a_torn_exif_block_is_ignored(cut):
    stored, block = pixels(0, 8, 8), exif((0x010F, 2, 9, b"a camera"), TURNED)
    for file_format in ("jpeg", "png"):
        torn = encoded(stored, file_format, exif=block[: 6 + cut])
        plain = encoded(stored, file_format)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.testing.assert_array_equal(decode(torn, 8, 3), decode(plain, 8, 3))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_tiff_is_turned_once(orientation, compression):
    """As the JPEG of the same orientation is."""
    stored, exif = pixels(0, 8, 8), Image.Exif()
    exif[0x0112] = orientation
    whole = encoded(stored, "tiff", compression=compression, tiffinfo={0x0112: orientation})
    expected = decode(encoded(stored, "png", exif=exif), 8, 3)
    np.testing.assert_array_equal(decode(whole, 8, 3), expected)


@pytest.mark.parametrize("cut", [0.02, 0.5, 0.9])
def test_a_truncated_image_raises(cut):
    whole = encoded(pixels(0, 64, 64), "jpeg")
    with pytest.raises(OSError, match="(?i)truncated|identify"):
        decode(whole[: int(cut * len(whole))], 8, 3)
