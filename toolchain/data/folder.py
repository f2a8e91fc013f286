"""A folder of images: what lies in it, in an order no file system decides."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from ..errors import InputError
from .images import IMAGE_SUFFIXES


@final
@dataclass(frozen=True)
class Listing:
    """What a folder or archive holds.

    ``names`` are the images' relative posix paths, sorted; ``class_folders`` the names of the folders right below the
    top (also empty ones: they count as classes). ``class_folder(name)`` is the one an image lies in, "" for none.
    """

    source: str
    names: tuple[str, ...]
    class_folders: tuple[str, ...]
    class_folder: Callable[[str], str]
    read: Callable[[int], bytes]


def top_folder(name: str) -> str:
    """First component of a relative path that has one, else ""."""
    folder, slash, _ = name.partition("/")
    return folder if slash else ""


def is_image_name(name: str) -> bool:
    """Whether a file name is taken for an image: hidden files (macOS leaves ``._x.jpg`` about) are not."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def list_folder(root: Path) -> Listing:
    """List a folder, following links.

    Raises InputError when it is missing, not a folder, unreadable or holds no images.
    """
    if not root.is_dir():
        raise InputError(
            f"{root} is {'a file' if root.exists() else 'not there'}; wanted a folder of images, a .tar, or a name "
            "such as hfds/OWNER/NAME. Give another --data."
        )
    files = [file.relative_to(root).as_posix() for file in _files(root, frozenset())]
    names = tuple(sorted(name for name in files if is_image_name(os.path.basename(name))))
    if not names:
        raise InputError(
            f"{root} holds no images ({len(files)} other files); wanted {' '.join(sorted(IMAGE_SUFFIXES))} files, in "
            "folders named by class or with --labels FILE. Give another --data."
        )
    tops = tuple(sorted(item.name for item in root.iterdir() if item.is_dir() and not item.name.startswith(".")))
    return Listing(str(root), names, tops, top_folder, lambda index: (root / names[index]).read_bytes())


def _files(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    """Every file below ``folder``, following links but not one that leads back to a folder it lies in (``above``)."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        with os.scandir(folder) as scan:
            entries = [entry for entry in scan if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(
            f"{error.filename} cannot be read ({error.strerror}); wanted a readable folder of images. "
            "Correct its permissions or give another --data."
        ) from error
    for entry in entries:
        if entry.is_dir():
            yield from _files(Path(entry.path), above | {real})
        else:
            yield Path(entry.path)
