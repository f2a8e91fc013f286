"""What this machine is: versions and CPU, as a bug report or a result needs them. Imports nothing heavy."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .runtime import usable_cores

PACKAGES = (
    "fimaq-tool",
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
    "pillow",
    "safetensors",
)

CPU_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "neon",
    "asimd",
    "asimddp",
    "i8mm",
)
"""Those that decide which kernels run: integer products round differently without some of them."""

CPUINFO = Path("/proc/cpuinfo")


def environment() -> dict[str, Any]:
    """Python, operating system, package versions and CPU, as plain JSON values."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": versions(),
        "cpu": cpu(),
    }


def versions() -> dict[str, str]:
    """The installed packages among ``PACKAGES`` with their versions, read without importing them."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu() -> dict[str, Any]:
    """The processor's name, the physical cores this process may use and its features (empty where unknown)."""
    text = CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.is_file() else ""
    flags = set(_field(text, "flags").split() or _field(text, "Features").split())
    return {
        "name": _field(text, "model name") or platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "features": [feature for feature in CPU_FEATURES if feature in flags],
    }


def _field(cpuinfo: str, name: str) -> str:
    found = re.search(rf"^{name}\s*:\s*(.*)$", cpuinfo, flags=re.MULTILINE)
    return found.group(1).strip() if found else ""
