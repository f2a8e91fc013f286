"""The two forms in which a file takes images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import numpy.typing as npt
from PIL import Image

from .preprocess import Preprocessing

InputKind = Literal["float", "uint8"]


@final
@dataclass(frozen=True)
class ImageInput:
    """``float``: normalised float32 ``[3, h, w]``. ``uint8``: the pixels ``[h, w, 3]``; the file normalises them."""

    preprocessing: Preprocessing
    kind: InputKind

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image."""
        size = (self.preprocessing.height, self.preprocessing.width)
        return (*size, 3) if self.kind == "uint8" else (3, *size)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its numbers."""
        return np.dtype(np.uint8 if self.kind == "uint8" else np.float32)

    def apply(self, image: Image.Image) -> npt.NDArray[Any]:
        """One image, scaled and cropped, in this form. Raises InputError as ``Preprocessing.apply`` does."""
        return self.preprocessing.pixels(image) if self.kind == "uint8" else self.preprocessing.apply(image)
