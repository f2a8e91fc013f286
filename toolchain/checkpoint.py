"""The finished parts of an unfinished run (calibration, blocks), in a hidden folder beside it, for ``--resume``.

Random streams depend on (seed, block, step) only, so a resumed run ends with the tensors of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, final

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .artifact import MANIFEST
from .errors import InputError
from .files import write_whole

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module, elsewhere

IDENTITY = "identity.json"

CACHE_SUFFIX = ".cache"
"""Of files that a run keeps here while it lives."""


@final
@dataclass(frozen=True)
class FinishedPart:
    """A block's quantizers, its row in the manifest and its lines in log.jsonl; or the grids of a calibration."""

    tensors: Mapping[str, np.ndarray]
    row: Mapping[str, Any]
    log: list[dict[str, Any]]

    def sha256(self) -> str:
        """Of the tensors: their names, types, shapes and numbers."""
        digest = hashlib.sha256()
        for name, array in sorted(self.tensors.items()):
            digest.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
        return digest.hexdigest()


@final
class Checkpoint:
    """One safetensors file per finished part, its row and log lines in the metadata.

    ``of`` stands for what decides the result, so that a part of another run is never taken.
    """

    def __init__(self, folder: Path, of: str = "") -> None:
        self.folder = folder
        self.of = of

    def load(self, part: str) -> FinishedPart | None:
        """What a finished part left, or None if it is not finished."""
        path = self._path(part)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # safe_open is no mapping
                metadata = file.metadata()
            if metadata["of"] != self.of:
                raise InputError(
                    f"checkpoint {path} is of another run. Quantize again with --force, or with another -o."
                )
            finished = FinishedPart(tensors, json.loads(metadata["row"]), json.loads(metadata["log"]))
            if metadata["sha256"] != finished.sha256():
                raise ValueError("its numbers are not those that were written")
            return finished
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"checkpoint {path} is damaged ({error}). Remove that file and go on with --resume: only its part is "
                "done again."
            ) from error

    def save(self, part: str, finished: FinishedPart) -> None:
        """Keep a finished part; the file appears whole or not at all."""
        path = self._path(part)
        temporary = path.with_suffix(".tmp")
        try:
            words = {"row": json.dumps(finished.row), "log": json.dumps(finished.log)}
            metadata = {"of": self.of, "sha256": finished.sha256(), **words}
            content = save(dict(finished.tensors), metadata)
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"checkpoint {path} cannot be written ({error}). Free some space, then --resume."
            ) from error

    def check(self) -> None:
        """Raise InputError for a finished part that cannot be taken, before the work in front of it is done."""
        for path in sorted(self.folder.glob("*.safetensors")):
            self.load(path.stem)

    def discard(self) -> None:
        """Remove everything: the run is written, or starts anew."""
        aside = self.folder.with_name(f"{self.folder.name}.{secrets.token_hex(4)}.tmp")
        with suppress(OSError):  # there is none
            self.folder.rename(aside)  # at once, so that a kill never leaves a part of it under its name
        shutil.rmtree(aside, ignore_errors=True)

    def _path(self, part: str) -> Path:
        return self.folder / f"{part}.safetensors"


def require_unfinished(run: Path) -> None:
    """Raise InputError where there is no unfinished run of ``run`` to go on with."""
    if not (unfinished_folder(run) / IDENTITY).is_file():
        if (run / MANIFEST).is_file():
            raise InputError(f"run {run} is finished: there is nothing to resume. Go on with `fimaq-tool export`.")
        raise InputError(f"there is no unfinished run of {run} to resume. Quantize again without --resume.")


def unfinished_folder(run: Path) -> Path:
    """Where what is finished of ``run`` is kept, and its caches on disk."""
    run = run.resolve()
    return run.with_name(f".{run.name}.unfinished")


def open_checkpoint(run: Path, identity: Mapping[str, Any], resume: bool, force: bool) -> Checkpoint:
    """The checkpoint of ``run``, empty unless ``resume``; ``identity`` is everything that decides the result.

    Raises InputError while another process is at work on it; with ``resume`` where there is nothing to go on from, or
    it was begun with another identity; and without, where finished parts would be lost, unless ``force``.
    """
    stamp = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    checkpoint = Checkpoint(unfinished_folder(run), stamp)
    path = checkpoint.folder / IDENTITY
    require_idle(run)
    if resume:
        require_unfinished(run)
        _remove_unfinished_files(checkpoint.folder)
        begun = _read_identity(path)
        wanted = json.loads(json.dumps(identity))
        if changed := _differences(begun, wanted):
            raise InputError(
                f"the unfinished run of {run} was begun otherwise: {'; '.join(changed)}. "
                "Resume with the same model, data and options, or start anew with --force instead (for `sweep`: remove "
                f"{checkpoint.folder})."
            )
        checkpoint.check()
        return checkpoint
    if not force and any(checkpoint.folder.glob("*.safetensors")):
        raise InputError(
            f"an unfinished run of {run} has finished parts. Give --resume to go on with it, or --force to start anew."
        )
    checkpoint.discard()
    try:
        checkpoint.folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{checkpoint.folder} cannot be written ({error}). Give a writable -o.") from error
    write_whole(path, json.dumps(identity, indent=1).encode())
    return checkpoint


def require_idle(run: Path) -> None:
    """Raise InputError while another process is at work on ``run``."""
    with suppress(FileNotFoundError), (unfinished_folder(run) / IDENTITY).open("rb") as file:
        _lock(file, run)


@contextmanager
def at_work(run: Path) -> Iterator[None]:
    """Keep other processes off ``run``, whose checkpoint is open, as long as the context or this process lasts."""
    with (unfinished_folder(run) / IDENTITY).open("rb") as file:
        _lock(file, run)
        yield


def _lock(file: IO[bytes], run: Path) -> None:
    """Until ``file`` is closed. A system without locks, or a file system, is taken as it is."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            f"another process is quantizing into {run}. Wait for it, or give this one another -o."
        ) from error
    except OSError:  # ENOLCK
        return


def _remove_unfinished_files(folder: Path) -> None:
    """What a kill left between a file's first byte and its name, and of caches where files cannot do without one."""
    for path in (*folder.glob("*.tmp"), *folder.glob(f"*{CACHE_SUFFIX}")):
        path.unlink(missing_ok=True)


def _read_identity(path: Path) -> dict[str, Any]:
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(begun, dict):
            return begun
        error: Exception | str = "it is no JSON object"
    except (OSError, ValueError) as found:
        error = found
    raise InputError(
        f"{path}, which says how the run was begun, is damaged ({error}). Start anew with --force instead of --resume "
        f"(for `sweep`: remove {path.parent})."
    )


def _differences(begun: Any, wanted: Any, name: str = "") -> list[str]:
    """What differs, as ``recipe.seed was 0, now 1``, in the order of ``wanted``."""
    if isinstance(begun, dict) and isinstance(wanted, dict):
        keys = [*wanted, *(key for key in begun if key not in wanted)]
        return [d for key in keys for d in _differences(begun.get(key), wanted.get(key), f"{name}.{key}".lstrip("."))]
    return [] if begun == wanted else [f"{name} was {_short(begun)}, now {_short(wanted)}"]


def _short(value: Any) -> str:
    """A content hash by its first characters; every other value whole."""
    text = str(value)
    return f"{text[:12]}..." if re.fullmatch(r"(\w+:)?[0-9a-f]{64}", text) else text
