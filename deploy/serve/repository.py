"""Which models lie on disk: one ONNX file, a folder of them, or Triton's layout of numbered versions."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from fimaq.toolchain.artifact import MANIFEST
from fimaq.toolchain.errors import InputError, UsageError
from fimaq.toolchain.files import unreadable

log = logging.getLogger(__name__)

FIRST = "1"
"""The version of a model that lies in no numbered folder."""

MODEL_FILE = "model.onnx"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
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
    ``<model>.onnx``, or both. The log names what else looks like a model and is left out; names that begin with a dot
    are passed over. ``name`` renames the model of a single file. The ``newest`` versions of each model count.
    """

    source: Path
    name: str | None = None
    newest: int = 1

    def scan(self) -> tuple[ModelFile, ...]:
        """Every version to serve, by name and version.

        Raises InputError for a source that is missing or holds no model, UsageError for a name that cannot stand in a
        path.
        """
        try:
            return self._found()
        except PermissionError as error:
            raise unreadable(self.source if error.filename is None else Path(error.filename), error) from error

    def _found(self) -> tuple[ModelFile, ...]:
        if self.source.is_dir():
            if self.name is not None:
                raise UsageError(f"--name is for a single file; got the folder {self.source}. Leave --name out.")
            found = tuple(self._folder())
            if not found:
                run = "; it is a run of `fimaq-tool quantize`, which `fimaq-tool export` makes a file of"
                raise InputError(
                    f"{self.source} holds no models{run if (self.source / MANIFEST).is_file() else ''}; wanted "
                    f"<model>/<version>/{MODEL_FILE} or <model>.onnx in it. Give another folder, or one ONNX file."
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
            if item.name.startswith("."):
                continue
            if item.is_dir():
                yield from self._versions(item)
            elif item.suffix == ".onnx":
                if not _NAME.fullmatch(item.stem):
                    _leave_out(item, f"its name is no model's: wanted {_NAME.pattern}")
                elif (self.source / item.stem).is_dir():
                    _leave_out(item, "a folder has the same name")
                else:
                    yield ModelFile(item.stem, FIRST, item, _stamp([item]))

    def _versions(self, model: Path) -> Iterator[ModelFile]:
        """The newest versions in a model's folder; Triton has files of its own beside them."""
        if not _NAME.fullmatch(model.name):
            _leave_out(model, f"its name is no model's: wanted {_NAME.pattern}")
            return
        numbered = []
        for version in sorted(model.iterdir()):
            if version.name.startswith(".") or not version.is_dir():
                continue
            if not _VERSION.fullmatch(version.name):
                _leave_out(version, "its name is no version: wanted a whole number from 1 up")
            elif not (version / MODEL_FILE).is_file():
                _leave_out(version, f"it holds no {MODEL_FILE}")
            else:
                numbered.append((int(version.name), version))
        if not numbered:
            _leave_out(model, f"it holds no <version>/{MODEL_FILE}")
        for number, version in sorted(numbered)[-self.newest :]:
            yield ModelFile(model.name, str(number), version / MODEL_FILE, _stamp(version.iterdir()))


def _leave_out(path: Path, reason: str) -> None:
    log.warning("ignored", extra={"fields": {"path": str(path), "reason": reason}})


def _stamp(files: Iterator[Path] | list[Path]) -> tuple[tuple[str, int, int, int], ...]:
    """Name, inode, size and time of each file."""
    found = ((path.name, os.stat(path)) for path in files if path.is_file())
    return tuple(sorted((name, status.st_ino, status.st_size, status.st_mtime_ns) for name, status in found))
