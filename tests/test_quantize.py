"""The main job end to end on the bundled models: what it writes, what decides it, and what it leaves on failure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fimaq.toolchain import quantize as quantizing
from fimaq.toolchain.augment import AREA, RATIO, random_resized_crop
from fimaq.toolchain.calibration_images import load_images
from fimaq.toolchain.checkpoint import (
    Checkpoint,
    FinishedPart,
    at_work,
    open_checkpoint,
    require_idle,
    unfinished_folder,
)
from fimaq.toolchain.data import open_dataset
from fimaq.toolchain.data.demo_set import DEMO_MODELS
from fimaq.toolchain.device import pick_device
from fimaq.toolchain.errors import EnvironmentProblem, InputError
from fimaq.toolchain.families import wrap
from fimaq.toolchain.model import load_float
from fimaq.toolchain.preprocess import Preprocessing
from fimaq.toolchain.progress import NullProgress
from fimaq.toolchain.quantize import QuantizeRequest, quantize
from fimaq.toolchain.recipe import Recipe
from fimaq.toolchain.reconstruct import run as running
from fimaq.toolchain.reconstruct.store import RamStore
from fimaq.toolchain.run_folder import load_run

IMAGES = 10


def recipe(seed: int = 0, iterations: int = 2, **tables: dict[str, Any]) -> Recipe:
    values: dict[str, Any] = {
        "name": "test",
        "seed": seed,
        "weights": {"bits": 4},
        "activations": {"bits": 4},
        "calibrate": {"samples": 6, "candidates": 8, "rounds": 1},
        "fisher": {"samples": 4, "rank": 1},
        "reconstruct": {"samples": 8, "iterations": iterations, "batch_size": 4},
    }
    for table, changes in tables.items():
        values[table] = values[table] | changes
    return Recipe.from_dict(values)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Ten images of noise in two classes."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        path = folder / str(index % 2) / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture
def request_(data, tmp_path) -> QuantizeRequest:
    return QuantizeRequest(
        model="demo_vit", data=str(data), out=tmp_path / "out" / "run", recipe=recipe(), device="cpu"
    )


def left(folder: Path) -> list[str]:
    """Everything below the folder a run was to be written in."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# ---------------------------------------------------------------- what it writes


@pytest.mark.parametrize("model", ["demo_vit", "demo_swin"])
def test_a_run_is_written_and_runs(model, request_):
    request = replace(request_, model=model)
    result = quantize(request)
    assert left(request.out.parent) == ["run", "run/log.jsonl", "run/manifest.json", "run/tensors.safetensors"]
    run = load_run(request.out)
    manifest = run.manifest
    assert (result["run"], result["model"], result["sha256"]) == (str(request.out), model, manifest["sha256"])
    assert (result["wbits"], result["abits"], result["fisher"], result["seed"]) == (4, 4, "dplr", 0)
    assert set(result["seconds"]) == {"calibrate", "reconstruct", "total"}
    assert result["seconds"]["total"] >= result["seconds"]["calibrate"] + result["seconds"]["reconstruct"] - 0.01
    assert [b["name"] for b in result["blocks"]] == [b["name"] for b in manifest["blocks"]]
    assert Recipe.from_dict(manifest["recipe"]) == request.recipe
    assert manifest["model"]["num_classes"] == 10
    assert manifest["device"] == "cpu"
    log = [json.loads(line) for line in (request.out / "log.jsonl").read_text().splitlines()]
    assert [row["name"] for row in log if row["event"] == "block"] == [b["name"] for b in manifest["blocks"]]
    images = open_dataset(request.data, classes=run.classes)
    chosen = images.subset([images.sample_ids.index(name) for name in manifest["calibration"]["sample_ids"]])
    assert len(chosen) == 8  # the most that any part of the recipe wants
    assert manifest["calibration"]["sample_ids_sha256"] == chosen.sample_ids_sha256
    assert manifest["calibration"]["dataset_id"] == chosen.id
    floating = load_float(model)
    x = torch.from_numpy(np.stack([run.preprocessing.apply(images.load(i)) for i in range(4)]))
    with torch.no_grad():
        float_logits, logits = floating.module(x), run.model(x)
    assert (logits - float_logits).abs().max() > 1e-3
    assert (logits - float_logits).square().mean() < float_logits.square().mean()  # 4 bits: near, on noise


