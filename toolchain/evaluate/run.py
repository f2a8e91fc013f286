"""Score a model on labelled images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, final, get_args

import numpy as np
import numpy.typing as npt

from ..data import ImageSet
from ..environment import environment
from ..errors import InputError, UsageError
from ..progress import NullProgress, Progress
from .metrics import hits, percent, top_k, wilson_interval
from .predictor import Predictor
from .prefetch import Prepare, default_workers, prefetch, preprocessed
from .result import DatasetRef, EvalResult, Predictions

if TYPE_CHECKING:
    from ..distributed.ranks import Ranks  # runs on torch

OnCorrupt = Literal["error", "skip"]


def evaluate(
    predictor: Predictor,
    images: ImageSet,
    *,
    batch_size: int = 32,
    workers: int | None = None,
    limit: int | None = None,
    on_corrupt: OnCorrupt = "error",
    keep_logits: bool = False,
    progress: Progress | None = None,
    prepare: Prepare | None = None,
    ranks: Ranks | None = None,
) -> EvalResult:
    """Run every image through the model's own preprocessing and the model, and count.

    ``workers`` decode in parallel (None: one a processor) at most two batches ahead; ``limit`` takes that many images
    spread evenly over the set; ``keep_logits`` keeps all logits, 4 bytes times classes an image. The result does not
    depend on ``workers``. ``prepare`` makes what the predictor is given of a sample (None: the model's preprocessing).
    Each of ``ranks`` takes whole batches of those a process by itself would make; all return the result of all images.

    Raises InputError for images without labels, labels the model has no class for, an image that cannot be decoded
    (unless ``on_corrupt="skip"``, which lists them in ``skipped``), and logits that are not finite.
    """
    if batch_size < 1 or (workers is not None and workers < 1) or on_corrupt not in get_args(OnCorrupt):
        raise UsageError(
            f"got batch size {batch_size}, {workers} workers, on_corrupt {on_corrupt!r}; wanted 1 or more of each and "
            f"one of {', '.join(get_args(OnCorrupt))}."
        )
    images = images.take(limit)
    if images.labels is None:
        raise InputError(
            f"{images.source} has no labels to compare with ({images.label_source}); wanted class folders. "
            "Give --labels FILE."
        )
    scores = _Scores(predictor, images, np.asarray(images.labels, dtype=np.int64), keep_logits)
    own = list(range(len(images)))
    if ranks is not None:
        turn, turns = ranks.launch.rank, ranks.size
        own = [index for index in own if index // batch_size % turns == turn]
        if not own:
            raise UsageError(
                f"got {turns} processes for {len(images)} images in batches of {batch_size}; wanted a batch for each. "
                "Start fewer processes or lower --batch-size."
            )
    workers = workers or default_workers()
    start = time.perf_counter()
    with (progress or NullProgress()).task("evaluate", len(own)) as task:
        part = images.subset(own)
        prepared = prefetch(part, prepare or preprocessed(predictor.image), workers, window=2 * batch_size + workers)
        for indices, arrays, skipped in _batches(prepared, batch_size, on_corrupt):
            scores.found.skipped += [own[index] for index in skipped]
            if indices:
                scores.add([own[index] for index in indices], np.stack(arrays))
            task.advance(len(indices) + len(skipped))
    if ranks is not None:
        scores.found = _merged(ranks.gather(scores.found))
    return scores.result(time.perf_counter() - start, batch_size)


def _batches(
    prepared: Iterator[tuple[int, npt.NDArray[Any] | InputError]], batch_size: int, on_corrupt: OnCorrupt
) -> Iterator[tuple[list[int], list[npt.NDArray[Any]], list[int]]]:
    """Indices and arrays of up to ``batch_size`` images, and the indices skipped among them."""
    indices: list[int] = []
    arrays: list[npt.NDArray[Any]] = []
    skipped: list[int] = []
    for index, item in prepared:
        if isinstance(item, InputError):
            if on_corrupt == "error":
                raise InputError(f"{item} Give --skip-corrupt to leave such images out and count them.") from item
            skipped.append(index)
            continue
        indices.append(index)
        arrays.append(item)
        if len(indices) == batch_size:
            yield indices, arrays, skipped
            indices, arrays, skipped = [], [], []
    if indices or skipped:
        yield indices, arrays, skipped


@final
@dataclass
class _Found:
    """What is kept of each image: the numbers of those scored, their arrays, and the numbers of those skipped."""

    skipped: list[int] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    classes: list[npt.NDArray[np.int32]] = field(default_factory=list)
    values: list[npt.NDArray[np.float32]] = field(default_factory=list)
    logits: list[npt.NDArray[np.float32]] = field(default_factory=list)
    predict_seconds: float = 0.0


def _merged(parts: list[_Found]) -> _Found:
    """The parts of several processes in the order of the images; seconds are those of the slowest."""
    indices = [index for part in parts for index in part.indices]
    order = np.argsort(indices)

    def arrays(name: str) -> list[npt.NDArray[Any]]:
        found = [array for part in parts for array in getattr(part, name)]
        return [np.concatenate(found)[order]] if found else []

    return _Found(
        skipped=sorted(index for part in parts for index in part.skipped),
        indices=sorted(indices),
        classes=arrays("classes"),
        values=arrays("values"),
        logits=arrays("logits"),
        predict_seconds=max(part.predict_seconds for part in parts),
    )


@final
@dataclass
class _Scores:
    """Predicts, checks what came out, and counts."""

    predictor: Predictor
    images: ImageSet
    labels: npt.NDArray[np.int64]
    keep_logits: bool
    found: _Found = field(default_factory=_Found)

    def add(self, indices: list[int], batch: npt.NDArray[Any]) -> None:
        """Predict one batch in the predictor's form and keep its best classes."""
        start = time.perf_counter()
        logits = self.predictor(batch)
        self.found.predict_seconds += time.perf_counter() - start
        self._check(indices, logits)
        classes, values = top_k(logits)
        self.found.indices += indices
        self.found.classes.append(classes)
        self.found.values.append(values)
        if self.keep_logits:
            self.found.logits.append(logits.astype(np.float32))

    def _check(self, indices: list[int], logits: npt.NDArray[np.floating[Any]]) -> None:
        model, source = self.predictor.model, self.images.source
        if logits.ndim != 2 or len(logits) != len(indices):
            raise InputError(
                f"{model} returned {list(logits.shape)} for {len(indices)} images; wanted logits [batch, classes]. "
                "Give a classifier."
            )
        bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(bad):
            raise InputError(
                f"{model} returned logits that are not finite for {self.images.sample_ids[indices[bad[0]]]} "
                f"({len(bad)} of {len(indices)} images of its batch). Quantize or export the model again."
            )
        if self.labels.max() >= logits.shape[1]:
            raise InputError(
                f"{source} has label {self.labels.max()} and {model} {logits.shape[1]} classes; wanted labels from 0 "
                f"to {logits.shape[1] - 1}. Give the data the model was trained for."
            )

    def result(self, seconds: float, batch_size: int) -> EvalResult:
        """Count. Raises InputError when no image could be decoded."""
        found = self.found
        n = len(found.indices)
        if not n:
            raise InputError(
                f"none of the {len(self.images)} images of {self.images.source} can be decoded. Give another --data."
            )
        predictions = Predictions(
            sample_ids=np.asarray([self.images.sample_ids[index] for index in found.indices], dtype=np.str_),
            labels=self.labels[found.indices],
            top5=np.concatenate(found.classes),
            top5_logits=np.concatenate(found.values),
            logits=np.concatenate(found.logits) if self.keep_logits else None,
        )
        right = hits(predictions.top5, predictions.labels, 1)
        return EvalResult(
            model=self.predictor.model,
            sha256=self.predictor.sha256,
            bytes=self.predictor.bytes,
            dataset=DatasetRef(self.images.id, len(self.images), self.images.sample_ids_sha256),
            preprocessing_sha256=self.predictor.preprocessing.sha256,
            n=n,
            top1=percent(right, n),
            top5=percent(hits(predictions.top5, predictions.labels, 5), n),
            top1_interval=wilson_interval(right, n),
            images_per_second=n / seconds,
            provider=self.predictor.provider,
            environment={**environment(), **self.predictor.environment},
            skipped=tuple(self.images.sample_ids[index] for index in found.skipped),
            label_source=self.images.label_source,
            batch_size=batch_size,
            seconds={"total": seconds, "predict": found.predict_seconds},
            predictions=predictions,
        )
