"""results.jsonl: a row a run, kept while the sweep goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import InputError


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """The last row of each identity; none where there is no file.

    A last line that was cut off when the sweep was killed is removed. Raises InputError for any other that is no row.
    """
    if not path.exists():
        return {}
    found: dict[str, dict[str, Any]] = {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            found[row["identity"]] = row
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not line.endswith("\n"):
                path.write_text("".join(lines[:-1]), encoding="utf-8")
                break
            raise InputError(
                f"{path}, line {number} is no row of `fimaq-tool sweep` ({type(error).__name__}: {error}). "
                "Give another -o, or remove the line."
            ) from error
    return found
