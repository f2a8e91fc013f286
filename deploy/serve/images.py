"""Encoded images to the model's input: the decoder and the preprocessing that ``evaluate`` uses, behind a limit."""

from __future__ import annotations

import io
import re

from PIL import Image, UnidentifiedImageError

from fimaq.toolchain.data import decode_rgb
from fimaq.toolchain.errors import InputError
from fimaq.toolchain.image_input import ImageInput

from .batching import Images
from .errors import Malformed, TooLarge

FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP"}
"""Content types that are taken, with Pillow's names: the decoders of others were never meant for strangers' files."""

DECODERS = tuple(FORMATS.values())
"""Asked in this order for the size and for the pixels: a file may be of two formats, with two sizes."""

SCANS = 200
"""Of a JPEG image; a progressive file has about ten. One costs a hundred bytes, and time for every pixel there is."""

_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_START, _END, _SCAN, _ALONE = b"\xd8", b"\xd9", b"\xda", b"\x01"


def to_input(data: bytes, form: ImageInput, pixels: int) -> Images:
    """Decode and preprocess one image, a batch of one in that form.

    The format is told by the content, whatever the header says. Raises TooLarge for more than ``pixels`` pixels, read
    from the header before anything is decoded, and Malformed for what is damaged, none of ``FORMATS`` or a JPEG image
    of more than SCANS scans.
    """
    width, height = _size(data)
    if width * height > pixels:
        raise TooLarge(f"the image has {width}x{height} pixels; wanted at most {pixels} in all. Send a smaller one.")
    if _scans(data) > SCANS:
        raise Malformed(f"the image has more than {SCANS} scans; wanted a common JPEG. Save it again as one.")
    try:
        return form.apply(decode_rgb(data, "in the request", DECODERS))[None]
    except InputError as error:
        raise Malformed(str(error)) from error


def _size(data: bytes) -> tuple[int, int]:
    """Width and height as the header gives them."""
    try:
        with Image.open(io.BytesIO(data), formats=DECODERS) as image:
            return image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"the image is too large ({error}). Send a smaller one.") from error
    except UnidentifiedImageError as error:
        raise Malformed(f"the body of {len(data)} bytes is no JPEG, PNG or WebP image; wanted one of them.") from error
    except Exception as error:
        raise Malformed(f"the image's header cannot be read ({type(error).__name__}: {error}).") from error


def _scans(data: bytes) -> int:
    """Scans of a JPEG image up to its end or to one more than SCANS, found as libjpeg does; 0 for other formats."""
    if not data.startswith(b"\xff" + _START):
        return 0
    scans, at = 0, 0
    while scans <= SCANS and (found := _MARKER.search(data, at)) and found[1] != _END:
        at = found.end()
        if found[1] not in (_START, _ALONE):
            at += int.from_bytes(data[at : at + 2])
        scans += found[1] == _SCAN
    return scans
