"""Logs on stderr: one JSON object a line, or text for a person who watches."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal, final

import orjson

LogFormat = Literal["json", "text"]
LEVELS = ("debug", "info", "warning", "error")

ROOT, OTHERS = "fimaq.deploy.serve", ("uvicorn", "opentelemetry", "py.warnings")


def set_up(log_format: LogFormat, level: str) -> None:
    """Send this package's records, uvicorn's, OpenTelemetry's and Python's warnings to stderr.

    A record's own fields come from ``extra={"fields": {...}}``. Of uvicorn only warnings and errors are kept: what it
    says about requests is said here.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.captureWarnings(True)
    for name, lowest in ((ROOT, level), *((other, "warning") for other in OTHERS)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(lowest.upper())


@final
class JsonFormatter(logging.Formatter):
    """``time``, ``level``, ``event`` and the record's fields; ``traceback`` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(entry, default=str, option=orjson.OPT_UTC_Z).decode()


@final
class TextFormatter(logging.Formatter):
    """The time, the event and ``field=value`` of each field."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback below it where there is one."""
        fields = "".join(f" {name}={_printable(value)}" for name, value in getattr(record, "fields", {}).items())
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        line = f"{time} {record.levelname.lower()}: {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _printable(value: object) -> str:
    """Escaped where a client's path could make lines of its own or speak to the terminal."""
    text = str(value)
    return text if text.isprintable() else repr(text)
