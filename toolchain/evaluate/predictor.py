"""What ``evaluate`` wants of a model, whichever runtime computes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..image_input import ImageInput
from ..preprocess import Preprocessing


class Predictor(Protocol):
    """A model that is ready to run, and what to write down about it.

    ``image`` is the form it takes images in. ``model`` is its path as given, ``sha256`` and ``bytes`` of its content;
    ``provider`` says what computes it; ``environment`` holds versions and settings that ``evaluate`` cannot know.
    """

    @property
    def model(self) -> str: ...  # noqa: D102  (the class docstring says)
    @property
    def sha256(self) -> str: ...  # noqa: D102
    @property
    def bytes(self) -> int: ...  # noqa: D102
    @property
    def provider(self) -> str: ...  # noqa: D102
    @property
    def preprocessing(self) -> Preprocessing: ...  # noqa: D102
    @property
    def image(self) -> ImageInput: ...  # noqa: D102
    @property
    def classes(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def environment(self) -> Mapping[str, Any]: ...  # noqa: D102

    def __call__(self, batch: npt.NDArray[Any], /) -> npt.NDArray[np.floating[Any]]:
        """Logits ``[b, classes]`` of images in the form ``image``, any b from 1."""
