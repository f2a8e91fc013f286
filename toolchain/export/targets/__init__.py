"""The export targets by name; one file adds one."""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import UsageError
from .openvino import OpenVino
from .ort_cpu import OrtCpu
from .portable import Portable
from .qnn import Qnn
from .target import ExportTarget
from .tensorrt import TensorRt

TARGETS: Mapping[str, ExportTarget] = {
    target.name: target for target in (OrtCpu(), Portable(), OpenVino(), TensorRt(), Qnn())
}


def find_target(name: str) -> ExportTarget:
    """The target called ``name``; raises UsageError."""
    if name not in TARGETS:
        raise UsageError(f"target {name!r} is unknown: wanted one of {', '.join(TARGETS)}. Choose another --target.")
    return TARGETS[name]
