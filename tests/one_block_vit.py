"""A calibrated ViT of one block, small enough for tests of single reconstruction steps."""

import timm
import torch

from fimaq.toolchain.calibrate import calibrate
from fimaq.toolchain.families import QuantModel, wrap
from fimaq.toolchain.progress import NullProgress
from fimaq.toolchain.recipe import Recipe

IMAGES = 12


def calibrated(recipe: Recipe) -> QuantModel:
    """For images of 8 x 8; none of its parameters is what timm starts it at, and it is the same each time."""
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 5}
    module = timm.create_model("vit_tiny_patch16_224", **sizes)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    model = wrap(module, (3, 8, 8))
    calibrate(model, torch.randn(IMAGES, 3, 8, 8), recipe, NullProgress())
    return model
