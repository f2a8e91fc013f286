"""The run folder: manifest.json, tensors.safetensors and whatever log goes with them. numpy only, no torch.

A folder appears whole or not at all, and is read only if its content still has the hash it was saved with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self, final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from .errors import InputError
from .files import check_free_folder, whole_folder

FORMAT_VERSION = 1
MANIFEST, TENSORS, LOG = "manifest.json", "tensors.safetensors", "log.jsonl"
HASHED = ("recipe", "model", "layers", "preprocessing", "classes")
"""Manifest keys that decide what the model computes; timings, losses, environment and paths are left out."""


@final
@dataclass(frozen=True)
class Artifact:
    """One quantized model: its manifest (plain JSON values) and its tensors by name."""

    manifest: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]

    def content_sha256(self) -> str:
        """SHA-256 over the ``HASHED`` manifest keys and every tensor's name, dtype, shape and bytes."""
        digest = hashlib.sha256()
        described = {key: self.manifest.get(key) for key in HASHED}
        digest.update(json.dumps(described, sort_keys=True, separators=(",", ":")).encode())
        for name in sorted(self.tensors):
            array = self.tensors[name]
            little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
            digest.update(f"\0{name}\0{little.dtype.str}\0{list(little.shape)}\0".encode())
            digest.update(little.tobytes())
        return digest.hexdigest()

    def save(self, folder: Path, force: bool = False, files: Mapping[str, bytes] | None = None) -> Self:
        """Write the folder and return the artifact as saved (with format_version, tool_version and sha256).

        ``files`` (name in the folder -> content) go in with it, as ``{"log.jsonl": b"..."}``.
        Raises InputError where the folder exists (see ``check_destination``) or cannot be written; then nothing of
        it is left.
        """
        folder = check_destination(folder, force)
        stamp = {"format_version": FORMAT_VERSION, "tool_version": version("fimaq-tool")}
        manifest = {**stamp, **self.manifest, "format_version": FORMAT_VERSION, "sha256": self.content_sha256()}
        arrays = {name: np.asarray(tensor, order="C") for name, tensor in self.tensors.items()}
        try:
            with whole_folder(folder) as written:
                (written / TENSORS).write_bytes(save_tensors(arrays))
                (written / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
                for name, content in (files or {}).items():
                    (written / name).write_bytes(content)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"run folder {folder} could not be written ({error}); it is as it was, and finished blocks are kept. "
                "Free some space, then --resume; or give a writable folder with -o."
            ) from error
        return type(self)(manifest, self.tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a run folder.

        Raises InputError where it is missing, incomplete, corrupt, changed since it was saved, or written by a newer
        version.
        """
        manifest = read_manifest(folder)
        path = folder / TENSORS
        try:
            tensors = load_tensors(path.read_bytes())
        except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{path} is missing or corrupt ({error}). Copy the run folder again or quantize again."
            ) from error
        artifact = cls(manifest, tensors)
        found = artifact.content_sha256()
        if found != manifest["sha256"]:
            raise InputError(
                f"run folder {folder} was changed after it was saved: its content has sha256 {found}, "
                f"its manifest says {manifest['sha256']}. Copy it again, or run `fimaq-tool quantize` again."
            )
        return artifact


def check_destination(folder: Path, force: bool) -> Path:
    """The resolved folder a run may be saved to; call it before hours of work, too.

    An absent or empty folder is fine. ``force`` replaces an earlier run, never a folder that is something else or that
    somebody has put other files into. Raises InputError otherwise.
    """
    return check_free_folder(
        folder, "run folder", force, lambda found: {MANIFEST, TENSORS, LOG} if (found / MANIFEST).is_file() else None
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest alone, without reading the tensors. Raises InputError as ``Artifact.load`` does."""
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(
            f"{folder} is not a run folder: it has no {MANIFEST}. Give the -o folder of `fimaq-tool quantize`."
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON ({error}). Copy the run folder again.") from error
    found = manifest.get("format_version") if isinstance(manifest, dict) else None
    if not isinstance(found, int):
        raise InputError(f"{path} has no format_version, so it is not a fimaq manifest. Give a run folder.")
    if found > FORMAT_VERSION:
        raise InputError(
            f"run folder {folder} has format version {found}; this fimaq-tool reads up to {FORMAT_VERSION}. "
            "Upgrade it: pip install --upgrade fimaq-tool."
        )
    missing = [key for key in (*HASHED, "sha256") if key not in manifest]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}. Copy the run folder again.")
    return dict(manifest)
