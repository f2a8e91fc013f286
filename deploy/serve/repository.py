"""Which models lie on disk: one ONNX file, a folder of them, or Triton's layout of numbered versions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from fimaq.toolchain.errors import InputError, UsageError

FIRST = "1"
"""The version of a model that lies in no numbered folder."""

MODEL_FILE = "model.onnx"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ODD = re.compile(r"[^A-Za-z0-9._-]+")


@final
@dataclass(frozen=True)
class ModelFile:
    """One version of one model. ``stamp`` is another one when any file beside it changes."""

    name: str
    version: str
    path: Path
    stamp: tuple[tuple[str, int, int, int], ...]


@final
@dataclass(frozen=True)
class Repository:
    """The place models come from; it is read again whenever it is asked.

    ``source`` is an ONNX file, or a folder that holds ``<model>/<version>/model.onnx`` (versions are whole numbers),
    ``<model>.onnx``, or both. ``name`` renames the model of a single file. The ``newest`` versions of each model count.
    """

    source: Path
    name: str | None = None
    newest: int = 1

    def scan(self) -> tuple[ModelFile, ...]:
        """Every version to serve, by name and version.

        Raises InputError for a source that is missing or holds no model, UsageError for a name that cannot stand in a
        path.
        """
        if self.source.is_dir():
            if self.name is not None:
                raise UsageError(f"--name is for a single file; got the folder {self.source}. Leave --name out.")
            found = tuple(self._folder())
            if not found:
                raise InputError(
                    f"{self.source} holds no models; wanted <model>/<version>/{MODEL_FILE} or <model>.onnx in it. "
                    "Give another folder, or one ONNX file."
                )
            return found
        name = self.name or _ODD.sub("-", self.source.stem).strip("-._")
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"the model's name is {name!r}; wanted letters, digits, '.', '_' and '-', a letter or digit first. "
                "Give it with --name."
            )
        if not self.source.is_file():
            raise InputError(
                f"{self.source} is not there; wanted an ONNX file or a folder of them. "
                "Write one with fimaq-tool export RUN -o MODEL.onnx."
            )
        return (ModelFile(name, FIRST, self.source, _stamp([self.source])),)

    def _folder(self) -> Iterator[ModelFile]:
        for item in sorted(self.source.iterdir()):
            if item.is_dir() and _NAME.fullmatch(item.name):
                numbered = sorted(
                    (int(version.name), version)
                    for version in item.iterdir()
                    if re.fullmatch(r"[1-9][0-9]{0,17}", version.name) and (version / MODEL_FILE).is_file()
                )
                for number, version in numbered[-self.newest :]:
                    yield ModelFile(item.name, str(number), version / MODEL_FILE, _stamp(version.iterdir()))
            elif item.suffix == ".onnx" and _NAME.fullmatch(item.stem) and not (self.source / item.stem).is_dir():
                yield ModelFile(item.stem, FIRST, item, _stamp([item]))


def _stamp(files: Iterator[Path] | list[Path]) -> tuple[tuple[str, int, int, int], ...]:
    """Name, inode, size and time of each file."""
    found = ((path.name, os.stat(path)) for path in files if path.is_file())
    return tuple(sorted((name, status.st_ino, status.st_size, status.st_mtime_ns) for name, status in found))
