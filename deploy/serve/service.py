"""What both protocols work with: one server's models, limits, keys, metrics and state."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import final

from fimaq.toolchain.errors import InputError
from fimaq.toolchain.runtime import usable_cores

from .keys import Keys
from .metrics import Metrics
from .registry import Registry
from .settings import Settings
from .tracing import tracing

log = logging.getLogger(__name__)


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

    async def reload(self) -> None:
        """Read the keys and the repository again; what cannot be read is logged, and the old holds."""
        try:
            self.keys = await asyncio.to_thread(Keys.read, self.settings.keys)
        except InputError as error:
            log.error("keys not reloaded", extra={"fields": {"reason": str(error)}})
        await self.registry.reload()

    async def close(self) -> None:
        """Let go of everything, once the last request is answered."""
        await self.registry.close()
        self.decoders.shutdown(cancel_futures=True)
        self.tracing.close()
