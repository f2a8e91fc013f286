"""The bundled demo: 1,797 handwritten digits as image folders, and two small timm models trained on them.

``materialise(folder)`` writes::

    folder/train/0/0000.png ... folder/train/9/1792.png     1,000 images
    folder/val/0/0020.png   ... folder/val/9/1795.png         797 images

8 x 8 greyscale PNG files, named by their index in scikit-learn's ``load_digits``; a pixel is 15 times the
digit's value (0..16), hence 0..240. The bytes are the same on every machine. Credit and licence of the
images, and how the weights were made: ``demo/README.md``.
"""

from __future__ import annotations

import struct
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ASSETS: Final = Path(__file__).parent / "demo"
DIGITS: Final = ASSETS / "digits.npz"
"""``images`` uint8 [1797, 8, 8] with values 0..16 and ``labels`` uint8 [1797], in ``load_digits`` order."""
LABEL_NAMES: Final = tuple("0123456789")
N_TRAIN, N_VAL = 1000, 797
PIXEL_SCALE: Final = 15
"""A PNG pixel is this many times the digit's value."""


@dataclass(frozen=True)
class DemoData:
    """Where the image folders lie; ``train`` and ``val`` share no image."""

    train: Path
    val: Path

    @property
    def calib(self) -> Path:
        """The folder to draw calibration images from: the training images, never the held-out ones."""
        return self.train


@dataclass(frozen=True)
class DemoModel:
    """How one bundled model is built: ``create_model(timm_name, pretrained_cfg_overlay=pretrained_cfg, **kwargs)``."""

    name: str
    timm_name: str
    kwargs: dict[str, Any]
    pretrained_cfg: dict[str, Any]

    @property
    def weights(self) -> Path:
        """The float32 state dict (safetensors); its metadata says how it was trained."""
        return ASSETS / f"{self.name}.safetensors"


def _pretrained_cfg() -> dict[str, Any]:
    """Overrides of timm's pretrained_cfg: this demo's preprocessing and classes, and no weights from a hub."""
    return {
        "url": "",
        "hf_hub_id": None,
        "custom_load": False,
        "input_size": (3, 32, 32),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "num_classes": len(LABEL_NAMES),
        "label_names": LABEL_NAMES,
    }


DEMO_MODELS: Final[dict[str, DemoModel]] = {
    model.name: model
    for model in (
        DemoModel(
            name="demo_vit",
            timm_name="vit_tiny_patch16_224",
            kwargs={
                "img_size": 32,
                "patch_size": 4,
                "embed_dim": 32,
                "depth": 8,
                "num_heads": 2,
                "num_classes": len(LABEL_NAMES),
            },
            pretrained_cfg=_pretrained_cfg(),
        ),
        DemoModel(
            name="demo_swin",
            timm_name="swin_tiny_patch4_window7_224",
            kwargs={
                "img_size": 32,
                "patch_size": 4,
                "window_size": 4,
                "embed_dim": 16,
                "depths": [4, 6],
                "num_heads": [2, 4],
                "drop_path_rate": 0.0,
                "num_classes": len(LABEL_NAMES),
            },
            pretrained_cfg=_pretrained_cfg(),
        ),
    )
}
"""The bundled models by name. Shapes are lists, so that ``kwargs`` survives a trip through JSON unchanged."""


def load_digits() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the images [1797, 8, 8] (values 0..16) and labels [1797], in scikit-learn's order."""
    import numpy as np

    with np.load(DIGITS, allow_pickle=False) as archive:
        return archive["images"], archive["labels"]


def held_out(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Say for each image whether it is held out: 797 of 1,797, spread evenly over the images sorted by class.

    In class order (images of a class in their original order) image ``p`` is held out when
    ``floor((p + 1) 797 / 1797) > floor(p 797 / 1797)``. No random numbers; a class's share is exact to one image.
    """
    import numpy as np

    position = np.arange(N_TRAIN + N_VAL)
    chosen = (position + 1) * N_VAL // (N_TRAIN + N_VAL) > position * N_VAL // (N_TRAIN + N_VAL)
    result = np.empty(N_TRAIN + N_VAL, dtype=np.bool_)
    result[np.argsort(labels, kind="stable")] = chosen
    return result


def materialise(folder: Path | str) -> DemoData:
    """Write the digits as class folders of PNG files; an existing, complete copy is used as it is.

    The folder appears whole or not at all. Raises InputError when it holds anything else.
    """
    folder = Path(folder)
    files = _files()
    data = DemoData(train=folder / "train", val=folder / "val")
    if _holds_exactly(folder, files):
        return data
    refused = InputError(
        f"{folder} exists and is not a copy of the demo digits: wanted a new or empty folder. "
        "Name another folder or remove this one."
    )
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise refused
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        whole = Path(temporary) / "digits"
        for name, content in files.items():
            path = whole / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            if folder.exists():
                folder.rmdir()
            whole.rename(folder)
        except OSError:
            # another process may have written the same copy meanwhile
            if not _holds_exactly(folder, files):
                raise refused from None
    return data


def _files() -> dict[str, bytes]:
    """Return every file of the demo set: its path below the folder, with forward slashes, and its bytes."""
    images, labels = load_digits()
    return {
        f"{'val' if is_val else 'train'}/{LABEL_NAMES[label]}/{index:04d}.png": _png(image * PIXEL_SCALE)
        for index, (image, label, is_val) in enumerate(zip(images, labels, held_out(labels), strict=True))
    }


def _holds_exactly(folder: Path, files: dict[str, bytes]) -> bool:
    """Say whether the folder holds these files, byte for byte, and no others."""
    if not folder.is_dir():
        return False
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return present == files.keys() and all((folder / name).read_bytes() == content for name, content in files.items())


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode a greyscale image [h, w] as PNG without compression, so that no zlib version changes its bytes."""
    height, width = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
