"""What a report reads of a run folder, checked and typed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, final

import numpy as np
import numpy.typing as npt

from ..artifact import LOG, Artifact
from ..errors import InputError


@final
@dataclass(frozen=True)
class Block:
    """One block's row of the manifest; None is what was not measured, by an earlier version or for want of steps."""

    name: str
    kind: str
    loss_first: float | None
    loss_last: float | None
    seconds: float
    snr_db_first: float | None = None
    snr_db_last: float | None = None
    peak_bytes: int | None = None


@final
@dataclass(frozen=True)
class Step:
    """A logged step; ``beta`` is None while rounding is not pushed to either side yet."""

    block: str
    step: int
    loss: float
    beta: float | None


@final
@dataclass(frozen=True)
class Grid:
    """What a layer's weight or input lost, and how it lies on its grid: see ``reconstruct.fidelity``."""

    block: str
    layer: str
    operand: str
    bits: int
    snr_db: float | None
    clipped: float
    range: list[float]
    counts: list[int]

    def __post_init__(self) -> None:
        """Raise ValueError for a histogram that cannot be drawn."""
        low, high = self.range
        if not (low <= 0 < 2**self.bits <= high and self.counts and min(self.counts) >= 0 and sum(self.counts) > 0):
            raise ValueError(f"the histogram of {self.layer} {self.operand} is none")


@final
@dataclass(frozen=True)
class Fallback:
    """A step at which a Fisher approximation had to take something simpler."""

    block: str
    step: int
    reason: str


@final
@dataclass(frozen=True)
class Layer:
    """A layer as it is stored. ``weights`` counts its codes; ``steps`` are the ends of its scales, by operand."""

    name: str
    op: str
    weights: int
    weight_bits: int | None
    activation_bits: int
    granularity: str
    steps: Mapping[str, tuple[float, float]]


@final
@dataclass(frozen=True, eq=False)
class Run:
    """A run folder: its manifest, and its rows and log lines as they are shown."""

    path: Path
    manifest: Mapping[str, Any]
    blocks: tuple[Block, ...]
    layers: tuple[Layer, ...]
    steps: tuple[Step, ...]
    grids: tuple[Grid, ...]
    fallbacks: tuple[Fallback, ...]

    @property
    def name(self) -> str:
        """The folder's."""
        return self.path.name


def read_run(path: Path) -> Run:
    """Read and check a run folder.

    Raises InputError for one that is missing, damaged, changed or newer than this version, and for a log that is not
    what ``quantize`` writes.
    """
    artifact = Artifact.load(path)
    manifest = artifact.manifest
    try:
        _require(manifest)
        blocks = tuple(_pick(Block, row) for row in manifest["blocks"])
        layers = tuple(_layer(row, artifact.tensors) for row in manifest["layers"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"run folder {path} has a manifest that `fimaq-tool quantize` does not write ({type(error).__name__}: "
            f"{error}). Quantize again."
        ) from error
    lines = _read_log(path / LOG)
    return Run(
        path=path.resolve(),
        manifest=manifest,
        blocks=blocks,
        layers=layers,
        steps=tuple(line for line in lines if isinstance(line, Step)),
        grids=tuple(line for line in lines if isinstance(line, Grid)),
        fallbacks=tuple(line for line in lines if isinstance(line, Fallback)),
    )


SHOWN: dict[str, tuple[type, ...]] = {
    "calibration.dataset_id": (str,),
    "calibration.sample_ids": (list,),
    "device": (str,),
    "environment.cpu.cores": (int,),
    "environment.cpu.name": (str,),
    "environment.system": (str,),
    "environment.versions": (dict,),
    "model.name": (str,),
    "model.weights_sha256": (str,),
    "recipe.activations.bits": (int,),
    "recipe.fisher.kind": (str,),
    "recipe.reconstruct.iterations": (int,),
    "recipe.seed": (int,),
    "recipe.weights.bits": (int,),
    "seconds.calibrate": (int, float),
    "seconds.reconstruct": (int, float),
    "seconds.total": (int, float),
    "tool_version": (str,),
}
"""What is shown of the manifest as it stands."""


def _require(manifest: Mapping[str, Any]) -> None:
    """Raise KeyError or TypeError for the first of ``SHOWN`` that is missing or of another type."""
    for path, kinds in SHOWN.items():
        value: Any = manifest
        for key in path.split("."):
            value = value[key]
        if not isinstance(value, kinds):
            raise TypeError(f"{path} is {str(value)[:40]!r}")


EVENTS: dict[str, type[Step] | type[Grid] | type[Fallback]] = {"step": Step, "grid": Grid, "fallback": Fallback}
"""Events of the log that a report shows; a block's own line is in the manifest too."""


def _read_log(path: Path) -> list[Step | Grid | Fallback]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line, parse_constant=_refuse_constant) for line in lines]
        return [_pick(EVENTS[row["event"]], row) for row in rows if row["event"] in EVENTS]
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is missing or not a log of `fimaq-tool quantize` ({type(error).__name__}: {error}). "
            "Copy the run folder again."
        ) from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}")


KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "int | None": (int, NoneType),
    "float": (int, float),
    "float | None": (int, float, NoneType),
    "list[float]": (list,),
    "list[int]": (list,),
}
"""What JSON may hold for each annotation of the classes above."""


def _pick(kind: type[Any], row: Mapping[str, Any]) -> Any:
    """The fields of ``kind`` that ``row`` has; keys it does not know are for others. TypeError for another type."""
    for field in fields(kind):
        if not isinstance(row.get(field.name, field.default), KINDS[str(field.type)]):
            raise TypeError(f"{field.name} is {str(row.get(field.name))[:40]!r}, wanted {field.type}")
    return kind(**{field.name: row[field.name] for field in fields(kind) if field.name in row})


def _layer(row: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]) -> Layer:
    name = row["name"]
    operands = ("a", "b") if row["op"] == "matmul" else ("weight", "input")
    scales = {operand: tensors[f"{name}.{operand}.scale"] for operand in operands}
    return Layer(
        name=name,
        op=row["op"],
        weights=int(np.size(tensors[f"{name}.weight.codes"])) if row["weight_bits"] else 0,
        weight_bits=row["weight_bits"],
        activation_bits=row["activation_bits"],
        granularity=row["granularity"],
        steps={operand: (float(scale.min()), float(scale.max())) for operand, scale in scales.items()},
    )
