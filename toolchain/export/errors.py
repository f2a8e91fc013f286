"""The error of an export that would not hold."""

from __future__ import annotations

from ..errors import InputError


class ExportError(InputError):
    """The model cannot be exported, or the exported file failed its own check; nothing was written."""
