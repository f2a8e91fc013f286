"""JUnit XML: a test case per rule, for whatever shows test results."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from ..report import GateReport, RuleResult
from .quantities import change, interval, limit, value

NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML 1.0 document can hold, escaped or not."""


def junit(report: GateReport) -> str:
    """The report as a document with one suite, named after the candidate.

    A failed rule is a ``failure``. An inconclusive one is an ``error``, JUnit's word for a test that came to no
    result: a viewer then counts the two apart, and both turn the suite red. A rule that is not blocking is ``skipped``
    unless it passes. Warnings are the suite's ``system-out``. There are no times, so equal reports give equal text.
    """
    root = ElementTree.Element("testsuites", name="accuracy gate")
    suite = ElementTree.SubElement(root, "testsuite", name=_xml(report.candidate.model))
    properties = ElementTree.SubElement(suite, "properties")
    for name, found in _properties(report).items():
        ElementTree.SubElement(properties, "property", name=name, value=_xml(str(found)))
    for rule in report.rules:
        case = ElementTree.SubElement(
            suite, "testcase", classname=_xml(report.candidate.model), name=_xml(rule.title), time="0"
        )
        tag = _outcome(rule)
        if tag is not None:
            details = ElementTree.SubElement(case, tag, type=rule.verdict, message=_xml(rule.message))
            details.text = _xml(f"{rule.message}\n{_numbers(rule)}")
    if report.warnings:
        ElementTree.SubElement(suite, "system-out").text = _xml("\n".join(report.warnings))
    for element in (root, suite):
        element.attrib |= _counts(report)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _outcome(rule: RuleResult) -> str | None:
    """The element that says what became of a test case; none for one that passed."""
    if rule.verdict == "pass":
        return None
    if not rule.blocking:
        return "skipped"
    return {"fail": "failure", "inconclusive": "error"}[rule.verdict]


def _numbers(rule: RuleResult) -> str:
    return (
        f"baseline {value(rule.baseline, rule.unit)}, candidate {value(rule.candidate, rule.unit)}, "
        f"change {change(rule)}, interval {interval(rule)}, limit {limit(rule)}"
    )


def _counts(report: GateReport) -> dict[str, str]:
    outcomes = [_outcome(rule) for rule in report.rules]
    return {
        "tests": str(len(outcomes)),
        "failures": str(outcomes.count("failure")),
        "errors": str(outcomes.count("error")),
        "skipped": str(outcomes.count("skipped")),
    }


def _properties(report: GateReport) -> dict[str, object]:
    every = {
        "verdict": report.verdict,
        "n": report.n,
        "policy": report.policy,
        "confidence": report.confidence,
        "fixed": report.flips and report.flips.fixed,
        "broken": report.flips and report.flips.broken,
        "mcnemar_p": report.mcnemar_p,
        "images_needed": report.images_needed,
    }
    return {name: found for name, found in every.items() if found is not None}


def _xml(text: str) -> str:
    return NOT_XML.sub("\ufffd", text)
