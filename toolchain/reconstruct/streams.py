"""Random streams that depend on where one is, not on what ran before."""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Int
from torch import Tensor


def seed_at(generator: torch.Generator, seed: int, block: str, step: int) -> None:
    """Seed ``generator`` for one step of one block; any step can be replayed without its predecessors."""
    digest = hashlib.sha256(f"{seed}/{block}/{step}".encode()).digest()
    generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def draw_batch(generator: torch.Generator, images: int, size: int) -> Int[Tensor, "b"]:
    """Numbers of a step's images, the first thing drawn after ``seed_at``; an image may be drawn twice."""
    return torch.randint(images, (size,), device=generator.device, generator=generator)
