"""What the server is told before it starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from fimaq.toolchain.errors import UsageError
from fimaq.toolchain.runtime import Provider

MIB = 2**20


@final
@dataclass(frozen=True)
class Limits:
    """What is accepted; anything above is refused before it costs memory or time.

    ``batch`` images a request; ``queue`` requests held by one model at a time, counted from before their body is read
    until they are answered; ``seconds`` a request may take in all; ``body`` bytes, as sent and decompressed;
    ``pixels`` an encoded image may have, read from its header.

    Raises UsageError for a limit below one.
    """

    batch: int = 32
    queue: int = 64
    seconds: float = 30.0
    body: int = 32 * MIB
    pixels: int = 64 * 2**20

    def __post_init__(self) -> None:
        """Validate."""
        for name, value in vars(self).items():
            if not value > 0:
                raise UsageError(f"the limit {name} is {value}; wanted more than 0. Correct it or leave it out.")


@final
@dataclass(frozen=True)
class Settings:
    """A server: what it serves, where it listens, how it runs models and whom it lets in.

    ``source`` is an ONNX file (called ``name`` in requests, or after the file) or a repository. ``join`` is up to how
    many images waiting requests are run together (None: one on a CPU, where joining gains nothing, else
    ``limits.batch``); ``instances`` how many runs of a model may go on at once; ``versions`` how many of a model's
    newest versions are loaded. ``drain`` is how many seconds requests are still taken after SIGTERM, for a load
    balancer to notice. ``keys`` is a file with one bearer key a line; ``admin`` allows loading and unloading.
    """

    source: Path
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int | None = None
    provider: Provider = "cpu"
    threads: int | None = None
    instances: int = 1
    join: int | None = None
    versions: int = 1
    admin: bool = False
    keys: Path | None = None
    drain: float = 1.0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Raise UsageError for a number that cannot be meant."""
        for name in ("instances", "versions", "join", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; wanted 1 or more. Correct it or leave it out.")
        if self.grpc_port == self.port and self.port:
            raise UsageError(f"port {self.port} is given twice; wanted one each for HTTP and gRPC. Change --grpc-port.")
        if self.join is not None and self.join > self.limits.batch:
            raise UsageError(
                f"join is {self.join} and the largest batch {self.limits.batch} images; wanted at most as many. "
                "Lower --join or raise --max-batch."
            )

    @property
    def join_up_to(self) -> int:
        """Images up to which waiting requests are run together."""
        return self.join or (1 if self.provider == "cpu" else self.limits.batch)
