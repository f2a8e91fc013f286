"""The images that a model is calibrated and reconstructed on: which of --data, and as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .augment import random_resized_crop
from .data import ImageSet, calibration_sample, open_dataset
from .distributed.ranks import ALONE, Ranks
from .errors import InputError
from .preprocess import Preprocessing
from .progress import Progress
from .recipe import Recipe
from .reconstruct.store import Store
from .runtime import usable_cores

SPLITS = {"train", "training", "val", "valid", "validation", "test", "calib"}
"""Folder names that mean a data set, not a class."""


def open_calibration_images(source: str, labels: Path | None, classes: Mapping[str, Any], recipe: Recipe) -> ImageSet:
    """As many images as the recipe wants, drawn by its seed.

    Raises InputError as ``open_dataset`` does, for fewer images than wanted, and for a folder that holds data sets.
    """
    images = open_dataset(source, labels_file=labels, classes=classes, require_labels=False)
    _refuse_splits(images)
    return images.subset(calibration_sample(images, wanted_images(recipe), recipe.seed))


def wanted_images(recipe: Recipe) -> int:
    """How many images a run takes in all."""
    if recipe.reconstruct.iterations == 0:
        return recipe.calibrate.samples
    return max(recipe.calibrate.samples, recipe.reconstruct.samples, recipe.fisher.samples)


def load_images(
    images: ImageSet,
    preprocessing: Preprocessing,
    recipe: Recipe,
    progress: Progress,
    store: Store,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Calibration images as float32 ``[n, 3, h, w]`` in ``store``, augmented if the recipe says so.

    Decoded on all cores. Of several ``ranks`` each writes its share only.
    """

    def one(index: int) -> np.ndarray:
        image = images.load(index)
        if recipe.calibrate.augment == "train":
            crop = random_resized_crop(image, preprocessing, recipe.seed, images.sample_ids[index])
            return preprocessing.normalize(crop)
        return preprocessing.apply(image)

    out = store.empty(len(images), 3, preprocessing.height, preprocessing.width)
    share = ranks.share(len(images))
    rows = range(share.start, share.stop)
    with ThreadPoolExecutor(usable_cores()) as pool, progress.task("load images", len(share)) as task:
        for row, array in zip(rows, pool.map(one, rows), strict=True):
            out[row] = torch.from_numpy(array)
            task.advance()
    return out


def _refuse_splits(images: ImageSet) -> None:
    """A folder that holds whole data sets would calibrate on held-out images. Raises InputError."""
    tops = {sample_id.split("/")[0] for sample_id in images.sample_ids if sample_id.count("/") > 1}
    if len(tops) > 1 and (found := sorted(tops & SPLITS)):
        raise InputError(
            f"{images.source} holds {' and '.join(found)}, which are data sets of their own: wanted one of them, and "
            f"not the one that measures accuracy. Give --data {images.source}/{found[0]}."
        )
