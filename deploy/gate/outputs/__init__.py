"""A gate report in the formats that continuous integration reads: each is a function from the report to its text."""

from . import github
from .junit_xml import junit
from .markdown_text import markdown
from .plain_text import text
from .sarif_log import sarif

__all__ = ["github", "junit", "markdown", "sarif", "text"]
