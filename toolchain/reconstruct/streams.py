"""Random streams that depend on where one is, not on what ran before."""

from __future__ import annotations

import hashlib

import torch


def seed_at(generator: torch.Generator, seed: int, block: str, step: int) -> None:
    """Seed ``generator`` for one step of one block; any step can be replayed without its predecessors."""
    digest = hashlib.sha256(f"{seed}/{block}/{step}".encode()).digest()
    generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
