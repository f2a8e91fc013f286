"""``write_report``: what the command line calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoint import unfinished_folder
from ..errors import InputError, UsageError
from ..evaluate.figures import read_figures
from ..files import check_free, write_whole
from .page import Result, page
from .read import read_run

ENDINGS = (".html", ".htm")


def write_report(sources: Sequence[Path], out: Path, *, force: bool = False) -> dict[str, Any]:
    """Write run folders and results (RESULT.json) as one page; return the JSON object of ``fimaq-tool report``.

    Raises UsageError for no source and for an output that is not called .html, InputError for a source that cannot be
    used and an output that exists (unless ``force``); then nothing is written.
    """
    if not sources:
        raise UsageError("got no run; wanted RUN folders, RESULT.json files or both.")
    if out.suffix.lower() not in ENDINGS:
        raise UsageError(f"-o {out} does not end in .html; it is a page for a browser. Give -o {out}.html.")
    check_free(out, force)
    runs = [read_run(path) for path in sources if not _is_result(path)]
    results = [Result(path, read_figures(path)) for path in sources if _is_result(path)]
    content = page(runs, results).encode()
    write_whole(out, content)
    return {
        "report": str(out),
        "bytes": len(content),
        "runs": [str(run.path) for run in runs],
        "results": [str(result.path) for result in results],
    }


def _is_result(path: Path) -> bool:
    """By its ending; everything else is taken for a run folder. InputError for a file of another kind."""
    if path.is_dir() or path.suffix.lower() == ".json":
        return not path.is_dir()
    if path.exists():
        raise InputError(
            f"{path} is neither a run folder nor a result; wanted those of `fimaq-tool quantize` and "
            "`fimaq-tool evaluate -o`. Leave it out."
        )
    if unfinished_folder(path).exists():
        raise InputError(f"{path} is not finished. Go on with `quantize --resume` or wait for it, then report.")
    raise InputError(f"{path} does not exist; wanted a run folder or RESULT.json. Correct the path.")
