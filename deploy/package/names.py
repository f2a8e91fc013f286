"""What a model may be called where it is going."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import final

from fimaq.toolchain.errors import UsageError


@final
@dataclass(frozen=True)
class NameRule:
    """Names that match ``pattern``, at most ``longest`` characters; ``wanted`` says the same in words.

    ``odd`` matches what stands in file names and not in such names.
    """

    pattern: str
    odd: str
    longest: int
    wanted: str
    lower: bool = False

    def choose(self, name: str | None, stem: str) -> str:
        """The name as given, or one made from the file's.

        Raises UsageError for a name that breaks the rule, and for a file name that leaves none.
        """
        chosen = self._from(stem) if name is None else name
        if not re.fullmatch(self.pattern, chosen) or len(chosen) > self.longest:
            origin = "" if name is not None else " (from the file's name)"
            raise UsageError(
                f"the model's name is {chosen!r}{origin}; wanted {self.wanted}, at most {self.longest} characters. "
                "Give it with --name."
            )
        return chosen

    def _from(self, stem: str) -> str:
        return re.sub(self.odd, "-", stem.lower() if self.lower else stem).strip("-._")


PATH_NAME = NameRule(
    pattern="[A-Za-z0-9][A-Za-z0-9._-]*",
    odd="[^A-Za-z0-9._-]+",
    longest=128,
    wanted="letters, digits, '.', '_' and '-', a letter or digit first",
)
"""A folder in a model repository, and a part of a URL."""

DNS_NAME = NameRule(
    pattern="[a-z]([a-z0-9-]*[a-z0-9])?",
    odd="[^a-z0-9]+",
    longest=47,
    wanted="lower-case letters, digits and '-', a letter first and no '-' last",
    lower=True,
)
"""An InferenceService or an image. A label in DNS has 63 characters; KServe adds at most ``-predictor-00001``."""
