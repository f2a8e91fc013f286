"""Image to array: the one function that calibration, evaluation and serving share.

It computes what ``timm.data.create_transform(**cfg, is_training=False)`` computes on the image converted to RGB,
value for value, with Pillow and numpy only. EXIF orientation is left alone, as timm leaves it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NoReturn, Self, cast, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from .errors import InputError

CropMode = Literal["center", "squash", "border"]
Interpolation = Literal["bilinear", "bicubic", "lanczos", "nearest"]

MAX_CROP_PCT = 2.0
"""timm ships models with crop_pct up to 1.15: above 1 the image is padded up to the input size."""

MAX_SIDE = 4096
"""Largest input side in pixels that is believed."""

MAX_RESIZED_PIXELS = 64 * 2**20
"""A one-pixel-high banner scaled until it is 256 pixels high would need gigabytes: refused above this."""

_NEXT = "Re-export the model with fimaq-tool, or correct the preprocessing it carries."
_BLACK = (0, 0, 0)


def _refuse(what: str, got: object, wanted: str) -> NoReturn:
    raise InputError(f"preprocessing: {what} is {got!r}; wanted {wanted}. {_NEXT}")


def _number(what: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        _refuse(what, value, "a finite number")
    return float(value)


def _side(what: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIDE:
        _refuse(what, value, f"a whole number of pixels from 1 to {MAX_SIDE}")
    return value


def _triple(what: str, value: object) -> tuple[float, float, float]:
    if not isinstance(value, list | tuple) or len(value) != 3:
        _refuse(what, value, "three numbers, one for each of red, green and blue")
    red, green, blue = (_number(what, item) for item in value)
    return red, green, blue


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the model's input.

    ``height`` and ``width`` are the input in pixels. The image is scaled to ``floor(side / crop_pct)`` and its centre
    is cut out (or padded, where it is too small). ``crop_mode`` says how it is scaled: ``center`` keeps the aspect
    ratio and fits the shorter side, ``squash`` fits both sides, ``border`` keeps the aspect ratio, fits the longer
    side and pads with the mean colour. ``mean`` and ``std`` are in units of the 0..1 pixel range, in RGB order.

    Raises InputError when a field cannot be meant.
    """

    height: int
    width: int
    crop_pct: float
    crop_mode: CropMode
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        """Validate every field and settle its type, so that equal values have equal JSON."""
        _side("height", self.height)
        _side("width", self.width)
        object.__setattr__(self, "crop_pct", _number("crop_pct", self.crop_pct))
        if not 0 < self.crop_pct <= MAX_CROP_PCT:
            _refuse("crop_pct", self.crop_pct, f"a fraction above 0 and at most {MAX_CROP_PCT}")
        if self.crop_mode not in get_args(CropMode):
            _refuse("crop_mode", self.crop_mode, f"one of {', '.join(get_args(CropMode))}")
        if self.interpolation not in get_args(Interpolation):
            _refuse("interpolation", self.interpolation, f"one of {', '.join(get_args(Interpolation))}")
        object.__setattr__(self, "mean", _triple("mean", self.mean))
        object.__setattr__(self, "std", _triple("std", self.std))
        if min(self.std) <= 0:
            _refuse("std", self.std, "three numbers above 0")

    @classmethod
    def from_timm(cls, cfg: Mapping[str, Any]) -> Self:
        """Read the dict that ``timm.data.resolve_model_data_config(model)`` returns.

        Raises InputError for an input that is not three-channel RGB and for every invalid field.
        """
        size = cfg.get("input_size")
        if not isinstance(size, list | tuple) or len(size) != 3 or size[0] != 3:
            _refuse("input_size", size, "(3, height, width): an RGB model")
        missing = [key for key in ("interpolation", "mean", "std") if key not in cfg]
        if missing:
            _refuse("timm's data config", sorted(cfg), f"also {', '.join(missing)}")
        return cls(
            height=size[1],
            width=size[2],
            crop_pct=cfg.get("crop_pct") or 0.875,  # timm's own default
            crop_mode=cfg.get("crop_mode") or "center",
            interpolation=cfg["interpolation"],
            mean=cfg["mean"],
            std=cfg["std"],
        )

    @classmethod
    def from_json(cls, value: str | bytes | Mapping[str, Any]) -> Self:
        """Read JSON text, or the object it stands for; an unknown or missing key raises InputError."""
        if isinstance(value, str | bytes):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise InputError(f"preprocessing: not JSON ({error}); wanted one JSON object. {_NEXT}") from error
        if not isinstance(value, Mapping):
            _refuse("its JSON", value, "one object")
        wanted = {field.name for field in fields(cls)}
        if set(value) != wanted:
            odd = sorted(wanted ^ set(value))
            _refuse("its JSON", sorted(value), f"exactly the keys {sorted(wanted)} (differs in {odd})")
        return cls(**cast("dict[str, Any]", dict(value)))

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces, shortest floats; equal values give equal text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def apply(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """Return float32 ``[3, h, w]``: ``(pixel / 255 - mean) / std`` of the scaled and cropped image.

        Raises InputError for an image so long and thin that it cannot be scaled.
        """
        return self.normalize(self.pixels(image))

    def pixels(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """Return uint8 ``[h, w, 3]``: the scaled and cropped image. Raises InputError as ``apply`` does."""
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        return np.asarray(self._cut(self._scale(rgb)), dtype=np.uint8)

    def normalize(self, image: Image.Image | npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """``(pixel / 255 - mean) / std`` as float32 ``[3, h, w]`` of an RGB image that is already cut."""
        pixels = np.asarray(image, dtype=np.uint8)
        array = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)
        array /= np.float32(255)
        array -= np.asarray(self.mean, dtype=np.float32)[:, None, None]
        array /= np.asarray(self.std, dtype=np.float32)[:, None, None]
        return array

    def _scaled_size(self, width: int, height: int) -> tuple[int, int]:
        """Size (width, height) in pixels of the scaled image, rounded as timm and torchvision round it."""
        to_height, to_width = math.floor(self.height / self.crop_pct), math.floor(self.width / self.crop_pct)
        if self.crop_mode == "squash":
            return to_width, to_height
        if self.crop_mode == "center" and to_height == to_width:
            short, long = min(width, height), max(width, height)
            long = int(to_height * long / short)
            return (to_height, long) if width <= height else (long, to_height)
        pick = max if self.crop_mode == "border" else min
        ratio = pick(height / to_height, width / to_width)
        return round(width / ratio), round(height / ratio)

    def _scale(self, image: Image.Image) -> Image.Image:
        width, height = self._scaled_size(*image.size)
        if min(width, height) < 1 or width * height > MAX_RESIZED_PIXELS:
            raise InputError(
                f"image is {image.width}x{image.height} pixels and would be scaled to {width}x{height}; wanted at "
                f"least one pixel and at most {MAX_RESIZED_PIXELS} in all. Crop the image to a less extreme shape."
            )
        if (width, height) == image.size:
            return image
        return image.resize((width, height), Image.Resampling[self.interpolation.upper()])

    def _cut(self, image: Image.Image) -> Image.Image:
        """Cut the centre out, padding first where the image is smaller than the input."""
        wide, high = max(0, self.width - image.width), max(0, self.height - image.height)
        if wide or high:
            mean_colour = (round(255 * self.mean[0]), round(255 * self.mean[1]), round(255 * self.mean[2]))
            fill = mean_colour if self.crop_mode == "border" else _BLACK
            image = ImageOps.expand(image, (wide // 2, high // 2, (wide + 1) // 2, (high + 1) // 2), fill=fill)
        left, top = round((image.width - self.width) / 2), round((image.height - self.height) / 2)
        return image.crop((left, top, left + self.width, top + self.height))