def test_the_same_seed_gives_the_same_run_and_another_another(request_, tmp_path):
    def sha(name: str, **changes: Any) -> str:
        return quantize(replace(request_, out=tmp_path / name, **changes))["sha256"]

    first = sha("a")
    torch.manual_seed(1234)  # torch's global generator has no part in it
    assert sha("b") == first
    assert sha("c", recipe=recipe(seed=1)) != first


def test_without_iterations_only_calibration_images_are_read(request_):
    request = replace(request_, recipe=recipe(iterations=0, calibrate={"samples": 3}))
    result = quantize(request)
    assert len(load_run(request.out).manifest["calibration"]["sample_ids"]) == 3
    assert {block["loss_first"] for block in result["blocks"]} == {None}


@pytest.mark.parametrize(("calibrated", "reconstructed"), [(6, 8), (8, 5)])
def test_each_part_gets_as_many_images_as_the_recipe_says(calibrated, reconstructed, request_, monkeypatch):
    class Seen(Exception):
        pass

    counts: list[int] = []
    monkeypatch.setattr(quantizing, "calibrate", lambda model, images, *how: counts.append(len(images)) or {})

    def reconstruct(model: Any, inputs: Any, *how: Any) -> None:
        counts.extend([len(inputs.clean), len(inputs.quant)])
        raise Seen

    monkeypatch.setattr(quantizing, "reconstruct", reconstruct)
    settings = recipe(calibrate={"samples": calibrated}, reconstruct={"samples": reconstructed})
    with pytest.raises(Seen):
        quantize(replace(request_, recipe=settings))
    assert counts == [calibrated, reconstructed, reconstructed]


