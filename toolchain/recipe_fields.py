"""How a recipe field is declared and checked: its range sits in its annotation, the check reads it from there."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, Literal, final, get_args, get_origin, get_type_hints

from .errors import UsageError
from .spec import MAX_BITS, MIN_BITS

OPTION_OF = {
    "weights.bits": "--wbits",
    "activations.bits": "--abits",
    "fisher.kind": "--fisher",
    "fisher.rank": "--rank",
    "calibrate.samples": "--calib-samples",
    "fisher.samples": "--fisher-samples",
    "reconstruct.samples": "--recon-samples",
    "reconstruct.iterations": "--iters",
    "reconstruct.batch_size": "--batch-size",
    "seed": "--seed",
}
"""The command-line option that sets a field, for messages."""


@final
@dataclass(frozen=True)
class Range:
    """Bounds of a number; ``above`` excludes the lower bound itself."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value lies inside (NaN and infinities never do)."""
        above = value > self.low if self.above else value >= self.low
        return above and value <= min(self.high, sys.float_info.max)

    def __str__(self) -> str:
        """The bounds in words, as in ``from 2 to 8``."""
        if self.low == self.high:
            return f"equal to {self.low}"
        if self.high == math.inf:
            return f"above {self.low}" if self.above else f"of {self.low} or more"
        return f"above {self.low} and up to {self.high}" if self.above else f"from {self.low} to {self.high}"


Bits = Annotated[int, Range(MIN_BITS, MAX_BITS)]
Count = Annotated[int, Range(1)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
CountOrZero = Annotated[int, Range(0)]
Share = Annotated[float, Range(0, 1)]
Weight = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, above=True)]


def nearest(name: object, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for a near miss, else nothing."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def refuse(field: str, got: object, wanted: str) -> UsageError:
    """The error for one field: its name (and option, if it has one), what was got, what is wanted."""
    option = f" ({OPTION_OF[field]})" if field in OPTION_OF else ""
    return UsageError(f"recipe field {field}{option}: got {got!r}, wanted {wanted}.")


def refuse_beside(field: str, got: int, limit: int, why: str, limited_by: str) -> UsageError:
    """The error for one field that another one limits; it may be that only the other one was typed."""
    lower = f"Lower it too: {OPTION_OF[field]} {limit}, or raise {OPTION_OF[limited_by]}."
    return UsageError(f"{refuse(field, got, f'at most {why}')} {lower}")


@dataclass(frozen=True)
class Checked:
    """Abstract base of the recipe's tables: every field is checked against its annotation when made."""

    table: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Raise UsageError for the first field of the wrong type, choice or range; integers become floats where due."""
        hints = get_type_hints(type(self), include_extras=True)
        for field in fields(self):
            name = f"{self.table}.{field.name}" if self.table else field.name
            object.__setattr__(self, field.name, checked(name, getattr(self, field.name), hints[field.name]))
        self.check_together()

    def check_together(self) -> None:
        """Raise UsageError where fields that are fine alone cannot be meant together; nothing by default."""


def checked(name: str, value: object, hint: object) -> object:
    """The value as its annotation wants it, or UsageError."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise refuse(name, value, f"one of {', '.join(get_args(hint))}")
        return value
    bounds = Range()
    if get_origin(hint) is Annotated:
        hint, bounds = get_args(hint)
    if hint is int or hint is float:
        return _number(name, value, hint, bounds)
    if not isinstance(hint, type) or not isinstance(value, hint):
        raise refuse(name, value, "text" if hint is str else "true or false" if hint is bool else "a table")
    return value


def _number(name: str, value: object, kind: type[int] | type[float], bounds: Range) -> int | float:
    if (type(value) is int or (kind is float and type(value) is float)) and bounds.holds(value):
        return kind(value)
    raise refuse(name, value, f"{'an integer' if kind is int else 'a number'} {bounds}")
