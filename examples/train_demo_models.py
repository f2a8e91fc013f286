"""Train the two bundled demo models on the bundled digits, on a CPU, in a few minutes each.

    python examples/train_demo_models.py -o toolchain/data/demo
    python examples/train_demo_models.py --model demo_vit --epochs 5 -o /tmp/quick

Needs torch and timm only. Seeded; one thread, so the same torch on the same kind of CPU gives the same
weights. The last epoch's weights are kept: no checkpoint is chosen by its held-out accuracy.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path

import timm
import torch
from PIL import Image
from safetensors.torch import save
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional

from fimaq.toolchain.data import demo_set

BATCH_SIZE = 50
WARMUP_EPOCHS = 5
LEARNING_RATE = {"demo_vit": 1.5e-3, "demo_swin": 3e-3}
EPOCHS = {"demo_vit": 60, "demo_swin": 100}


def build(spec: demo_set.DemoModel) -> nn.Module:
    """Return the model with new weights from torch's current seed."""
    return timm.create_model(
        spec.timm_name, pretrained=False, pretrained_cfg_overlay=spec.pretrained_cfg, **spec.kwargs
    )


def load_folder(folder: Path, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return a folder's images [n, 3, h, w], through the model's own evaluation preprocessing, and labels [n]."""
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    paths = sorted(folder.glob("*/*.png"))
    images = [transform(Image.open(path).convert("RGB")) for path in paths]
    labels = [demo_set.LABEL_NAMES.index(path.parent.name) for path in paths]
    return torch.stack(images), torch.tensor(labels)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate up to 15 degrees, scale by 0.85 to 1.15, shear and shift a little: images [b, 3, h, w] in [-1, 1]."""
    uniform = torch.rand(6, len(images), generator=generator) * 2 - 1
    angle = uniform[0] * math.radians(15)
    scale_x, scale_y = 1 + 0.15 * uniform[1], 1 + 0.15 * uniform[2]
    shear, shift_x, shift_y = 0.15 * uniform[3], 0.15 * uniform[4], 0.15 * uniform[5]
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        (
            torch.stack((cos * scale_x, (shear * cos - sin) * scale_y, shift_x), dim=-1),
            torch.stack((sin * scale_x, (shear * sin + cos) * scale_y, shift_y), dim=-1),
        ),
        dim=1,
    )
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    # the background is -1 after normalization: sample the image lifted to 0, so that outside is background
    return functional.grid_sample(images + 1, grid, align_corners=False) - 1


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images [n, 3, h, w] whose largest logit is their label, in percent."""
    model.eval()
    hits = sum(
        int((model(batch).argmax(1) == truth).sum())
        for batch, truth in zip(images.split(200), labels.split(200), strict=True)
    )
    return 100 * hits / len(labels)


def train(spec: demo_set.DemoModel, data: demo_set.DemoData, epochs: int, seed: int) -> tuple[nn.Module, float]:
    """Train one model from scratch and return it with its held-out top-1 in percent."""
    torch.manual_seed(seed)  # timm initialises from the global generator
    generator = torch.Generator().manual_seed(seed)
    model = build(spec)
    images, labels = load_folder(data.train, model)
    val_images, val_labels = load_folder(data.val, model)

    steps = math.ceil(len(images) / BATCH_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE[spec.name], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=LEARNING_RATE[spec.name],
        total_steps=steps * epochs,
        pct_start=min(0.5, WARMUP_EPOCHS / epochs),
        cycle_momentum=False,
        final_div_factor=100,
    )
    started = time.perf_counter()
    for epoch in range(1, epochs + 1):
        model.train()
        total = 0.0
        for chosen in torch.randperm(len(images), generator=generator).split(BATCH_SIZE):
            logits = model(augment(images[chosen], generator))
            loss = functional.cross_entropy(logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        if epoch % 5 == 0 or epoch == epochs:
            top1 = accuracy(model, val_images, val_labels)
            seconds = time.perf_counter() - started
            print(
                f"{spec.name} epoch {epoch}/{epochs}: loss {total / len(images):.3f}, "
                f"held-out top-1 {top1:.2f}%, {seconds:.0f} s",
                flush=True,
            )
    return model, accuracy(model, val_images, val_labels)


def main() -> None:
    """Train the models asked for and write their weights."""
    parser = argparse.ArgumentParser(description="Train the bundled demo models on the bundled digits.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for NAME.safetensors")
    parser.add_argument("--model", choices=sorted(demo_set.DEMO_MODELS), action="append", help="default: all")
    parser.add_argument("--epochs", type=int, help=f"default: {EPOCHS}")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        data = demo_set.materialise(Path(folder) / "digits")
        for name in options.model or sorted(demo_set.DEMO_MODELS):
            epochs = EPOCHS[name] if options.epochs is None else options.epochs
            model, top1 = train(demo_set.DEMO_MODELS[name], data, epochs, options.seed)
            metadata = {
                "format": "pt",
                "made_by": f"examples/train_demo_models.py --model {name} --epochs {epochs} --seed {options.seed}",
                "data": "UCI Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak), CC BY 4.0",
                "held_out_top1_percent": f"{top1:.2f}",
                "held_out_images": str(demo_set.N_VAL),
                "versions": f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}",
            }
            path = options.output / f"{name}.safetensors"
            path.write_bytes(save(model.state_dict(), metadata))
            parameters = sum(p.numel() for p in model.parameters())
            print(f"{path}: {parameters} parameters, {path.stat().st_size} bytes, held-out top-1 {top1:.2f}%")


if __name__ == "__main__":
    main()
