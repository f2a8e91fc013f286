"""What the gate judges: results of ``fimaq-tool evaluate``, believed only as far as they can be checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from fimaq.toolchain.errors import InputError
from fimaq.toolchain.evaluate import DatasetRef, EvalResult, Predictions
from fimaq.toolchain.evaluate.figures import read_figures
from fimaq.toolchain.evaluate.metrics import hits, percent, wilson_interval

from .report import EvidenceSummary

ROUNDING = 1e-9
"""Percent by which a metric may differ from the same metric recomputed: far less than one image."""


@final
@dataclass(frozen=True, eq=False)
class Evidence:
    """One model's result. ``predictions`` are None where only the figures are left of it."""

    summary: EvidenceSummary
    dataset: DatasetRef
    preprocessing_sha256: str
    provider: str
    skipped: tuple[str, ...]
    predictions: Predictions | None

    def hits(self, k: int) -> int:
        """How many images have their label among the first ``k`` predictions, 1 or 5."""
        if self.predictions is not None:
            return hits(self.predictions.top5, self.predictions.labels, k)
        return round({1: self.summary.top1, 5: self.summary.top5}[k] * self.summary.n / 100)


def read_evidence(path: Path, figures_suffice: bool = False) -> Evidence:
    """Read RESULT.json and RESULT.npz and check that every figure follows from the predictions.

    With ``figures_suffice`` a result whose npz is not there is read, too. Raises InputError for whatever is missing,
    damaged, changed or contradicts itself.
    """
    if path.suffix == ".npz":
        raise InputError(f"{path} holds predictions; wanted the result they are of. Give {path.with_suffix('.json')}.")
    if figures_suffice and not path.with_suffix(".npz").exists():
        figures = read_figures(path)
        dataset = DatasetRef(**figures["dataset"])
        evidence = _evidence(path, {**figures, "dataset": dataset, "skipped": tuple(figures["skipped"])}, None)
    else:
        result = EvalResult.load(path)
        evidence = _evidence(path, vars(result), result.predictions)
        figures = result.to_json()
    for name, got, wanted in _claims(evidence, figures["top1_interval"]):
        if not _same(got, wanted):
            raise InputError(f"{path} contradicts itself: {name} is {got}, wanted {wanted}. Evaluate the model again.")
    return evidence


def _evidence(path: Path, values: dict[str, Any], predictions: Predictions | None) -> Evidence:
    names = ("model", "sha256", "bytes", "n", "top1", "top5")
    return Evidence(
        summary=EvidenceSummary(path=str(path), **{name: values[name] for name in names}),
        dataset=values["dataset"],
        preprocessing_sha256=values["preprocessing_sha256"],
        provider=values["provider"],
        skipped=values["skipped"],
        predictions=predictions,
    )


def _claims(evidence: Evidence, interval: Sequence[float]) -> Iterator[tuple[str, object, object]]:
    """What the figures say and what follows from the predictions, as ``(name, got, wanted)``.

    Without predictions, that the figures agree with each other.
    """
    summary, predictions = evidence.summary, evidence.predictions
    if not (summary.n >= 1 and 0 <= summary.top1 <= summary.top5 <= 100 and summary.bytes >= 1):
        raise InputError(
            f"{summary.path} has n {summary.n}, top-1 {summary.top1}, top-5 {summary.top5} and {summary.bytes} bytes; "
            "wanted images, 0 <= top-1 <= top-5 <= 100 and a file that is not empty. Evaluate the model again."
        )
    if predictions is not None:
        names = [*map(str, predictions.sample_ids), *evidence.skipped]
        yield "n", summary.n, len(predictions.labels)
        yield "the number of different images", len(set(names)), len(names)
        if not evidence.skipped:  # those would have to be put back in their places
            digest = hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()
            yield "dataset.sample_ids_sha256", evidence.dataset.sample_ids_sha256, digest
    n, low, high = summary.n, *wilson_interval(evidence.hits(1), summary.n)
    yield "dataset.n", evidence.dataset.n, n + len(evidence.skipped)
    yield "top1", summary.top1, percent(evidence.hits(1), n)
    yield "top5", summary.top5, percent(evidence.hits(5), n)
    yield "the lower end of top1_interval", interval[0], low
    yield "the upper end of top1_interval", interval[1], high


def _same(got: object, wanted: object) -> bool:
    if isinstance(got, float) and isinstance(wanted, float):
        return abs(got - wanted) <= ROUNDING
    return got == wanted


def check_comparable(candidate: Evidence, baseline: Evidence) -> None:
    """Raise InputError where the two were not measured on the same images in the same way."""
    pairs: list[tuple[str, object, object]] = [
        ("another data set", candidate.dataset.id, baseline.dataset.id),
        ("another list of images", candidate.dataset.sample_ids_sha256, baseline.dataset.sample_ids_sha256),
        ("another number of images", candidate.dataset.n, baseline.dataset.n),
        ("another preprocessing", candidate.preprocessing_sha256, baseline.preprocessing_sha256),
        ("another list of skipped images", candidate.skipped, baseline.skipped),
    ]
    for difference, got, wanted in pairs:
        if got != wanted:
            raise _incomparable(candidate, baseline, f"{difference} ({_short(got)}, not {_short(wanted)})")
    one, other = candidate.predictions, baseline.predictions
    if one is None or other is None:
        return
    if not np.array_equal(one.sample_ids, other.sample_ids):
        same = set(one.sample_ids.tolist()) == set(other.sample_ids.tolist())
        raise _incomparable(candidate, baseline, f"another {'order' if same else 'list'} of scored images")
    if not np.array_equal(one.labels, other.labels):
        raise _incomparable(candidate, baseline, "other labels")


def _incomparable(candidate: Evidence, baseline: Evidence, difference: str) -> InputError:
    return InputError(
        f"{candidate.summary.path} cannot be compared with {baseline.summary.path}: it has {difference}. "
        "Evaluate both models on the same images with the same preprocessing."
    )


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} image(s)"
    return f"{value[:12]}..." if isinstance(value, str) and len(value) > 12 else str(value)
