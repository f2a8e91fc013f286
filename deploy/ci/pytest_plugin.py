"""Pytest plugin: the fixture ``accuracy_gate``, for a team that gates inside its tests.

Pytest loads it in every project of an environment that has this tool, so it imports nothing until the fixture is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from fimaq.deploy.gate import GateConfig, GateReport


@pytest.fixture
def accuracy_gate() -> Callable[..., GateReport]:
    """A function that fails the test unless a result holds against its baselines."""
    return check_accuracy


def check_accuracy(
    candidate: Path | str,
    *,
    config: Path | str | None = None,
    baselines: Mapping[str, Path | str] | None = None,
    max_drop: float | None = None,
    on_inconclusive: Literal["fail", "skip"] = "fail",
) -> GateReport:
    """Return the report on a candidate that passes, and fail the test of one that does not.

    ``candidate`` is the RESULT.json of `fimaq-tool evaluate -o`, ``config`` a gate.toml. ``baselines``, results by
    name, and ``max_drop``, points of top-1, override what it says. Evidence that is missing, damaged or of other images
    fails the test. ``on_inconclusive="skip"`` skips it where the images are too few to decide. The
    report's warnings become Python's.
    """
    __tracebackhide__ = True
    from fimaq.deploy.gate import run_gate
    from fimaq.deploy.gate.outputs import text
    from fimaq.deploy.gate.outputs.advice import advice
    from fimaq.toolchain.errors import FimaqError

    try:
        rules = _configured(config, baselines or {}, max_drop)
        report = run_gate(Path(candidate), rules, configured=config is not None)
    except FimaqError as error:
        raise pytest.fail.Exception(f"accuracy gate: {error}", pytrace=False) from None
    for warning in report.warnings:
        warnings.warn(f"accuracy gate: {warning}", stacklevel=2)
    if report.verdict == "inconclusive" and on_inconclusive == "skip":
        pytest.skip(f"accuracy gate: inconclusive. {advice(report)}")
    if report.verdict != "pass":
        pytest.fail(text(report), pytrace=False)
    return report


def _configured(config: Path | str | None, baselines: Mapping[str, Path | str], max_drop: float | None) -> GateConfig:
    from fimaq.deploy.gate import GateConfig, load_config

    loaded = GateConfig() if config is None else load_config(Path(config))
    return loaded.with_options(baselines={name: Path(path) for name, path in baselines.items()}, max_drop=max_drop)
