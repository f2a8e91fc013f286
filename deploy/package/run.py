"""From an ONNX file to a package for one serving system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .docker import Docker
from .folder import check_destination, write_package
from .kserve import KServe
from .model import Model
from .text import VERSION
from .triton import Triton

FORMAT_VERSION = 1


Target = Triton | KServe | Docker
"""A serving system, with what one can choose about it as its fields."""

TARGETS: dict[str, type[Target]] = {kind.target: kind for kind in (Triton, KServe, Docker)}


def package(path: Path, out: Path, target: Target, *, name: str | None = None, force: bool = False) -> dict[str, Any]:
    """Write the package and return what it is: its place, target, model and files with their hashes.

    Raises InputError for a file that the server would not take, and where ``out`` exists or cannot be written;
    UsageError for a name or a setting that the target or the file does not allow.
    """
    check_destination(out, force)
    chosen = target.names.choose(name, path.stem)
    model = Model.read(path)
    files = target.files(model, chosen)
    manifest = {
        "format_version": FORMAT_VERSION,
        "tool_version": VERSION,
        "target": target.target,
        "name": chosen,
        "model": {"sha256": model.predictor.sha256, "bytes": model.predictor.bytes},
    }
    return {"package": str(out), **manifest, "files": write_package(out, files, manifest, force)}
