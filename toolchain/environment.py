"""What this machine is: versions and CPU, as a bug report or a result needs them. Imports nothing heavy."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .processor import processor
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
    name, features = processor()
    return {"name": name, "cores": usable_cores(), "features": list(features)}
