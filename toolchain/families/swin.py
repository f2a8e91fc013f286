"""Swin: timm's SwinTransformer, with shifted windows and patch merging."""

from __future__ import annotations

from typing import cast, final

from timm.models.swin_transformer import PatchMerging, SwinTransformer, SwinTransformerBlock
from torch import Tensor, nn

from ..nn import QuantAttention
from .base import Block, Family, Step, layer_norm_pairs


@final
class SwinFamily(Family):
    """Patch embedding, then per stage its patch merging and its blocks, then norm, pooling and head."""

    name = "swin"

    def matches(self, model: nn.Module) -> bool:
        """Any timm SwinTransformer (version 1)."""
        return isinstance(model, SwinTransformer)

    def blocks(self, model: nn.Module) -> list[Block]:
        """``patch_embed``, ``layers.0.blocks.0`` ..., ``layers.1.downsample`` ..., ``head``."""
        swin = cast(SwinTransformer, model)

        def head(tokens: Tensor) -> Tensor:
            return swin.forward_head(swin.norm(tokens))

        chain = [Block("patch_embed", Step(swin.patch_embed, [swin.patch_embed]), "patch-embed")]
        for i, stage in enumerate(swin.layers):
            if isinstance(stage.downsample, PatchMerging):
                merging = stage.downsample
                pairs = layer_norm_pairs((merging.norm, merging.reduction))
                chain.append(Block(f"layers.{i}.downsample", merging, "patch-merging", pairs))
            chain += [
                Block(f"layers.{i}.blocks.{j}", block, "transformer", _norm_pairs(block))
                for j, block in enumerate(stage.blocks)
            ]
        chain.append(Block("head", Step(head, [swin.norm, swin.head]), "head"))
        return chain


def _norm_pairs(block: SwinTransformerBlock) -> tuple[tuple[nn.LayerNorm, nn.Module], ...]:
    """norm2 -> fc1, and norm1 -> qkv unless windows are padded: a padded zero would not be shifted with the rest."""
    pairs: list[tuple[nn.Module, nn.Module]] = [(block.norm2, block.mlp.fc1)]
    if all(size % window == 0 for size, window in zip(block.input_resolution, block.window_size, strict=True)):
        attention = block.attn.wrapped if isinstance(block.attn, QuantAttention) else block.attn
        pairs.insert(0, (block.norm1, attention.qkv))
    return layer_norm_pairs(*pairs)
