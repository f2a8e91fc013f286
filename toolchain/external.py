"""The file beside an ONNX file that holds its weights, where they are too large for one protobuf. No torch.

Which file that is, its size and its hash stand in the ONNX file's metadata (``fimaq.data``). So the hash of the ONNX
file stands for both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self, final

from .errors import InputError

DATA = "fimaq.data"
"""Key of the file's metadata_props."""


@final
@dataclass(frozen=True)
class DataFile:
    """A file of weights in the ONNX file's folder: its name, size and SHA-256."""

    file: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path, metadata: Mapping[str, str]) -> Self | None:
        """What the ONNX file at ``path`` says in its ``metadata``; None where all weights are inside."""
        if DATA not in metadata:
            return None
        try:
            found = cls(**json.loads(metadata[DATA]))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: its metadata {DATA} cannot be read ({error}). Export it again.") from error
        if Path(found.file).name != found.file:
            raise InputError(f"{path} keeps weights in {found.file!r}; wanted a file in its folder. Export it again.")
        return found

    def to_json(self) -> str:
        """The value of ``fimaq.data``."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    def require_beside(self, path: Path) -> Path:
        """Where it lies; raises InputError where it is missing or of another size."""
        data = path.parent / self.file
        if not data.is_file():
            raise InputError(
                f"{path} keeps its weights in {self.file}, which is not in {path.parent}. Copy both files together."
            )
        if (size := data.stat().st_size) != self.bytes:
            raise InputError(
                f"{data} has {size} bytes and {path.name} wants {self.bytes}: it was cut off or is another file's. "
                "Copy both files again."
            )
        return data

    def require_content(self, path: Path) -> None:
        """Raises InputError where the file beside ``path`` is missing, cut off or changed. Reads all of it."""
        data = self.require_beside(path)
        with data.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self.sha256:
                raise InputError(
                    f"{data} does not belong to {path.name}: its SHA-256 is another. Copy both files again."
                )


def read_data_file(path: Path) -> DataFile | None:
    """``DataFile.of`` without a session; None for a file that is no ONNX file either."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        return None
    return DataFile.of(path, {entry.key: entry.value for entry in model.metadata_props})


def stored_bytes(path: Path, metadata: Mapping[str, str]) -> int:
    """Size of an ONNX file and of its weights beside it."""
    data = DataFile.of(path, metadata)
    return path.stat().st_size + (0 if data is None else data.bytes)
