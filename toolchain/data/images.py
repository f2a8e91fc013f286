"""Encoded bytes to an RGB image, and which files are taken to be images."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image, UnidentifiedImageError

from ..errors import InputError

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Lower case; what timm and torchvision read between them."""

_DAMAGE = (
    OSError,  # truncated, or UnidentifiedImageError: no format Pillow knows
    SyntaxError,  # a broken PNG chunk
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AssertionError,  # a palette's transparency without the palette
    OverflowError,
    MemoryError,  # a header that claims more pixels than there is memory
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders were seen to raise on damaged files."""


def decode_rgb(data: bytes, name: str, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Decode every pixel and convert to RGB as timm does (``convert("RGB")``; EXIF orientation is left alone).

    ``formats`` are Pillow's names of the only ones to try (None: all it knows). Raises InputError that calls the image
    ``name`` when it is damaged or not an image.
    """
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            image.load()
            return image.convert("RGB")
    except _DAMAGE as error:
        raise InputError(
            f"image {name} cannot be decoded ({_reason(error)}; {len(data)} bytes). Replace or remove it."
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its message is the repr of our buffer
        return "no image format that Pillow knows"
    return f"{type(error).__name__}: {error}"
