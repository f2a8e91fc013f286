"""ViT and DeiT: timm's VisionTransformer and its subclasses."""

from __future__ import annotations

from typing import cast, final

from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..nn import QuantAttention
from .base import Block, Family, Step, layer_norm_pairs


@final
class VitFamily(Family):
    """Patch embedding with everything up to the first block, each block, then norm, pooling and head."""

    name = "vit"

    def matches(self, model: nn.Module) -> bool:
        """Any timm VisionTransformer."""
        return isinstance(model, VisionTransformer)

    def blocks(self, model: nn.Module) -> list[Block]:
        """``patch_embed``, ``blocks.0`` ..., ``head``."""
        vit = cast(VisionTransformer, model)

        def embed(image: Tensor) -> Tensor:
            return vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(image))))

        def head(tokens: Tensor) -> Tensor:
            return vit.forward_head(vit.norm(tokens))

        inner = {child for block in vit.blocks for child in block.modules()} | {vit.patch_embed, vit.norm_pre}
        tail = [child for child in vit.children() if child not in inner and child is not vit.blocks]
        return [
            Block("patch_embed", Step(embed, [vit.patch_embed, vit.norm_pre]), "patch-embed"),
            *(Block(f"blocks.{i}", block, "transformer", _norm_pairs(block)) for i, block in enumerate(vit.blocks)),
            Block("head", Step(head, tail), "head"),
        ]


def _norm_pairs(block: nn.Module) -> tuple[tuple[nn.LayerNorm, nn.Module], ...]:
    """norm1 -> qkv and norm2 -> fc1 of a plain pre-norm block; other block types have none."""
    if type(block) is not TimmBlock:
        return ()
    pairs: list[tuple[nn.Module, nn.Module]] = []
    attention = block.attn.wrapped if isinstance(block.attn, QuantAttention) else block.attn
    if type(attention) is Attention and attention.gate is None:
        pairs.append((block.norm1, attention.qkv))
    if type(block.mlp) is Mlp:
        pairs.append((block.norm2, block.mlp.fc1))
    return layer_norm_pairs(*pairs)
