"""Output files and folders appear whole, under their name, or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

MOST_NAMED = 5
"""Files that a message names."""

LONGEST_SUFFIX = 30
"""Characters that temporary names of an output have more than its own."""


def check_free(out: Path, force: bool, option: str = "-o") -> None:
    """Raise InputError for an output, given by ``option``, that exists (unless ``force``) or cannot be a file there."""
    check_writable(out, option)
    if out.is_dir():
        raise InputError(f"{out} is a folder; wanted the name of a file. Give {option} FILE.")
    if out.exists() and not force:
        raise InputError(f"{out} exists. Give another {option}, or --force to replace it.")


def check_free_folder(folder: Path, kind: str, force: bool, files_of: Callable[[Path], Collection[str] | None]) -> Path:
    """The resolved folder, which may become a ``kind`` ("run folder"): absent, empty, or with ``force`` an earlier one.

    ``files_of`` says which files belong to a folder of that kind, by their POSIX paths in it, and None of any other.
    Raises InputError for a folder that is something else or holds other files too, and where none can be made.
    """
    folder = check_folder(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return folder
    if (ours := files_of(folder)) is None:
        raise InputError(f"{folder} exists and is not a {kind}; it is never overwritten. Give another -o.")
    if not force:
        raise InputError(f"{kind} {folder} exists. Give another -o, or --force to replace it.")
    if others := sorted(_files(folder) - set(ours)):
        named = ", ".join(others[:MOST_NAMED]) + (f" and {len(others) - MOST_NAMED} more" * (len(others) > MOST_NAMED))
        raise InputError(
            f"{kind} {folder} holds files that are not its own and would be lost: {named}. Move them elsewhere, or "
            "give another -o."
        )
    return folder


def check_folder(folder: Path) -> Path:
    """The folder with links followed. Raises InputError where none can be made under that name."""
    try:
        folder = folder.resolve()
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError before Python 3.13
        raise InputError(f"{folder} cannot be written ({error}). Give another -o.") from error
    check_writable(folder)
    return folder


def check_writable(out: Path, option: str = "-o") -> None:
    """Raise InputError where no file can be made beside ``out``, or in what is there of the folders above it.

    Its name has to leave room for that of a temporary file.
    """
    place = out.absolute()
    if not place.name:
        raise InputError(f"{out} has no name of its own; wanted a place below it. Give another {option}.")
    folder = place.parent
    try:
        folder = next(parent for parent in place.parents if parent.exists())
        with suppress(FileNotFoundError, NotADirectoryError):
            place.with_name(place.name + "." * LONGEST_SUFFIX).lstat()
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        space = "Free some space or give" if error.errno in NO_SPACE else "Give"
        raise InputError(f"{out} cannot be written: {folder}: {error.strerror}. {space} another {option}.") from error


def unreadable(path: Path, error: OSError | None = None) -> InputError:
    """For a path that this user may not read."""
    user = f"user {os.getuid()}" if hasattr(os, "getuid") else "this user"
    reason = os.strerror(errno.EACCES) if error is None else error.strerror
    return InputError(f"{path} cannot be read by {user} ({reason}). Give that user access to it, or run as its owner.")


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


def _files(folder: Path) -> set[str]:
    """Everything in it that is no folder, by POSIX path."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in found}


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
