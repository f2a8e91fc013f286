"""How a key of gate.toml is declared and checked: its annotation holds a reader, which returns or refuses a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Self, get_args, get_type_hints

from fimaq.toolchain.errors import UsageError
from fimaq.toolchain.recipe_fields import Range, nearest

from .report import Policy

Limit = float | Mapping[str, float]
"""One limit for every baseline, or one for each baseline that is named."""

Reader = Callable[[str, object], Any]
"""Takes a key's full name and what was given."""

OPTION_OF = {"policy": "--policy", "confidence": "--confidence", "top1.max_drop": "--max-drop"}
"""The command-line option that sets a key, for messages."""


def refuse(name: str, got: object, wanted: str) -> UsageError:
    """The error for one key: its name (and option, if it has one), what was got, what is wanted."""
    option = f" ({OPTION_OF[name]})" if name in OPTION_OF else ""
    return UsageError(f"gate rule {name}{option}: got {got!r}, wanted {wanted}.")


@dataclass(frozen=True)
class Table:
    """Abstract base of the tables of gate.toml: every key is checked when one is made."""

    def __post_init__(self) -> None:
        """Raise UsageError for the first key with a bad value."""
        for name, read in self._readers().items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, read(name, value))
        self.check_together()

    def check_together(self) -> None:
        """Raise UsageError where keys that are fine alone cannot be meant together; nothing by default."""

    @classmethod
    def read(cls, name: str, values: object) -> Self:
        """The table called ``name`` from TOML's; the whole file's name is empty.

        Raises UsageError for a key that is unknown, missing or has a bad value.
        """
        if isinstance(values, cls):
            return values
        readers = cls._readers()
        if not isinstance(values, Mapping):
            raise refuse(name, values, f"a table with {' or '.join(readers)}")
        where = f"table [{name}]" if name else "file"
        for given in values:
            if given not in readers:
                raise UsageError(
                    f"gate {where}: unknown key {given!r}.{nearest(given, readers)} Known keys: {', '.join(readers)}."
                )
        for each in fields(cls):
            if each.default is each.default_factory is MISSING and each.name not in values:
                raise UsageError(f"gate {where}: {each.name!r} is missing. Set it, or leave out the table.")
        prefix = f"{name}." if name else ""
        return cls(**{given: readers[given](prefix + given, value) for given, value in values.items()})

    @classmethod
    def _readers(cls) -> dict[str, Reader]:
        """The reader of each key."""
        return {name: _reader(hint) for name, hint in get_type_hints(cls, include_extras=True).items()}


def _reader(hint: Any) -> Reader:
    """The reader in ``Annotated[..., reader]``, or a table's own, also where the key may be None."""
    if hasattr(hint, "__metadata__"):
        read: Reader = hint.__metadata__[0]
        return read
    if isinstance(hint, type) and issubclass(hint, Table):
        return hint.read
    return _reader(get_args(hint)[0])


def number(bounds: Range) -> Reader:
    """A reader of a number."""

    def read(name: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not bounds.holds(value):
            raise refuse(name, value, f"a number {bounds}")
        return float(value)

    return read


def limit(bounds: Range) -> Reader:
    """A reader of a ``Limit``."""
    one = number(bounds)

    def read(name: str, value: object) -> Limit:
        if isinstance(value, Mapping):
            return {reference: one(f"{name}.{reference}", given) for reference, given in value.items()}
        return float(one(name, value))

    return read


def integer(name: str, value: object) -> int:
    """Read an integer above 0."""
    if type(value) is not int or value < 1:
        raise refuse(name, value, "an integer of 1 or more")
    return value


def truth(name: str, value: object) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise refuse(name, value, "true or false")
    return value


def policy(name: str, value: object) -> Policy:
    """Read the name of a policy."""
    if value not in get_args(Policy):
        raise refuse(name, value, f"one of {', '.join(get_args(Policy))}")
    return value  # type: ignore[return-value]  # mypy does not narrow to a Literal by get_args


def path(name: str, value: object) -> Path:
    """Read a file's path."""
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise refuse(name, value, "the path of a file")
    return Path(value)


def paths(name: str, value: object) -> tuple[Path, ...]:
    """Read a list of paths."""
    if not isinstance(value, list | tuple):
        raise refuse(name, value, "a list of paths")
    return tuple(path(name, each) for each in value)


def named_paths(name: str, value: object) -> dict[str, Path]:
    """Read a table of paths by name."""
    if not isinstance(value, Mapping):
        raise refuse(name, value, 'a table of paths, as in float = "float.json"')
    return {each: path(f"{name}.{each}", given) for each, given in value.items()}


PERCENT = Range(0, 100)
RATIO = Range(0, above=True)

Percent = Annotated[float, number(PERCENT)]
PercentLimit = Annotated[Limit, limit(PERCENT)]
RatioLimit = Annotated[Limit, limit(RATIO)]
Bytes = Annotated[int, integer]
Truth = Annotated[bool, truth]
PolicyName = Annotated[Policy, policy]
Confidence = Annotated[float, number(Range(0.5, 0.9999))]
Files = Annotated[tuple[Path, ...], paths]
NamedFiles = Annotated[Mapping[str, Path], named_paths]
