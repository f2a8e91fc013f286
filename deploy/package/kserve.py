"""KServe resources: our server as a runtime, the model as an InferenceService, and what its storage has to hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from fimaq.toolchain.errors import UsageError

from .folder import Files
from .model import Model
from .names import DNS_NAME, NameRule
from .text import SERVE_IMAGE, VERSION, check, check_image, fill

MIB = 2**20

STEP = 256
"""Memory is asked for in steps of so many MiB."""

STORAGE_URI = r"[a-z][a-z0-9+.-]*://[!#-\[\]-~]+"
"""Printable ASCII without what a quoted string in YAML would read otherwise."""

CORES = r"[1-9]\d*m|[1-9]\d*(\.\d{1,3})?|0\.(?=\d*[1-9])\d{1,3}"
MEMORY = r"[1-9]\d*(Ki|[MGT]i?)"


@final
@dataclass(frozen=True)
class KServe:
    """``models/`` is to lie at ``storage_uri`` (None: a claim called ``models``, in the folder of the model's name).

    Each of ``min_replicas`` to ``max_replicas`` servers gets ``cpu`` cores and ``memory`` (None: by the file's size).

    Raises UsageError for a value that its field in Kubernetes does not take.
    """

    target: ClassVar[str] = "kserve"
    names: ClassVar[NameRule] = DNS_NAME

    image: str = SERVE_IMAGE
    storage_uri: str | None = None
    min_replicas: int = 1
    max_replicas: int = 3
    cpu: str = "1"
    memory: str | None = None

    def __post_init__(self) -> None:
        """Validate what goes into the YAML."""
        check_image(self.image)
        if self.storage_uri is not None:
            check("storage-uri", self.storage_uri, STORAGE_URI, "scheme://place, as in s3://bucket/x")
        check("cpu", self.cpu, CORES, "cores, as in 2, 0.5 or 500m")
        if self.memory is not None:
            check("memory", self.memory, MEMORY, "an amount of memory, as in 1Gi")
        if self.max_replicas < self.min_replicas:
            raise UsageError(
                f"--max-replicas is {self.max_replicas}; wanted {self.min_replicas}, --min-replicas, or more. "
                "Correct one."
            )

    def files(self, model: Model, name: str) -> Files:
        """Two manifests and the model repository."""
        values = {
            "name": name,
            "image": self.image,
            "runtime": f"fimaq-serve-{VERSION.replace('.', '-').replace('+', '-')}",
            "storage_uri": self.storage_uri or f"pvc://models/{name}",
            "min_replicas": self.min_replicas,
            "max_replicas": self.max_replicas,
            "cpu": self.cpu,
            "memory": self.memory or _memory(model),
            "sha256": model.predictor.sha256,
        }
        return {
            **{f"models/{path}": source for path, source in model.repository(name).items()},
            "servingruntime.yaml": fill("servingruntime.yaml", **values),
            "inferenceservice.yaml": fill("inferenceservice.yaml", **values),
            "README.md": fill("kserve.md", name=name),
        }


def _memory(model: Model) -> str:
    """The server itself, and four times the weights: as stored, as unpacked, and as both are while they are loaded."""
    return f"{STEP * math.ceil((STEP * MIB + 4 * model.stored_bytes) / (STEP * MIB))}Mi"
