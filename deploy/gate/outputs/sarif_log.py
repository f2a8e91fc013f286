"""SARIF 2.1.0: a result per rule that did not pass, for code scanning."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import PurePath
from typing import Any, Literal
from urllib.parse import quote

from ..report import GateReport, RuleResult

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

Level = Literal["error", "warning", "note"]


def sarif(report: GateReport) -> str:
    """The report as a log with one run.

    A failed rule is an ``error``, an inconclusive one a ``warning``, one that is not blocking a ``note``. The format's
    own kind for the undecided, ``open``, must go without a level, and code scanning then shows nothing. A result
    points at the candidate's result file. The model is part of the run's id and of each fingerprint: a report on one
    model does not close the alerts of another, and an alert keeps its identity from run to run.
    """
    rules = sorted({rule.name for rule in report.rules})
    run = {
        "tool": {
            "driver": {
                "name": "fimaq-tool gate",
                "version": version("fimaq-tool"),
                "rules": [_rule(name) for name in rules],
            }
        },
        "automationDetails": {"id": f"fimaq-tool gate/{report.candidate.model}/"},
        "invocations": [{"executionSuccessful": True}],
        "results": [_result(report, rule, rules.index(rule.name)) for rule in report.rules if rule.verdict != "pass"],
        "properties": {"verdict": report.verdict, "n": report.n, "warnings": list(report.warnings)},
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, allow_nan=False) + "\n"


def _rule(name: str) -> dict[str, Any]:
    """Code scanning wants all three texts."""
    return {
        "id": name,
        "shortDescription": {"text": f"Accuracy gate: {name}"},
        "fullDescription": {"text": f"The rule {name} of gate.toml, for the candidate's evaluation."},
        "help": {"text": f"{name} is set in gate.toml; `fimaq-tool gate init` writes one that explains each rule."},
    }


def _result(report: GateReport, rule: RuleResult, index: int) -> dict[str, Any]:
    identity = "\n".join((rule.name, rule.reference, report.candidate.model))
    return {
        "ruleId": rule.name,
        "ruleIndex": index,
        "level": _level(rule),
        "message": {"text": rule.message},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": _uri(report.candidate.path)},
                    "region": {"startLine": 1},
                }
            }
        ],
        "partialFingerprints": {"primaryLocationLineHash": hashlib.sha256(identity.encode()).hexdigest()},
        "properties": {"verdict": rule.verdict, "baseline": rule.reference},
    }


def _level(rule: RuleResult) -> Level:
    if not rule.blocking:
        return "note"
    return "error" if rule.verdict == "fail" else "warning"


def _uri(path: str) -> str:
    """A relative path as a relative reference, an absolute one as a file URI."""
    pure = PurePath(path)
    return pure.as_uri() if pure.is_absolute() else quote(pure.as_posix())
