"""A build context for an image that holds the server and the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from .folder import Files
from .model import Model
from .names import DNS_NAME, NameRule
from .text import SERVE_IMAGE, check_image, fill


@final
@dataclass(frozen=True)
class Docker:
    """``image`` is the server's, from the project's Dockerfile."""

    target: ClassVar[str] = "docker"
    names: ClassVar[NameRule] = DNS_NAME

    image: str = SERVE_IMAGE

    def __post_init__(self) -> None:
        """Validate what goes into the Dockerfile."""
        check_image(self.image)

    def files(self, model: Model, name: str) -> Files:
        """A Dockerfile, what it copies, and nothing else in the context."""
        values = {"name": name, "image": self.image, "sha256": model.predictor.sha256}
        return {
            **{f"models/{path}": source for path, source in model.repository(name).items()},
            "Dockerfile": fill("docker.Dockerfile", **values),
            ".dockerignore": "*\n!models\n",
            "README.md": fill("docker.md", name=name),
        }
