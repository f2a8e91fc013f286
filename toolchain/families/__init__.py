"""Families of timm models: how each is wrapped and cut into blocks."""

from .base import Block, Family, Step
from .wrap import FAMILIES, QuantModel, find_family, public_name, wrap

__all__ = ["FAMILIES", "Block", "Family", "QuantModel", "Step", "find_family", "public_name", "wrap"]
