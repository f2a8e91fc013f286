"""``write_report``: runs and results as one page."""

from .write import write_report

__all__ = ["write_report"]
