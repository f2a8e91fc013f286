"""The torch backend: it gives the model's own logits, in the dtype asked for, and says what it is."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fimaq.toolchain import run_folder
from fimaq.toolchain.data import open_dataset
from fimaq.toolchain.errors import EnvironmentProblem, InputError, UsageError
from fimaq.toolchain.evaluate import evaluate
from fimaq.toolchain.evaluate.torch_backend import TorchPredictor
from fimaq.toolchain.preprocess import Preprocessing

PREPROCESSING = Preprocessing(8, 8, 1.0, "center", "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder as far as the backend looks into it, and the model ``load_run`` gives for it."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 7), nn.Dropout(0.9)).train()
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "tensors.safetensors").write_bytes(b"x" * 1234)
    classes = {"wnids": None, "names": list("abcdefg")}
    loaded = SimpleNamespace(model=module, preprocessing=PREPROCESSING, classes=classes, manifest={"sha256": "ab" * 32})
    monkeypatch.setattr(run_folder, "load_run", lambda path: loaded)
    return SimpleNamespace(folder=folder, linear=module[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_gives_the_models_logits(run, tmp_path, dtype):
    rng = np.random.default_rng(0)
    for index in range(14):
        path = tmp_path / "data" / "abcdefg"[index % 7] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(path)
    predictor = TorchPredictor(run.folder, dtype=dtype)
    images = open_dataset(tmp_path / "data", classes=predictor.classes)
    result = evaluate(predictor, images, batch_size=4, keep_logits=True)
    arrays = np.stack([PREPROCESSING.apply(images.load(index)) for index in range(14)]).reshape(14, -1)
    weight, bias = (tensor.detach().double().numpy() for tensor in (run.linear.weight, run.linear.bias))
    # float32 sums of 192 products; dropout would be far off.
    np.testing.assert_allclose(result.predictions.logits, arrays @ weight.T + bias, atol=1e-5)
    found = result.to_json()
    assert (found["provider"], found["sha256"], found["bytes"]) == ("torch-cpu", "ab" * 32, 1234)
    assert found["environment"]["dtype"] == str(dtype).removeprefix("torch.")
    assert predictor(np.zeros((1, 3, 8, 8), np.float32)).dtype == (np.float64 if dtype == torch.float64 else np.float32)


def test_devices_that_are_not_there(run):
    with pytest.raises(UsageError, match="--device"):
        TorchPredictor(run.folder, device="tpu9000")
    with pytest.raises(EnvironmentProblem, match="--device cpu"):
        TorchPredictor(run.folder, device="cuda:99")


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match=r"manifest\.json"):
        TorchPredictor(tmp_path)
