"""A .tar of images, read in place: members are found once and then read at their offset, from any thread.

timm's reader is not used here because it numbers the classes it finds; a tar of some classes would get wrong labels.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from ..errors import InputError
from .folder import Listing, is_image_name, top_folder


def list_tar(path: Path) -> Listing:
    """List the images of an uncompressed tar, and of tars within it (ImageNet's training set: one a class).

    An image's class folder is the first folder of its path, below a folder that everything lies in, if there is one.
    Raises InputError when the file is not a readable, uncompressed tar or holds no images.
    """
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            members = sorted(_members(archive, "", 0))
    except (OSError, tarfile.TarError) as error:
        raise InputError(
            f"{path} cannot be read as a tar ({error}); wanted an uncompressed tar of images. Unpack it and give the "
            "folder as --data."
        ) from error
    if not members:
        raise InputError(f"{path} holds no images; wanted class folders of images. Give another --data.")
    names = tuple(name for name, _, _ in members)
    common = _common_folder(names)

    def read(index: int) -> bytes:
        name, offset, size = members[index]
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) != size:
            raise OSError(f"{path} ends before {name} does")
        return data

    def class_folder(name: str) -> str:
        return top_folder(name.removeprefix(common))

    folders = tuple(sorted({class_folder(name) for name in names} - {""}))
    return Listing(str(path), names, folders, class_folder, read)


def _members(archive: tarfile.TarFile, prefix: str, base: int) -> Iterator[tuple[str, int, int]]:
    """Name, offset in the outermost file and size (bytes) of each image."""
    for member in archive:
        name = str(PurePosixPath(prefix + member.name))
        if not member.isfile() or member.issparse():
            continue
        if name.endswith(".tar") and not prefix:
            inner: IO[bytes] | None = archive.extractfile(member)
            assert inner is not None  # a regular file
            with inner, tarfile.open(fileobj=inner, mode="r:") as nested:
                yield from _members(nested, name.removesuffix(".tar") + "/", member.offset_data)
        elif is_image_name(os.path.basename(name)):
            yield name, base + member.offset_data, member.size


def _common_folder(names: tuple[str, ...]) -> str:
    """The folder that everything lies in, as "name/", where it in turn holds folders; else ""."""
    top = top_folder(names[0])
    inside = top and all(name.startswith(top + "/") for name in names)
    return f"{top}/" if inside and all(top_folder(name.removeprefix(top + "/")) for name in names) else ""