def test_a_run_is_not_resumed_on_another_kind_of_device(request_, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(quantizing, "reconstruct", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            quantize(request_)
    path = unfinished_folder(request_.out) / "identity.json"
    identity = json.loads(path.read_text())
    assert identity["device"] == "cpu"
    path.write_text(json.dumps(identity | {"device": "cuda"}))
    with pytest.raises(InputError, match="begun otherwise: device was cuda, now cpu"):
        quantize(replace(request_, resume=True))


def test_a_block_of_another_run_is_not_taken(request_):
    """As where two processes were given one -o: the first one's blocks appear in the second one's folder."""
    folder = unfinished_folder(request_.out)
    first, second = ({"recipe": {"seed": seed}} for seed in (0, 1))
    finished = FinishedPart({"a": np.zeros(2, np.float32)}, {"name": "head"}, [])
    open_checkpoint(request_.out, first, resume=False, force=False).save("head", finished)
    kept = (folder / "head.safetensors").read_bytes()
    other = open_checkpoint(request_.out, second, resume=False, force=True)
    (folder / "head.safetensors").write_bytes(kept)
    with pytest.raises(InputError, match="is of another run"):
        other.load("head")


def test_two_processes_do_not_quantize_into_one_run(request_, monkeypatch):
    folder = unfinished_folder(request_.out)
    open_checkpoint(request_.out, {}, resume=False, force=False)
    leftover = request_.out.with_name(f"{request_.out.name}.0123abcd.tmp")
    leftover.mkdir()  # what the other one is writing
    with at_work(request_.out):
        for how in ({}, {"force": True}, {"resume": True}):
            with pytest.raises(InputError, match=r"another process is quantizing into .* give this one another -o"):
                quantize(replace(request_, **how))
        assert leftover.exists()
        assert (folder / "identity.json").read_text() == "{}"

    def reconstruct(*how: Any) -> None:
        require_idle(request_.out)

    monkeypatch.setattr(quantizing, "reconstruct", reconstruct)
    with pytest.raises(InputError, match="another process is quantizing into"):
        quantize(request_)
    require_idle(request_.out)


def test_a_relative_output_and_a_new_parent_folder_are_fine(request_, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quantize(replace(request_, out=Path("new/parent/run"), recipe=recipe(iterations=0)))
    assert left(tmp_path / "new") == [
        "parent", "parent/run", "parent/run/log.jsonl", "parent/run/manifest.json", "parent/run/tensors.safetensors"
    ]  # fmt: skip


# ---------------------------------------------------------------- what can be wrong with the request


def never(*args: object, **kwargs: object) -> None:
    raise AssertionError("hours of work were begun for a request that cannot succeed")


@pytest.mark.parametrize("what", ["run", "file", "folder"])
def test_an_existing_output_is_refused_before_any_work(what, request_, monkeypatch):
    if what == "run":
        quantize(replace(request_, recipe=recipe(iterations=0)))
        message = "exists. Give another -o, or --force to replace it"
    else:
        request_.out.parent.mkdir()
        if what == "file":
            request_.out.write_text("mine")
        else:
            request_.out.mkdir()
            (request_.out / "mine.txt").write_text("mine")
        message = "is not a run folder; it is never overwritten"
    before = left(request_.out.parent)
    monkeypatch.setattr(quantizing, "load_float", never)
    with pytest.raises(InputError, match=message):
        quantize(request_)
    if what != "run":
        with pytest.raises(InputError, match=message):
            quantize(replace(request_, force=True))
    assert left(request_.out.parent) == before


@pytest.mark.parametrize("how", [{}, {"force": True}, {"resume": True}])
@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("/", "/ has no name of its own"),
        ("file/run", "file: Not a directory"),
        ("file/a/run", "file: Not a directory"),
        ("n" * 240, "File name too long"),
        ("n" * 300, "File name too long"),
        ("n" * 300 + "/run", "File name too long"),
        ("/proc/fimaq/run", "/proc: "),
        ("loop", "loop"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_any_work(out, reason, how, request_, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    before = left(tmp_path)
    monkeypatch.setattr(quantizing, "load_float", never)
    with pytest.raises(InputError, match=rf"{reason}.* [Gg]ive another -o"):
        quantize(replace(request_, out=tmp_path / out, **how))
    assert left(tmp_path) == before


@pytest.mark.parametrize("how", ["force", "resume"])
def test_other_files_in_a_run_folder_are_refused_before_any_work(how, request_, monkeypatch):
    quantize(replace(request_, recipe=recipe(iterations=0)))
    (request_.out / "model.onnx").write_text("mine")
    if how == "resume":
        with monkeypatch.context() as broken:
            broken.setattr(quantizing, "reconstruct", raising(RuntimeError("broken")))
            (request_.out / "model.onnx").rename(request_.out.parent / "aside")
            with pytest.raises(RuntimeError):
                quantize(replace(request_, force=True))
            (request_.out.parent / "aside").rename(request_.out / "model.onnx")
    before = left(request_.out.parent)
    monkeypatch.setattr(quantizing, "load_float", never)
    with pytest.raises(InputError, match=r"would be lost: model\.onnx"):
        quantize(replace(request_, **{how: True}))
    assert left(request_.out.parent) == before


def test_force_replaces_a_run_only_when_the_new_one_is_there(request_, monkeypatch):
    old = quantize(replace(request_, recipe=recipe(iterations=0)))["sha256"]
    with monkeypatch.context() as broken:
        broken.setattr(quantizing, "reconstruct", raising(RuntimeError("broken")))
        with pytest.raises(RuntimeError):
            quantize(replace(request_, force=True))
    assert load_run(request_.out).manifest["sha256"] == old
    new = quantize(replace(request_, force=True))["sha256"]
    assert load_run(request_.out).manifest["sha256"] == new != old


def test_fewer_images_than_asked_for(request_):
    request = replace(request_, recipe=recipe(reconstruct={"samples": 11}))
    with pytest.raises(InputError, match=r"11 calibration images were asked for and .* has 10"):
        quantize(request)
    assert not request.out.parent.exists()


def test_no_images(request_, tmp_path):
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match="empty"):
        quantize(replace(request_, data=str(tmp_path / "empty")))
    with pytest.raises(InputError, match="nowhere"):
        quantize(replace(request_, data=str(tmp_path / "nowhere")))
    assert not request_.out.parent.exists()


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 no more of a JPEG than this"])
def test_a_corrupt_image_is_named(content, request_, tmp_path):
    for index in range(8):
        path = tmp_path / "pictures" / "a" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (index, 0, 0)).save(path)
    (tmp_path / "pictures" / "a" / "5.jpg").write_bytes(content)
    with pytest.raises(InputError, match=r"a/5\.jpg"):
        quantize(replace(request_, data=str(tmp_path / "pictures")))
    assert left(request_.out.parent) == []


def test_a_device_that_is_not_there(request_, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(quantizing, "load_float", never)
    for name in ("cuda", "cuda:0", "cuda:3"):
        with pytest.raises(EnvironmentProblem, match=f"device {name} was asked for and torch sees 0 CUDA devices"):
            quantize(replace(request_, device=name))
    assert not request_.out.parent.exists()
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(EnvironmentProblem, match="cuda:2 was asked for and torch sees 2 CUDA"):
        pick_device("cuda:2")


def test_a_model_that_is_not_there(request_):
    with pytest.raises(InputError, match="Nearest: demo_vit"):
        quantize(replace(request_, model="demo_vitt"))
    assert not request_.out.parent.exists()


# ---------------------------------------------------------------- failure and interruption


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("error", [RuntimeError("broken"), InputError("broken"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("where", ["load_images", "calibrate", "reconstruct", "run_tensors"])
def test_nothing_half_written_is_left(where, error, request_, monkeypatch):
    monkeypatch.setattr(quantizing, where, raising(error))
    with pytest.raises(type(error)):
        quantize(request_)
    assert not request_.out.exists()
    # only what --resume goes on from may be there, hidden
    folder = request_.out.parent
    assert not folder.exists() or {path.name for path in folder.iterdir()} <= {".run.unfinished"}


def test_nan_in_the_result_is_refused(request_, monkeypatch):
    original = quantizing.reconstruct

    def spoiled(model: Any, *args: Any) -> Any:
        rows = original(model, *args)
        model.layers["blocks.2.attn.qkv"].input_quantizer.scale.data.fill_(float("nan"))
        return rows

    monkeypatch.setattr(quantizing, "reconstruct", spoiled)
    with pytest.raises(
        InputError, match=r"quantization gave NaN or infinity in .*blocks\.2\.attn.*qkv\.input_quantizer"
    ):
        quantize(request_)
    assert not request_.out.exists()


def test_a_block_that_diverged_ends_the_run_and_is_not_kept(request_, monkeypatch):
    """Its codes and scales may be finite all the same."""
    original = running.reconstruct_block

    def diverging(name: str, *args: Any) -> Any:
        first, last = original(name, *args)
        return first, float("nan") if name == "blocks.1" else last

    monkeypatch.setattr(running, "reconstruct_block", diverging)
    with pytest.raises(InputError, match=r"NaN or infinity in the loss of blocks\.1"):
        quantize(request_)
    kept = {path.name for path in (request_.out.parent / ".run.unfinished").glob("*.safetensors")}
    assert kept == {"calibration.safetensors", "patch_embed.safetensors", "blocks.0.safetensors"}


def test_seconds_are_those_of_all_attempts(request_, monkeypatch):
    original = quantizing.reconstruct

    def resumed(*args: Any) -> Any:
        rows = original(*args)
        rows[0]["seconds"] += 1000  # as a checkpoint says it
        return rows

    monkeypatch.setattr(quantizing, "reconstruct", resumed)
    seconds = quantize(request_)["seconds"]
    assert seconds["reconstruct"] > 1000
    assert seconds["total"] > seconds["calibrate"] + seconds["reconstruct"]


def test_seconds_of_calibration_are_those_it_took(request_, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(quantizing, "reconstruct", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            quantize(request_)
    checkpoint = Checkpoint(unfinished_folder(request_.out))
    with safe_open(checkpoint.folder / "calibration.safetensors", framework="numpy") as file:
        checkpoint.of = file.metadata()["of"]
    kept = checkpoint.load("calibration")
    assert kept.row["seconds"] > 0
    checkpoint.save("calibration", replace(kept, row={"seconds": 1000.0}))
    seconds = quantize(replace(request_, resume=True))["seconds"]
    assert seconds["calibrate"] == 1000
    assert seconds["total"] > 1000 + seconds["reconstruct"]


def log_of(run: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl without what was measured of the machine."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {line["event"] for line in lines} >= {"block", "step"}
    measured = ("seconds", "peak_bytes", "held")
    return [{key: value for key, value in line.items() if not key.startswith(measured)} for line in lines]


def test_an_interrupted_run_is_resumed_to_the_same_tensors(request_, tmp_path, monkeypatch):
    whole = quantize(replace(request_, out=tmp_path / "whole"))
    original, begun = running.reconstruct_block, []

    def interrupted(name: str, *args: Any) -> Any:
        begun.append(name)
        if name == "blocks.2":
            raise KeyboardInterrupt
        return original(name, *args)

    with monkeypatch.context() as patch:
        patch.setattr(running, "reconstruct_block", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quantize(request_)
    assert begun == ["patch_embed", "blocks.0", "blocks.1", "blocks.2"]
    assert not request_.out.exists()

    with pytest.raises(InputError, match=r"begun otherwise: .*recipe\.seed was 0, now 5"):
        quantize(replace(request_, resume=True, recipe=recipe(seed=5)))
    with monkeypatch.context() as patch:
        begun.clear()
        patch.setattr(running, "reconstruct_block", lambda name, *args: (begun.append(name), original(name, *args))[1])
        patch.setattr(quantizing, "calibrate", raising(AssertionError("calibrated again")))
        resumed = quantize(replace(request_, resume=True))
    assert begun == ["blocks.2", "blocks.3", "blocks.4", "blocks.5", "blocks.6", "blocks.7", "head"]
    assert resumed["sha256"] == whole["sha256"]
    assert [b["name"] for b in resumed["blocks"]] == [b["name"] for b in whole["blocks"]]
    assert log_of(request_.out) == log_of(tmp_path / "whole")
    assert resumed["seconds"]["reconstruct"] == pytest.approx(sum(b["seconds"] for b in resumed["blocks"]))
    assert resumed["seconds"]["total"] > resumed["seconds"]["calibrate"] + resumed["seconds"]["reconstruct"]
    assert left(request_.out.parent) == ["run", "run/log.jsonl", "run/manifest.json", "run/tensors.safetensors"]
    with pytest.raises(InputError, match=r"there is no unfinished run of .* to resume"):
        quantize(replace(request_, resume=True, out=tmp_path / "other"))


def first_number(content: bytes) -> bytes:
    """One bit of the first number, behind the header."""
    start = 8 + int.from_bytes(content[:8], "little")
    return content[:start] + bytes([content[start] ^ 1]) + content[start + 1 :]


@pytest.mark.parametrize("how", [lambda content: content[:-1], lambda content: b"", first_number])
def test_a_damaged_block_is_said_before_any_work_and_learned_again(how, request_, tmp_path, monkeypatch):
    whole = quantize(replace(request_, out=tmp_path / "whole"))["sha256"]
    with monkeypatch.context() as patch:
        original = running.reconstruct_block

        def interrupted(name: str, *args: Any) -> Any:
            if name == "blocks.2":
                raise KeyboardInterrupt
            return original(name, *args)

        patch.setattr(running, "reconstruct_block", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quantize(request_)
    folder = request_.out.parent / ".run.unfinished"
    block = folder / "blocks.0.safetensors"
    block.write_bytes(how(block.read_bytes()))
    litter = folder / "blocks.3.tmp"  # of a kill inside a write
    litter.write_bytes(b"half")
    with monkeypatch.context() as patch:
        patch.setattr(quantizing, "load_images", raising(AssertionError("work was done")))
        with pytest.raises(InputError, match=r"blocks\.0\.safetensors is damaged .*Remove that file"):
            quantize(replace(request_, resume=True))
    assert not litter.exists()
    assert (folder / "blocks.1.safetensors").exists()
    block.unlink()
    assert quantize(replace(request_, resume=True))["sha256"] == whole


@pytest.mark.parametrize("content", ["", '{"recipe": {"na', "[]"])
def test_a_damaged_identity_is_no_bug(content, request_, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(quantizing, "reconstruct", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            quantize(request_)
    (request_.out.parent / ".run.unfinished" / "identity.json").write_text(content)
    with pytest.raises(InputError, match=r"identity\.json.* is damaged .*--force"):
        quantize(replace(request_, resume=True))


@pytest.mark.parametrize("changed", ["weights_sha256", "images"])
def test_a_run_is_not_resumed_on_other_weights_or_images(changed, request_, tmp_path, monkeypatch):
    images, weights = tmp_path / "images", tmp_path / "weights.safetensors"
    shutil.copytree(request_.data, images)
    state = load_file(DEMO_MODELS["demo_vit"].weights)
    save_file(state, weights)
    request = replace(request_, data=str(images), weights=weights)
    with monkeypatch.context() as patch:
        patch.setattr(quantizing, "reconstruct", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            quantize(request)
    if changed == "weights_sha256":
        state["blocks.3.mlp.fc1.weight"][5, 7] += 1e-3
        save_file(state, weights)
    else:  # the same names, other pixels
        for path in images.rglob("*.png"):
            ImageOps.invert(Image.open(path)).save(path)
    with pytest.raises(InputError, match=rf"begun otherwise: {changed} was \w+\.*, now \w+\.*\. Resume with the same"):
        quantize(replace(request, resume=True))


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["demo_vit", "demo_swin"])
def test_a_run_on_cuda_is_interrupted_and_resumed(model, request_, monkeypatch):
    request = replace(request_, model=model, device="cuda")
    original = running.reconstruct_block

    def interrupted(name: str, *args: Any) -> Any:
        if name == "head":
            raise KeyboardInterrupt
        return original(name, *args)

    with monkeypatch.context() as patch:
        patch.setattr(running, "reconstruct_block", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quantize(request)
    quantize(replace(request, resume=True))
    run = load_run(request.out)
    assert run.manifest["device"].startswith("cuda")
    assert run.model(torch.zeros(2, 3, 32, 32)).isfinite().all()


# ---------------------------------------------------------------- images


def pictures(folder: Path, sizes: list[tuple[int, int]]) -> Any:
    rng = np.random.default_rng(0)
    (folder / "a").mkdir(parents=True)
    for index, (width, height) in enumerate(sizes):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "a" / f"{index}.png")
    return open_dataset(str(folder), require_labels=False)


PREPROCESSING = Preprocessing(8, 8, 0.875, "center", "bicubic", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def test_evaluation_images_are_those_of_the_preprocessing(tmp_path):
    images = pictures(tmp_path, [(12, 9), (9, 30)])
    got = load_images(images, PREPROCESSING, recipe(calibrate={"augment": "eval"}), NullProgress(), RamStore())
    wanted = np.stack([PREPROCESSING.apply(images.load(index)) for index in range(2)])
    assert torch.equal(got, torch.from_numpy(wanted))
    assert got.dtype == torch.float32


def test_training_images_are_decided_by_seed_and_name(tmp_path):
    images = pictures(tmp_path, [(24, 18)] * 6)

    def load(order: list[int], seed: int) -> torch.Tensor:
        settings = recipe(seed=seed, calibrate={"augment": "train"})
        return load_images(images.subset(order), PREPROCESSING, settings, NullProgress(), RamStore())

    one = load([0, 1, 2, 3, 4, 5], 0)
    assert torch.equal(load([5, 3, 1], 0), one[[5, 3, 1]])
    assert not torch.equal(load([0, 1, 2, 3, 4, 5], 1), one)
    assert one.shape == (6, 3, 8, 8)


@pytest.mark.parametrize("size", [(200, 150), (150, 200), (10, 500), (500, 10), (1, 1), (3, 2)])
def test_a_crop_lies_in_the_image_and_has_an_allowed_shape(size):
    """Two gradients tell where a crop came from: red grows to the right, green downwards."""
    width, height = size
    across = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    down = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    image = Image.fromarray(np.stack([across, down, down], -1).astype(np.uint8))
    flips, shares, lefts, tops = 0, [], [], []
    for number in range(200):
        crop = random_resized_crop(image, PREPROCESSING, 0, f"{number}.png")
        assert crop.size == (8, 8)
        pixels = np.asarray(crop, dtype=float)
        red, green = pixels[4, :, 0], pixels[:, 4, 1]
        flips += red[-1] < red[0]
        lefts.append(min(red[0], red[-1]) / 255)
        tops.append(green[0] / 255)
        # between the first and last of eight pixel centres lie seven eighths of the crop
        crop_width, crop_height = (
            abs(red[-1] - red[0]) / 255 * width * 8 / 7,
            (green[-1] - green[0]) / 255 * height * 8 / 7,
        )
        shares.append(crop_width * crop_height / (width * height))
        if min(size) > 100:
            assert AREA[0] * 0.8 < shares[-1] <= AREA[1] * 1.1
            assert RATIO[0] * 0.85 < crop_width / crop_height < RATIO[1] * 1.15
    if min(size) > 100:
        assert 60 < flips < 140  # half of 200, within five deviations
        assert max(shares) > 0.8
        assert min(shares) < 0.2
        assert max(lefts) > 0.5  # small crops come from everywhere
        assert max(tops) > 0.5


def test_a_wrapped_model_is_the_one_that_is_quantized(request_, monkeypatch):
    """Wrapping happens before images are decoded: an unsupported architecture does not cost an hour of decoding."""
    order: list[str] = []
    monkeypatch.setattr(quantizing, "wrap", lambda *args: (order.append("wrap"), wrap(*args))[1])
    monkeypatch.setattr(quantizing, "load_images", lambda *args: (order.append("images"), load_images(*args))[1])
    quantize(replace(request_, recipe=recipe(iterations=0)))
    assert order == ["wrap", "images"]
