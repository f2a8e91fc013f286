"""GitHub Actions: the step summary, the step's outputs and annotations."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TextIO

from ..report import GateReport, RuleResult
from .markdown_text import markdown

Command = Literal["error", "warning", "notice"]


def publish(report: GateReport, environ: Mapping[str, str] = os.environ, stream: TextIO | None = None) -> None:
    """Tell GitHub Actions what was found; elsewhere do nothing.

    The runner reads commands from both streams of a step. They go to stderr (``stream``), since stdout is the result.
    """
    if environ.get("GITHUB_ACTIONS") != "true":
        return
    (stream or sys.stderr).write("".join(f"{line}\n" for line in commands(report)))
    if summary := environ.get("GITHUB_STEP_SUMMARY"):
        _append(summary, markdown(report) + "\n")
    if output := environ.get("GITHUB_OUTPUT"):
        _append(output, "".join(_output(name, value) for name, value in outputs(report).items()))


def commands(report: GateReport) -> list[str]:
    """A workflow command for each warning and each rule that did not pass, or one notice that all did."""
    lines = [_command("warning", "Accuracy gate", warning) for warning in report.warnings]
    lines += [
        _command(_severity(rule), f"Accuracy gate: {rule.title}", rule.message)
        for rule in report.rules
        if rule.verdict != "pass"
    ]
    if report.verdict == "pass":
        passed = f"passed on {report.n:,} images, policy {report.policy}"
        lines.append(_command("notice", "Accuracy gate", f"{report.candidate.model} {passed}"))
    return lines


def outputs(report: GateReport) -> dict[str, str]:
    """The step's outputs; empty where there is no number. ``delta`` is that of top-1 against the first baseline."""
    delta = next((rule.delta for rule in report.rules if rule.metric == "top1" and rule.delta is not None), None)
    return {
        "verdict": report.verdict,
        "n": str(report.n),
        "delta": "" if delta is None else f"{delta:.4f}",
        "images_needed": "" if report.images_needed is None else str(report.images_needed),
        "report": json.dumps(report.to_json(), allow_nan=False),
    }


def _severity(rule: RuleResult) -> Command:
    """An inconclusive rule also stops the build, but by its exit code: nothing is known to be wrong."""
    return "error" if rule.blocking and rule.verdict == "fail" else "warning"


def _command(name: Command, title: str, message: str) -> str:
    title = _data(title).replace(":", "%3A").replace(",", "%2C")
    return f"::{name} title={title}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _output(name: str, value: str) -> str:
    """The form for any value; a delimiter nobody can guess cannot be closed from inside the value."""
    delimiter = secrets.token_hex(16)
    return f"{name}<<{delimiter}\n{value}\n{delimiter}\n"


def _append(path: str, text: str) -> None:
    with Path(path).open("a", encoding="utf-8", newline="\n") as file:
        file.write(text)
