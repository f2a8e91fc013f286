"""Bearer keys: who may use the server."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Self, final

from fimaq.toolchain.errors import InputError
from fimaq.toolchain.files import unreadable

from .errors import Unauthenticated

SHORTEST = 16


@final
class Keys:
    """The keys of a file, one a line; empty lines and those that start with ``#`` are left out.

    Raises InputError for a file that cannot be read, holds no key or one shorter than 16 characters.
    """

    def __init__(self, path: Path) -> None:
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except PermissionError as error:
            raise unreadable(path, error) from error
        except (OSError, ValueError) as error:
            raise InputError(f"keys {path} cannot be read ({error}); wanted a text file. Correct --keys.") from error
        keys = [line for line in lines if line and not line.startswith("#")]
        if not all(key.isascii() for key in keys):
            raise InputError(
                f"keys {path} holds a character that no header can carry; wanted ASCII. openssl rand -hex 32."
            )
        if not keys or min(map(len, keys)) < SHORTEST:
            found = f"a key of {min(map(len, keys))} characters" if keys else "no key"
            raise InputError(
                f"keys {path} holds {found}; wanted at least one, each of {SHORTEST} characters or more. "
                "Make one: openssl rand -hex 32."
            )
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def read(cls, path: Path | None) -> Self | None:
        """The keys of a file, None for none."""
        return None if path is None else cls(path)

    def check(self, authorization: str | None) -> None:
        """Raise Unauthenticated unless the header is ``Bearer`` and a known key.

        Every key is compared, each in constant time, so that the time tells nothing.
        """
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        known = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(known):
            raise Unauthenticated("wanted the header Authorization: Bearer KEY with a key this server knows.")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
