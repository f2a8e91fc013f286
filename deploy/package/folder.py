"""A package is a folder that appears whole or not at all, and says which files belong to it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fimaq.toolchain.errors import InputError
from fimaq.toolchain.files import check_free_folder, whole_folder

MANIFEST = "fimaq-package.json"

Files = Mapping[str, str | Path]
"""Path in the package, in POSIX form -> its text, or the file to copy."""


def check_destination(folder: Path, force: bool) -> None:
    """Raise InputError where a package cannot be written; call it before the model is read, too.

    An absent or empty folder is fine. ``force`` replaces an earlier package, never a folder that is something else or
    that somebody has put other files into.
    """
    check_free_folder(folder, "package", force, _files_of)


def write_package(folder: Path, files: Files, manifest: Mapping[str, Any], force: bool) -> dict[str, str]:
    """Write every file, and the manifest with their hashes; return path -> SHA-256.

    Raises InputError where the folder exists or cannot be written; then it is as it was.
    """
    check_destination(folder, force)
    try:
        with whole_folder(folder) as written:
            hashes = {name: _write(written / name, content) for name, content in files.items()}
            _write(written / MANIFEST, json.dumps({**manifest, "files": hashes}, indent=1) + "\n")
    except OSError as error:
        raise InputError(
            f"package {folder} cannot be written ({error}); it is as it was. Free some space or give another -o."
        ) from error
    return hashes


def _files_of(folder: Path) -> set[str] | None:
    """The files of an earlier package; None where its manifest is missing or damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return {MANIFEST, *manifest["files"]}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write(path: Path, content: str | Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        path.write_text(content, encoding="utf-8")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
