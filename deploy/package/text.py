"""Text of a package's files: templates in ``templates/``, filled with values that are checked or quoted first."""

from __future__ import annotations

import re
from importlib.metadata import version
from importlib.resources import files
from string import Template

from fimaq.toolchain.errors import UsageError

VERSION = version("fimaq-tool")

SERVE_IMAGE = f"fimaq-tool-serve:{VERSION}"
"""What the Dockerfile's ``serve`` stage is called where nothing else is said."""

_IMAGE = r"[A-Za-z0-9][A-Za-z0-9._/:@-]*"


def fill(template: str, **values: object) -> str:
    """The template of that name with every ``$value`` put in; raises KeyError for one that was not given."""
    text = files(__package__).joinpath("templates", template).read_text(encoding="utf-8")
    return Template(text).substitute(version=VERSION, **values)


def check(option: str, value: str, pattern: str, wanted: str) -> None:
    """Raise UsageError for a value that would be something else in the file it goes into."""
    if not re.fullmatch(pattern, value):
        raise UsageError(f"--{option} is {value!r}; wanted {wanted}. Correct it or leave it out.")


def check_image(value: str) -> None:
    """Raise UsageError for what is no name of a container image."""
    check("image", value, _IMAGE, "the name of an image, as in registry/name:tag")
