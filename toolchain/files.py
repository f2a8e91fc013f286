"""Output files and folders appear whole, under their name, or not at all."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError


def check_free(out: Path, force: bool, option: str = "-o") -> None:
    """Raise InputError for an output, given by ``option``, that exists (unless ``force``) or cannot be a file there."""
    if out.is_dir():
        raise InputError(f"{out} is a folder; wanted the name of a file. Give {option} FILE.")
    if out.exists() and not force:
        raise InputError(f"{out} exists. Give another {option}, or --force to replace it.")
    check_writable(out, option)


def check_writable(out: Path, option: str = "-o") -> None:
    """Raise InputError where no file can be made beside ``out``, or in what is there of the folders above it."""
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"{out} cannot be written: {folder}: {error.strerror}. Free some space or give another {option}."
        ) from error


@contextmanager
def whole_file(out: Path, content: bytes) -> Iterator[Path]:
    """Write ``content`` under a temporary name beside ``out``; rename it when the context ends without an error."""
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"{out} cannot be written ({error}). Free some space or give another -o.") from error
        yield temporary
        temporary.replace(out)
    finally:
        with suppress(OSError):  # gone, or never there
            temporary.unlink()


def write_whole(out: Path, content: bytes) -> None:
    """Write a file that needs no check; raises InputError where it cannot be written."""
    with whole_file(out, content):
        pass


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill; it takes the place of ``folder`` when the context ends without an error.

    What was there is kept aside until then. Raises OSError, which the caller puts into words.
    """
    folder = folder.resolve()
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in temporary.rglob("*"):
            _synchronise(path)
        _put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(*outputs: Path) -> None:
    """Remove temporary folders and files that a killed process left of ``outputs``, which nobody writes now.

    What was kept aside while an output was being replaced takes its name again where the new one did not.
    """
    for out in outputs:
        pattern = re.compile(rf"\.?{re.escape(out.name)}\.[0-9a-f]{{8}}\.(tmp|old)")
        for path in out.parent.glob("*") if out.parent.is_dir() else ():
            if found := pattern.fullmatch(path.name):
                if found[1] == "old" and not out.exists():
                    path.rename(out)
                elif path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def _synchronise(path: Path) -> None:
    """Have the system write a file out before its folder gets its name."""
    if path.is_file():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _put_in_place(temporary: Path, folder: Path) -> None:
    if not folder.exists() or not any(folder.iterdir()):
        temporary.rename(folder)
        return
    earlier = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.old")
    folder.rename(earlier)
    try:
        temporary.rename(folder)
    except OSError:
        earlier.rename(folder)
        raise
    shutil.rmtree(earlier, ignore_errors=True)
