"""RESULT.json as text: sealed with a hash when written, checked key by key when read."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError

FORMAT_VERSION = 1
SEAL = "result_sha256"
"""The hash over every other key: it shows what was edited by hand, it does not keep out a forger."""

DATASET = {"id": str, "n": int, "sample_ids_sha256": str}
FIGURES = {
    "format_version": int,
    "model": str,
    "sha256": str,
    "bytes": int,
    "dataset": dict,
    "preprocessing_sha256": str,
    "n": int,
    "top1": float,
    "top5": float,
    "top1_interval": list,
    "images_per_second": float,
    "provider": str,
    "environment": dict,
    "skipped": list,
    "label_source": str,
    "batch_size": int,
    "seconds": dict,
    "predictions_sha256": str,
}
"""Every key but the seal, and its type in JSON."""

WORDS = {int: "an integer", float: "a number", str: "text", dict: "an object", list: "a list"}


def sealed(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures with their seal, which depends on neither the order of keys nor white space."""
    return {**figures, SEAL: _seal(figures)}


def read_figures(path: Path) -> dict[str, Any]:
    """RESULT.json without its seal.

    Raises InputError where it is missing, not JSON, of another version, lacks a key or has one of the wrong type, holds
    a number that is not finite, or was changed since it was written.
    """
    if not path.exists():
        raise InputError(
            f"{path} is not there; wanted a result. Write it: `fimaq-tool evaluate MODEL.onnx --data DIR -o {path}`."
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        if not isinstance(values, dict):
            raise ValueError(f"it holds {type(values).__name__}, wanted an object")
        seal = values.pop(SEAL, None)
        if values.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"format_version is {values.get('format_version')!r}, wanted {FORMAT_VERSION}")
        _check(values, FIGURES, "")
        _check(values["dataset"], DATASET, "dataset.")
        if len(values["top1_interval"]) != 2 or any(type(end) is not float for end in values["top1_interval"]):
            raise ValueError("top1_interval wants two numbers")
        if any(type(name) is not str for name in values["skipped"]):
            raise ValueError("skipped wants names")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not a result of `fimaq-tool evaluate -o` ({error}). Evaluate the model again."
        ) from error
    if seal != _seal(values):
        raise InputError(
            f"{path} was changed since it was written: its {SEAL} is {str(seal)[:12]}..., that of its content "
            f"{_seal(values)[:12]}.... Evaluate the model again."
        )
    return values


def _seal(figures: Mapping[str, Any]) -> str:
    text = json.dumps(figures, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _check(values: Mapping[str, Any], kinds: Mapping[str, type], prefix: str) -> None:
    """Raise ValueError for the first key that is missing, unknown or of another type."""
    for key in sorted(values.keys() ^ kinds.keys()):
        raise ValueError(f"{prefix}{key} is {'missing' if key in kinds else 'not one of its keys'}")
    for key, kind in kinds.items():
        if type(values[key]) is not kind or (kind is float and not math.isfinite(values[key])):
            raise ValueError(f"{prefix}{key} is {str(values[key])[:40]!r}, wanted {WORDS[kind]}")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}")
