"""Make a candidate the new baseline, and write down why."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fimaq.toolchain.errors import GateFailed, GateInconclusive, InputError, UsageError
from fimaq.toolchain.evaluate import EvalResult
from fimaq.toolchain.evaluate.figures import read_figures
from fimaq.toolchain.files import whole_file

from .config import GateConfig
from .evidence import read_evidence
from .report import GateReport
from .run import judge

HISTORY = ".history.json"
"""Beside the baseline: a list of every result that was the baseline, the newest last."""

REFUSALS = {"fail": GateFailed, "inconclusive": GateInconclusive}


def update(
    candidate: Path,
    config: GateConfig,
    *,
    name: str,
    reason: str,
    force: bool,
    environ: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """Replace the baseline called ``name`` by the candidate's result; return what was done.

    The candidate must pass the gate first, against the baseline it replaces where there is one. The result is written
    with sorted keys, with its predictions and an entry in the history, each file whole.

    Raises GateFailed or GateInconclusive for a candidate that does not pass, and UsageError in continuous integration,
    where nobody would review the change: ``force`` does it all the same. Raises InputError as ``run_gate``, and
    UsageError as ``GateConfig.with_options``.
    """
    if name not in config.baselines:
        raise UsageError(
            f"there is no baseline {name!r} to update; [baselines] has {', '.join(config.baselines) or 'none'}. "
            f'Add {name} = "baselines/{name}.json" to gate.toml, or give another --name.'
        )
    if not reason.strip():
        raise UsageError("--reason is empty; wanted a sentence for the history. Say why the baseline changes.")
    if environ.get("CI", "").lower() not in ("", "0", "false") and not force:
        raise UsageError(
            "the variable CI is set: a baseline is changed in a commit that people review, not by a build. "
            "Run this on your machine and commit the files, or give --force."
        )
    config, path = config.with_options(), config.baselines[name]
    report = _judged(candidate, config, name)
    verdict = report.verdict if report.rules else None
    if verdict in REFUSALS and not force:
        raise REFUSALS[verdict](
            f"{candidate} is not made the baseline: {_told(report)} Give a better model, or --force with the reason."
        )
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "reason": reason.strip(),
        "verdict": verdict,
        "forced": force,
        "replaces": read_figures(path)["sha256"] if path.exists() else None,
        **{key: read_figures(candidate)[key] for key in ("model", "sha256", "bytes", "n", "top1", "top5", "dataset")},
    }
    _write(candidate, path, entry)
    return {"baseline": str(path), "history": str(path.with_suffix(HISTORY)), "name": name, **entry}


def _judged(candidate: Path, config: GateConfig, name: str) -> GateReport:
    """The gate's report, without the baseline ``name`` where that is not there yet."""
    there = {each: path for each, path in config.baselines.items() if each != name or path.exists()}
    suffices = not config.require_paired
    baselines = {each: read_evidence(path, figures_suffice=suffices) for each, path in there.items()}
    return judge(read_evidence(candidate), baselines, config.against(there))


def _told(report: GateReport) -> str:
    """What its worst rule says."""
    return next(f"{rule.title}: {rule.message}" for rule in report.rules if rule.verdict == report.verdict)


def _write(candidate: Path, path: Path, entry: Mapping[str, Any]) -> None:
    """Write result, history and predictions under temporary names, then rename all; predictions first.

    A process that dies between two renames leaves a result that does not fit its predictions, which the gate refuses.
    """
    history = path.with_suffix(HISTORY)
    result = EvalResult.load(candidate).to_json()
    entries = [*_read_history(history), entry]
    with ExitStack() as files:
        files.enter_context(whole_file(path, _text(result)))
        files.enter_context(whole_file(history, _text(entries)))
        files.enter_context(whole_file(path.with_suffix(".npz"), candidate.with_suffix(".npz").read_bytes()))


def _read_history(path: Path) -> list[Any]:
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entries, list):
            raise ValueError(f"it holds {type(entries).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not the list `fimaq-tool gate update` keeps ({error}). Restore it, or move it away."
        ) from error
    return entries


def _text(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
