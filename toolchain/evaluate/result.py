"""What an evaluation found: RESULT.json, and RESULT.npz with what a paired comparison needs."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, final
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ..errors import InputError, UsageError
from ..files import check_free, write_whole
from .figures import FORMAT_VERSION, read_figures, sealed

UNREADABLE = (
    *(OSError, EOFError, BadZipFile, zlib.error, struct.error),
    *(ValueError, KeyError, TypeError, AttributeError, NotImplementedError, RuntimeError, MemoryError),
)
"""What numpy and zipfile raise on files that are cut, overwritten or made up."""


@final
@dataclass(frozen=True, eq=False)
class Predictions:
    """Per scored image, in the data set's order.

    ``sample_ids`` str ``[n]``; ``labels`` int64 ``[n]``; ``top5`` int32 ``[n, min(5, classes)]``, best first, and
    ``top5_logits`` float32 of the same shape; ``logits`` float32 ``[n, classes]`` where they were asked for.
    """

    sample_ids: npt.NDArray[np.str_]
    labels: npt.NDArray[np.int64]
    top5: npt.NDArray[np.int32]
    top5_logits: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for arrays of another type or length, for none, and for logits that are not finite."""
        wanted = {
            "sample_ids": ("U", 1),
            "labels": ("i", 1),
            "top5": ("i", 2),
            "top5_logits": ("f", 2),
            "logits": ("f", 2),
        }
        n = self.sample_ids.shape[:1]
        for name, array in self.arrays.items():
            kind, dimensions = wanted[name]
            if array.dtype.kind != kind or array.ndim != dimensions or array.shape[:1] != n or not array.size:
                raise ValueError(f"{name} is {array.dtype} {list(array.shape)}")
            if kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"{name} holds values that are not finite")
        if self.top5.shape != self.top5_logits.shape:
            raise ValueError(f"top5 is {list(self.top5.shape)} and top5_logits {list(self.top5_logits.shape)}")

    @property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays that are there, by name: what RESULT.npz holds."""
        every = (
            ("sample_ids", self.sample_ids),
            ("labels", self.labels),
            ("top5", self.top5),
            ("top5_logits", self.top5_logits),
            ("logits", self.logits),
        )
        return {name: array for name, array in every if array is not None}

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether the first prediction is the label, ``[n]``."""
        right: npt.NDArray[np.bool_] = self.top5[:, 0] == self.labels
        return right

    @property
    def sha256(self) -> str:
        """Hash over the arrays, whatever file holds them."""
        digest = hashlib.sha256()
        for name, array in self.arrays.items():
            digest.update(f"{name}{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


@final
@dataclass(frozen=True)
class DatasetRef:
    """The data set that was asked for: its content id, its size and the hash of its sample ids."""

    id: str
    n: int
    sample_ids_sha256: str


@final
@dataclass(frozen=True, eq=False)
class EvalResult:
    """One model on one data set.

    ``n`` images were scored; ``skipped`` names the rest of the set, which could not be decoded. ``top1``, ``top5`` and
    the 95% Wilson interval ``top1_interval`` are percent. ``seconds`` has ``total`` (wall clock, decoding included)
    and ``predict`` (in the model); ``images_per_second`` is ``n / total``.
    """

    model: str
    sha256: str
    bytes: int
    dataset: DatasetRef
    preprocessing_sha256: str
    n: int
    top1: float
    top5: float
    top1_interval: tuple[float, float]
    images_per_second: float
    provider: str
    environment: dict[str, Any]
    skipped: tuple[str, ...]
    label_source: str
    batch_size: int
    seconds: dict[str, float]
    predictions: Predictions

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays as plain JSON values; ``predictions_sha256`` says which arrays belong to it."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "predictions"}
        return sealed(
            {
                "format_version": FORMAT_VERSION,
                **values,
                "dataset": dict(vars(self.dataset)),
                "top1_interval": list(self.top1_interval),
                "skipped": list(self.skipped),
                "predictions_sha256": self.predictions.sha256,
            }
        )

    def save(self, path: Path | str, force: bool = False) -> None:
        """Write RESULT.json and, beside it, RESULT.npz; each appears whole, the json last.

        Raises as ``check_result_path`` does, and InputError when they cannot be written.
        """
        path = check_result_path(path, force)
        arrays = io.BytesIO()
        np.savez_compressed(arrays, allow_pickle=False, **self.predictions.arrays)
        write_whole(path.with_suffix(".npz"), arrays.getvalue())
        write_whole(path, (json.dumps(self.to_json(), indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read RESULT.json and its RESULT.npz.

        Raises InputError when either is missing or damaged, or when they do not belong together.
        """
        path = Path(path)
        arrays = path.with_suffix(".npz")
        figures = read_figures(path)
        del figures["format_version"]
        wanted = figures.pop("predictions_sha256")
        predictions = _read_arrays(arrays, path)
        if predictions.sha256 != wanted:
            raise InputError(f"{arrays} does not belong to {path}: its hash is another. Evaluate the model again.")
        figures["dataset"] = DatasetRef(**figures["dataset"])
        figures["top1_interval"] = tuple(figures["top1_interval"])
        figures["skipped"] = tuple(figures["skipped"])
        return cls(**figures, predictions=predictions)


def _read_arrays(arrays: Path, result: Path) -> Predictions:
    """RESULT.npz of a result. Raises InputError where it is missing or damaged."""
    try:
        with arrays.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return Predictions(**{name: archive[name] for name in archive.files})
    except UNREADABLE as error:
        raise InputError(
            f"{arrays} is not what `fimaq-tool evaluate -o` writes beside {result} ({error}). Evaluate the model again."
        ) from error


def check_result_path(path: Path | str, force: bool) -> Path:
    """The path a result may be saved to; call it before the work, too.

    Raises UsageError for a name that does not end in .json, InputError where something exists and ``force`` is off, and
    where nothing can be written.
    """
    path = Path(path)
    if path.suffix != ".json":
        raise UsageError(f"result {path} does not end in .json; RESULT.npz is written beside it. Correct -o.")
    for file in (path, path.with_suffix(".npz")):
        check_free(file, force)
    return path
