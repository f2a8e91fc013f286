"""What the processor is called and can do, as far as it decides which integer kernels run. Imports nothing heavy."""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path

FEATURES = (
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

DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""x86 instructions that add products of bytes in 32 bits; without them ONNX Runtime adds two at a time in 16."""

CPUINFO = Path("/proc/cpuinfo")


@cache
def processor() -> tuple[str, tuple[str, ...]]:
    """Its name, and those of ``FEATURES`` it has (none where the system does not say)."""
    text = CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.is_file() else ""
    flags = set(_field(text, "flags").split() or _field(text, "Features").split())
    name = _field(text, "model name") or platform.processor() or platform.machine()
    return name, tuple(feature for feature in FEATURES if feature in flags)


def saturates() -> bool:
    """Whether two 8-bit products may be added in 16 bits here: on x86 not known to have one of ``DOT_PRODUCTS``."""
    return platform.machine().lower() in ("x86_64", "amd64") and DOT_PRODUCTS.isdisjoint(processor()[1])


def _field(cpuinfo: str, name: str) -> str:
    found = re.search(rf"^{name}\s*:\s*(.*)$", cpuinfo, flags=re.MULTILINE)
    return found.group(1).strip() if found else ""
