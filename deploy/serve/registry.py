"""The models that are served now, and how they change while requests come in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, final

from fimaq.toolchain.errors import FimaqError

from .errors import Malformed, NotFound, Unavailable
from .loading import load
from .model import ServedModel
from .repository import ModelFile, Repository
from .settings import Settings

log = logging.getLogger(__name__)

State = Literal["READY", "UNAVAILABLE"]


@final
@dataclass(frozen=True)
class Entry:
    """One line of the repository's index."""

    name: str
    version: str
    state: State
    reason: str = ""


@final
class Registry:
    """Loads models aside, in a thread, and swaps them in between two requests.

    A file that fails to load or to run never replaces a model that is served; why it failed is in the index.
    ``loaded`` once all models were; ``unreadable`` while the repository itself could not be read again.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._repository = Repository(settings.source, settings.name, settings.versions)
        self._models: dict[str, dict[str, ServedModel]] = {}
        self._failed: dict[tuple[str, str], str] = {}
        self._unloaded: dict[str, list[ModelFile]] = {}
        self._one_at_a_time = asyncio.Lock()
        self.loaded = False
        self.unreadable = False

    def get(self, name: str, version: str | None = None) -> ServedModel:
        """A version of a model, the newest by default.

        Raises NotFound, or Unavailable before the first load is done.
        """
        versions = self._models.get(name)
        if versions is not None:
            if version is None:
                return versions[max(versions, key=int)]
            if version in versions:
                return versions[version]
        if not self.loaded:
            raise Unavailable("models are still being loaded. Send it again later.")
        called = f"model {name!r}" if version is None else f"version {version!r} of model {name!r}"
        known = ", ".join(f"{model.name} version {model.version}" for model in self) or "none"
        raise NotFound(f"{called} is not served here; served: {known}.")

    def __iter__(self) -> Iterator[ServedModel]:
        """Every version that is served, by name."""
        return iter([model for _, versions in sorted(self._models.items()) for model in versions.values()])

    def versions(self, name: str) -> list[str]:
        """The served versions of a model, oldest first."""
        return sorted(self._models.get(name, {}), key=int)

    def index(self) -> list[Entry]:
        """Every version that is served, and every one that is not with the reason."""
        entries = {
            (file.name, file.version): Entry(file.name, file.version, "UNAVAILABLE", "unloaded")
            for files in self._unloaded.values()
            for file in files
        }
        entries |= {key: Entry(*key, "UNAVAILABLE", reason) for key, reason in self._failed.items()}
        for model in self:
            key = model.name, model.version
            entries[key] = Entry(*key, "READY", self._failed.get(key, ""))
        return sorted(entries.values(), key=lambda entry: (entry.name, int(entry.version)))

    @property
    def failed(self) -> list[tuple[str, str]]:
        """Models and versions that are on disk and could not be loaded."""
        return sorted(self._failed)

    async def start(self) -> None:
        """Load everything. Raises the FimaqError of the first model that cannot be served."""
        async with self._one_at_a_time:
            for file in await asyncio.to_thread(self._repository.scan):
                self._swap(await self._load(file))
        self.loaded = True

    async def reload(self) -> None:
        """Bring what is served in line with what is on disk now; failures are logged and noted in the index."""
        async with self._one_at_a_time:
            try:
                files = await asyncio.to_thread(self._repository.scan)
            except (FimaqError, OSError) as error:
                self.unreadable = True
                log.error("reload failed", extra={"fields": {"reason": str(error)}})
                return
            self.unreadable = False
            names = {file.name for file in files}
            self._unloaded = {
                name: [file for file in files if file.name == name] for name in self._unloaded if name in names
            }
            self._failed = {key: reason for key, reason in self._failed.items() if key[0] in names}
            for name in sorted(names - self._unloaded.keys()):
                await self._bring_up(name, [file for file in files if file.name == name])
            for name in self._models.keys() - names:
                self._drop(name, keep=set())

    async def load(self, name: str) -> None:
        """Load or reload one model. Raises Malformed where it is not on disk or cannot be served."""
        async with self._one_at_a_time:
            reasons = await self._bring_up(name, await self._files_of(name))
            if reasons:
                raise Malformed(f"model {name} was not loaded: {' '.join(reasons)}")
            self._unloaded.pop(name, None)

    async def unload(self, name: str) -> None:
        """Stop serving one model; who waits for it is still answered. Raises NotFound where it is not served."""
        async with self._one_at_a_time:
            if name not in self._models:
                raise NotFound(f"model {name!r} is not served here. See the repository's index.")
            self._unloaded[name] = [model.file for model in self._models[name].values()]
            self._drop(name, keep=set())

    async def close(self) -> None:
        """Retire every model and wait for its end."""
        async with self._one_at_a_time:
            models = list(self)
            for name in list(self._models):
                self._drop(name, keep=set())
            for model in models:
                await asyncio.to_thread(model.join)

    async def _files_of(self, name: str) -> list[ModelFile]:
        try:
            files = await asyncio.to_thread(self._repository.scan)
        except (FimaqError, OSError) as error:
            raise Malformed(str(error)) from error
        own = [file for file in files if file.name == name]
        if not own:
            raise Malformed(f"the repository holds no model {name!r}. See the repository's index.")
        return own

    async def _bring_up(self, name: str, files: Sequence[ModelFile]) -> list[str]:
        """Serve exactly these versions of a model, if all of them load; else say why not and keep what is served."""
        self._failed = {key: reason for key, reason in self._failed.items() if key[0] != name}
        for file in files:
            present = self._models.get(name, {}).get(file.version)
            if present is not None and present.file == file:
                continue
            try:
                self._swap(await self._load(file))
            except Exception as error:  # noqa: BLE001  (whatever is wrong with a new file, the old one goes on)
                self._failed[name, file.version] = str(error)
                log.error("load failed", extra={"fields": {**_called(file), "reason": str(error)}})
        reasons = [reason for key, reason in self._failed.items() if key[0] == name]
        if not reasons:
            self._drop(name, keep={file.version for file in files})
        return reasons

    async def _load(self, file: ModelFile) -> ServedModel:
        settings = self._settings
        predictor = await asyncio.to_thread(load, file.path, settings.provider, settings.threads)
        return ServedModel(file, predictor, settings)

    def _swap(self, model: ServedModel) -> None:
        old = self._models.setdefault(model.name, {}).get(model.version)
        self._models[model.name][model.version] = model
        if old is not None:
            old.retire()
        log.info("loaded", extra={"fields": {**_called(model.file), "sha256": model.predictor.sha256}})

    def _drop(self, name: str, keep: set[str]) -> None:
        """Retire the versions of a model that are not to be kept."""
        versions = self._models.get(name, {})
        for version in versions.keys() - keep:
            model = versions.pop(version)
            model.retire()
            log.info("unloaded", extra={"fields": _called(model.file)})
        if not versions:
            self._models.pop(name, None)


def _called(file: ModelFile) -> dict[str, str]:
    return {"model": file.name, "version": file.version}
