"""Random resized crop and flip: the training augmentation the published calibration images went through.

timm's own transform draws from Python's global random state; here the image's name decides, so that the same image
is cropped alike on every machine and in every order.
"""

from __future__ import annotations

import math
import random

from PIL import Image, ImageOps

from .preprocess import Preprocessing

AREA = (0.08, 1.0)
"""Share of the image's area a crop may have (torchvision's and timm's default)."""

RATIO = (3 / 4, 4 / 3)
"""Width over height of a crop."""

ATTEMPTS = 10


def random_resized_crop(image: Image.Image, preprocessing: Preprocessing, seed: int, name: str) -> Image.Image:
    """A crop of ``image`` at the model's input size, flipped half the time; decided by ``(seed, name)``."""
    draw = random.Random(f"{seed}/{name}")
    left, top, width, height = _crop(image.size, draw)
    resample = Image.Resampling[preprocessing.interpolation.upper()]
    cropped = image.resize(
        (preprocessing.width, preprocessing.height), resample, box=(left, top, left + width, top + height)
    )
    return ImageOps.mirror(cropped) if draw.random() < 0.5 else cropped


def _crop(size: tuple[int, int], draw: random.Random) -> tuple[int, int, int, int]:
    """Left, top, width, height; the largest central crop of an allowed ratio if no random one fits."""
    full_width, full_height = size
    for _ in range(ATTEMPTS):
        area = draw.uniform(*AREA) * full_width * full_height
        ratio = math.exp(draw.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= full_width and 0 < height <= full_height:
            return draw.randint(0, full_width - width), draw.randint(0, full_height - height), width, height
    width = min(full_width, round(full_height * RATIO[1]))
    height = min(full_height, round(full_width / RATIO[0]))
    return (full_width - width) // 2, (full_height - height) // 2, width, height
