"""Does the file predict what the torch model predicts? As well as the torch model agrees with itself.

A low-bit network turns a difference of one rounding in a float sum into another code, and that into an independent
draw of rounding noise a few layers on. So two correct implementations agree only as often as the torch model in
float32 agrees with its own float64 copy: the noise floor, measured on the same images. A file is refused where it
agrees less often than the floor by more than chance (``Agreement.p_value``).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import nn

BATCH = 16
SIGNIFICANCE = 1e-3
"""A file without fault is refused once in a thousand exports."""

Predict = Callable[[np.ndarray], np.ndarray]
"""Images float32 ``[b, 3, h, w]`` to logits ``[b, classes]``."""


@final
@dataclass(frozen=True)
class Agreement:
    """How one runtime's logits and the float64 model's compare with the float32 torch model's, image by image."""

    agrees: np.ndarray
    floor_agrees: np.ndarray
    snr_db: float
    floor_snr_db: float

    @property
    def top1_agreement(self) -> float:
        """Percent of images with the same first class."""
        return 100.0 * float(self.agrees.mean())

    @property
    def noise_floor(self) -> float:
        """Percent of images on which the float64 copy has the same first class."""
        return 100.0 * float(self.floor_agrees.mean())

    @property
    def p_value(self) -> float:
        """Chance of falling short of the floor by so much, if the runtime is as good as the float64 copy.

        The one-sided sign test (exact McNemar) on the images where one of the two agrees and the other does not.
        """
        worse = int(np.sum(self.floor_agrees & ~self.agrees))
        discordant = worse + int(np.sum(self.agrees & ~self.floor_agrees))
        return sum(math.comb(discordant, k) for k in range(worse, discordant + 1)) / 2**discordant


def torch_predictor(model: nn.Module, dtype: torch.dtype) -> Predict:
    """The model, or a copy of it in another dtype."""
    module = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)

    def predict(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(images).to(dtype)).numpy())

    return predict


def compare(model: nn.Module, runtimes: dict[str, Predict], images: np.ndarray) -> dict[str, Agreement]:
    """Agreement of each runtime with ``model``; torch runs once for all of them.

    ``images`` is float32 ``[n, 3, h, w]``.
    """
    reference = _logits(torch_predictor(model, torch.float32), images)
    double = _logits(torch_predictor(model, torch.float64), images)
    return {name: _agreement(reference, double, _logits(predict, images)) for name, predict in runtimes.items()}


def _agreement(reference: np.ndarray, double: np.ndarray, found: np.ndarray) -> Agreement:
    first = reference.argmax(axis=1)
    return Agreement(
        agrees=found.argmax(axis=1) == first,
        floor_agrees=double.argmax(axis=1) == first,
        snr_db=snr_db(reference, found),
        floor_snr_db=snr_db(reference, double),
    )


def snr_db(reference: np.ndarray, found: np.ndarray) -> float:
    """Power of the reference over power of the difference, in decibels; capped at 200 where nothing differs.

    Minus infinity where ``found`` holds numbers that are not finite.
    """
    if not np.isfinite(found).all():
        return -math.inf
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(reference.astype(np.float64) - found).sum())
    return min(200.0, 10 * math.log10(signal / noise)) if noise > 0 and signal > 0 else 200.0


def _logits(predict: Predict, images: np.ndarray) -> np.ndarray:
    return np.concatenate([predict(batch) for batch in _batches(images)])


def _batches(images: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(images), BATCH):
        yield images[start : start + BATCH]
