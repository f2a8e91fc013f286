"""Encoded images to the model's input: the decoder and the preprocessing that ``evaluate`` uses, behind a limit."""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from fimaq.toolchain.data import decode_rgb
from fimaq.toolchain.errors import InputError
from fimaq.toolchain.image_input import ImageInput

from .batching import Images
from .errors import Malformed, TooLarge

FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP"}
"""Content types that are taken, with Pillow's names: the decoders of others were never meant for strangers' files."""


def to_input(data: bytes, form: ImageInput, pixels: int) -> Images:
    """Decode and preprocess one image, a batch of one in that form.

    The format is told by the content, whatever the header says. Raises TooLarge for more than ``pixels`` pixels, read
    from the header before anything is decoded, and Malformed for what is damaged or none of ``FORMATS``.
    """
    width, height = _size(data)
    if width * height > pixels:
        raise TooLarge(f"the image has {width}x{height} pixels; wanted at most {pixels} in all. Send a smaller one.")
    try:
        return form.apply(decode_rgb(data, "in the request"))[None]
    except InputError as error:
        raise Malformed(str(error)) from error


def _size(data: bytes) -> tuple[int, int]:
    """Width and height as the header gives them."""
    try:
        with Image.open(io.BytesIO(data), formats=tuple(FORMATS.values())) as image:
            return image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"the image is too large ({error}). Send a smaller one.") from error
    except UnidentifiedImageError as error:
        raise Malformed(f"the body of {len(data)} bytes is no JPEG, PNG or WebP image; wanted one of them.") from error
    except Exception as error:
        raise Malformed(f"the image's header cannot be read ({type(error).__name__}: {error}).") from error
