"""What both protocols work with: one server's models, limits, keys, metrics and state."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import final

from fimaq.toolchain.runtime import usable_cores

from .keys import Keys
from .metrics import Metrics
from .registry import Registry
from .settings import Settings
from .tracing import tracing


@final
class Service:
    """Made on the event loop, before anything is loaded.

    ``decoders`` are threads that decode images. While ``draining`` the server is not ready but still answers. Raises
    as reading the keys and setting up the traces do.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.keys = Keys.read(settings.keys)
        self.tracing = tracing()
        self.registry = Registry(settings)
        self.metrics = Metrics(self.registry, lambda: self.ready)
        self.decoders = ThreadPoolExecutor(usable_cores(), thread_name_prefix="decode")
        self.draining = False

    @property
    def ready(self) -> bool:
        """Whether new requests should be sent here."""
        return self.registry.loaded and not self.draining

    async def close(self) -> None:
        """Let go of everything, once the last request is answered."""
        await self.registry.close()
        self.decoders.shutdown(cancel_futures=True)
        self.tracing.close()
