"""Which images calibrate: the same ones on every machine, spread over the classes."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable
from itertools import zip_longest

from ..errors import InputError, UsageError
from .folder import top_folder
from .image_set import ImageSet


def calibration_sample(images: ImageSet, n: int, seed: int) -> list[int]:
    """Choose ``n`` images: indices into ``images``, no two alike.

    Every class gives one image before any gives two, and so on; without labels a class is a top folder. Chance is
    SHA-256 of (seed, sample id), so neither the order of ``images`` nor the file system nor a library's random
    numbers decide, and the first k of n are what a sample of k would be.

    Raises InputError when there are fewer than ``n`` images, UsageError for an ``n`` below 1.
    """
    if n < 1:
        raise UsageError(f"{n} calibration images were asked for; wanted 1 or more. Correct --calib-samples.")
    if n > len(images):
        raise InputError(
            f"{n} calibration images were asked for and {images.source} has {len(images)}. "
            f"Give more images, or ask for at most {len(images)}: --calib-samples, --recon-samples, --fisher-samples."
        )
    classes: dict[Hashable, list[int]] = defaultdict(list)
    for index in sorted(range(len(images)), key=lambda i: _chance(seed, images.sample_ids[i])):
        classes[images.labels[index] if images.labels else top_folder(images.sample_ids[index])].append(index)
    # Classes come in the order of their first images, which is chance; each round takes one image of each class.
    rounds = zip_longest(*classes.values())
    return [index for taken in rounds for index in taken if index is not None][:n]


def _chance(seed: int, sample_id: str) -> tuple[bytes, str]:
    return hashlib.sha256(f"{seed}\0{sample_id}".encode(errors="surrogateescape")).digest(), sample_id
