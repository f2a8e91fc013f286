"""The fake-quantized torch model of a run folder as a Predictor, to compare an ONNX file with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch

from ..artifact import TENSORS
from ..errors import EnvironmentProblem, UsageError
from ..image_input import ImageInput
from ..preprocess import Preprocessing


@final
class TorchPredictor:
    """A run folder's model on ``device`` ("cpu", "cuda", "cuda:1"), computing in ``dtype`` (float32 or float64).

    ``sha256`` is the run's content hash, ``bytes`` the size of its tensors on disk.

    Raises InputError for a folder that is not a run, EnvironmentProblem for a device that is not there.
    """

    def __init__(self, run: Path | str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        from ..run_folder import load_run

        self._device, self._dtype = _device(device), dtype
        loaded = load_run(Path(run))
        self._model = loaded.model.to(device=self._device, dtype=dtype).eval()
        self.model = str(run)
        self.sha256: str = loaded.manifest["sha256"]
        self.bytes = (Path(run) / TENSORS).stat().st_size
        self.provider = f"torch-{device}"
        self.preprocessing: Preprocessing = loaded.preprocessing
        self.image = ImageInput(self.preprocessing, "float")
        self.classes: Mapping[str, Any] = loaded.classes
        self.environment: Mapping[str, Any] = {
            "dtype": str(dtype).removeprefix("torch."),
            "device": torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
        }

    @torch.inference_mode()
    def __call__(self, batch: npt.NDArray[np.float32], /) -> npt.NDArray[np.floating[Any]]:
        """Logits ``[b, classes]``, in the model's dtype, of images ``[b, 3, h, w]``."""
        images = torch.from_numpy(batch).to(device=self._device, dtype=self._dtype)
        logits: npt.NDArray[np.floating[Any]] = self._model(images).cpu().numpy()
        return logits


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"device {name!r} is none torch knows; wanted cpu, cuda or cuda:N. Correct --device."
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EnvironmentProblem(
            f"device {name} was asked for and torch sees {torch.cuda.device_count()} CUDA devices. Use --device cpu."
        )
    return device
