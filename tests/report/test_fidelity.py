"""What a run logs about its layers and blocks, against numpy on timm's float model and the stored codes."""

import json
import mmap

import numpy as np
import pytest
import torch
from PIL import Image

from fimaq.toolchain.artifact import Artifact
from fimaq.toolchain.data import open_dataset
from fimaq.toolchain.model import load_float
from fimaq.toolchain.preprocess import Preprocessing
from fimaq.toolchain.quantize import QuantizeRequest, quantize
from fimaq.toolchain.recipe import Recipe
from fimaq.toolchain.reconstruct import fidelity, peak_memory
from fimaq.toolchain.reconstruct.peak_memory import PROCESS, PeakMemory
from fimaq.toolchain.run_folder import load_run

IMAGES = 20
SAMPLED = 16


def recipe(iterations):
    # Without the re-parameterisation, the float model stays what timm makes of the weights.
    return Recipe.from_dict(
        {
            "name": "test",
            "weights": {"bits": 3},
            "activations": {"bits": 4},
            "calibrate": {
                "samples": IMAGES, "candidates": 8, "rounds": 1, "augment": "eval", "reparam_layernorm": False
            },
            "fisher": {"samples": 4, "rank": 1},
            "reconstruct": {"samples": IMAGES, "iterations": iterations, "batch_size": 4},
        }
    )  # fmt: skip


class Made:
    """A run, its log, and the float model with the first 16 of its calibration images."""

    def __init__(self, folder, data, iterations):
        request = QuantizeRequest("demo_vit", str(data), folder, recipe(iterations), device="cpu")
        quantize(request)
        self.folder = folder
        artifact = Artifact.load(folder)
        self.tensors, self.blocks = artifact.tensors, artifact.manifest["blocks"]
        self.log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        self.model = load_float("demo_vit").module
        images = open_dataset(str(data), require_labels=False)
        preprocessing = Preprocessing.from_json(artifact.manifest["preprocessing"])
        names = artifact.manifest["calibration"]["sample_ids"][:SAMPLED]
        arrays = [preprocessing.apply(images.load(images.sample_ids.index(name))) for name in names]
        self.images = torch.from_numpy(np.stack(arrays))

    def line(self, layer, operand):
        (found,) = [
            row for row in self.log if row["event"] == "grid" and (row["layer"], row["operand"]) == (layer, operand)
        ]
        return found

    def grid(self, layer, operand):
        return (self.tensors[f"{layer}.{operand}.{what}"].astype(float) for what in ("scale", "zero_point"))

    def read(self, layer):
        """What a layer of the float model reads."""
        seen = []
        hook = self.model.get_submodule(layer).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        with torch.no_grad():
            self.model(self.images)
        hook.remove()
        return seen[0].double().numpy()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    (folder / "0").mkdir()
    for index in range(IMAGES):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / "0" / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def rounded(data, tmp_path_factory):
    return Made(tmp_path_factory.mktemp("rounded") / "run", data, 0)


@pytest.fixture(scope="module")
def reconstructed(data, tmp_path_factory):
    return Made(tmp_path_factory.mktemp("reconstructed") / "run", data, 3)


@pytest.fixture(params=["rounded", "reconstructed"])
def made(request):
    return request.getfixturevalue(request.param)


def decibels(wanted, found):
    return 10 * np.log10((wanted**2).sum() / ((found - wanted) ** 2).sum())


def test_every_layer_has_a_line_for_each_operand(made):
    stored = {name.removesuffix(".scale") for name in made.tensors if name.endswith(".scale")}
    lines = [f"{row['layer']}.{row['operand']}" for row in made.log if row["event"] == "grid"]
    assert sorted(lines) == sorted(stored)


@pytest.mark.parametrize("layer", ["blocks.3.mlp.fc1", "patch_embed.proj"])
def test_the_loss_of_a_weight(made, layer):
    codes = made.tensors[f"{layer}.weight.codes"]
    scale, zero = (part.reshape(-1, *[1] * (codes.ndim - 1)) for part in made.grid(layer, "weight"))
    weight = made.model.get_submodule(layer).weight.detach().double().numpy()
    wanted = decibels(weight, (codes - zero) * scale)
    assert made.line(layer, "weight")["snr_db"] == pytest.approx(wanted, abs=1e-3)


def test_the_loss_of_an_input(made):
    x = made.read("blocks.2.mlp.fc2")
    scale, zero = made.grid("blocks.2.mlp.fc2", "input")
    quantized = (np.clip(np.round(x / scale) + zero, 0, 15) - zero) * scale
    line = made.line("blocks.2.mlp.fc2", "input")
    assert line["snr_db"] == pytest.approx(decibels(x, quantized), abs=0.01)  # float32 may round a tie otherwise


@pytest.mark.parametrize("layer", ["blocks.2.mlp.fc2", "blocks.1.attn.qkv"])
def test_the_histogram_of_an_input(made, layer):
    x = made.read(layer)
    scale, zero = made.grid(layer, "input")
    place = x / scale + zero
    line = made.line(layer, "input")
    assert line["range"] == [-4, 20]  # a quarter of 16 codes on either side
    wanted, _ = np.histogram(np.clip(place, -4, 19.999), bins=48, range=(-4, 20))
    assert sum(line["counts"]) == x.size
    assert np.abs(wanted - np.array(line["counts"])).sum() <= 1e-4 * x.size  # float32 at the edge of a bin
    outside = np.mean((np.round(place) < 0) | (np.round(place) > 15))
    assert line["clipped"] == pytest.approx(outside, abs=1e-4)


def test_the_error_of_the_last_output_is_that_of_the_logits(made):
    with torch.no_grad():
        wanted, found = made.model(made.images), load_run(made.folder).model(made.images)
    assert made.blocks[-1]["name"] == "head"
    assert made.blocks[-1]["snr_db_last"] == pytest.approx(decibels(wanted.numpy(), found.numpy()), abs=1e-2)


def test_before_is_rounded_to_nearest(rounded, reconstructed):
    """Of the first block, whose input is the image in both."""
    assert reconstructed.blocks[0]["snr_db_first"] == pytest.approx(rounded.blocks[0]["snr_db_last"], abs=1e-4)
    assert [block["snr_db_first"] for block in rounded.blocks] == [None] * len(rounded.blocks)


def test_what_was_not_worked_on_has_no_time_and_memory(rounded, reconstructed):
    assert {(block["seconds"], block["peak_bytes"]) for block in rounded.blocks} == {(0.0, None)}
    assert all(block["seconds"] > 0 for block in reconstructed.blocks)


def test_no_noise_and_no_signal_have_no_decibels():
    one, nothing = torch.ones(3), torch.zeros(3)
    assert fidelity.snr_db(one, one) is None
    assert fidelity.snr_db(one, nothing) is None
    assert fidelity.snr_db(1.1 * one, one) == pytest.approx(20, abs=1e-4)


@pytest.mark.skipif(not (PROCESS / "clear_refs").exists(), reason="only Linux tells")
def test_the_peak_is_that_of_its_own_time():
    def take(size):
        """Memory that goes back to the system at once, whatever the allocator does."""
        with mmap.mmap(-1, size) as pages:
            for place in range(0, size, mmap.PAGESIZE):
                pages[place] = 1

    take(2**27)
    memory = PeakMemory(torch.device("cpu"))
    start = memory.bytes()
    take(2**25)
    assert memory.bytes() - start == pytest.approx(2**25, rel=0.2)


def test_a_system_that_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(peak_memory, "PROCESS", tmp_path / "nowhere")
    assert PeakMemory(torch.device("cpu")).bytes() is None
