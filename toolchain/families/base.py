"""What a family of models has to say: which models it handles and how they are cut into blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, final

from torch import Tensor, nn

BlockKind = Literal["patch-embed", "transformer", "patch-merging", "head"]


@final
class Step(nn.Module):
    """A piece of a model's forward as a module: ``run`` uses ``parts``, which are registered here."""

    def __init__(self, run: Callable[[Tensor], Tensor], parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.run = run
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Run the piece."""
        return self.run(x)


@final
@dataclass(frozen=True)
class Block:
    """One unit of reconstruction: maps the previous block's output (or the image) to its own.

    ``norm_pairs`` lists ``(norm, linear)`` where the linear layer reads the norm's output and nothing
    else does, so that per-channel scales can be folded into both.
    """

    name: str
    module: nn.Module
    kind: BlockKind
    norm_pairs: tuple[tuple[nn.LayerNorm, nn.Module], ...] = field(default=())


class Family(ABC):
    """Cuts models of one architecture into a chain of blocks whose composition is the model."""

    name: str

    @abstractmethod
    def matches(self, model: nn.Module) -> bool:
        """Whether this family handles the model (by type, never by name)."""

    @abstractmethod
    def blocks(self, model: nn.Module) -> list[Block]:
        """The chain, after quantized layers have been put in."""


def layer_norm_pairs(*pairs: tuple[nn.Module, nn.Module]) -> tuple[tuple[nn.LayerNorm, nn.Module], ...]:
    """Keep the pairs whose norm is an affine LayerNorm; other norms cannot absorb a shift."""
    return tuple(
        (norm, linear)
        for norm, linear in pairs
        if isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None
    )
