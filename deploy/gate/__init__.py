"""The accuracy gate: is a new model good enough, given what is known about it? Runs without torch."""

from .config import GateConfig, load_config
from .report import GateReport, RuleResult
from .run import run_gate

__all__ = ["GateConfig", "GateReport", "RuleResult", "load_config", "run_gate"]
