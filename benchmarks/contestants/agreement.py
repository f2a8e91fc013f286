"""What each contestant predicts, apart from how fast: top-1 and how often it says what the float file says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fimaq.toolchain.data import open_dataset
from fimaq.toolchain.evaluate import OrtPredictor
from fimaq.toolchain.evaluate.metrics import percent, wilson_interval

from .runtimes import Opened

BATCH = 16


def agreement(everyone: Sequence[Opened], data: Path, limit: int | None) -> list[dict[str, Any]]:
    """A row each, in order; the first one is what the others are compared with.

    Images are prepared once, as the first one's file says. Raises InputError for data or a file that cannot be used.
    """
    form = OrtPredictor(everyone[0].path, threads=1)
    images = open_dataset(str(data), classes=form.classes).take(limit)
    labels, n = np.asarray(images.labels), len(images)
    classes = np.empty((len(everyone), n), dtype=np.int64)
    for start in range(0, n, BATCH):
        places = range(start, min(start + BATCH, n))
        batch = np.stack([form.image.apply(images.load(index)) for index in places])
        for own, one in zip(classes, everyone, strict=True):
            own[places.start : places.stop] = one.predict(batch).argmax(1)
    rows = []
    for own, one in zip(classes, everyone, strict=True):
        right = int((own == labels).sum())
        rows.append(
            one.to_json()
            | {
                "n": n,
                "dataset": images.id,
                "top1": percent(right, n),
                "top1_interval": list(wilson_interval(right, n)),
                "agreement": percent(int((own == classes[0]).sum()), n),
            }
        )
    return rows
