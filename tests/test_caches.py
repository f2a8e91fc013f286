"""Where the caches lie: the same result everywhere, nothing left behind, and an estimate that holds."""

from __future__ import annotations

import errno
import gc
import json
import os
import re
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner
from timm.layers import set_fused_attn
from torch import Tensor

from fimaq.cli.main import cli
from fimaq.toolchain import quantize as quantizing
from fimaq.toolchain.calibrate import calibrate
from fimaq.toolchain.checkpoint import Checkpoint
from fimaq.toolchain.data.demo_set import materialise
from fimaq.toolchain.errors import EnvironmentProblem
from fimaq.toolchain.families import QuantModel, wrap
from fimaq.toolchain.fisher import make_fisher
from fimaq.toolchain.progress import NullProgress
from fimaq.toolchain.quantize import QuantizeRequest, quantize
from fimaq.toolchain.recipe import Recipe
from fimaq.toolchain.reconstruct import estimate as estimating
from fimaq.toolchain.reconstruct import place, reconstruct, store
from fimaq.toolchain.reconstruct.block import reconstruct_block
from fimaq.toolchain.reconstruct.cache import BlockCache, BlockInputs
from fimaq.toolchain.reconstruct.estimate import MemoryEstimate, estimate_memory
from fimaq.toolchain.reconstruct.fidelity import grid_lines
from fimaq.toolchain.reconstruct.meter import TensorMeter
from fimaq.toolchain.reconstruct.place import plan_caches
from fimaq.toolchain.reconstruct.probe import probe
from fimaq.toolchain.reconstruct.store import DiskStore, RamStore
from fimaq.toolchain.reconstruct.tail import tail_after

CPU = torch.device("cpu")
MB = 10**6


def recipe(samples: int = 8, **fisher: Any) -> Recipe:
    return Recipe.from_dict(
        {
            "name": "cached",
            "weights": {"bits": 4},
            "activations": {"bits": 4},
            "calibrate": {"samples": 4, "candidates": 8, "rounds": 1},
            "fisher": {"samples": 4, "rank": 1} | fisher,
            "reconstruct": {"samples": samples, "iterations": 2, "batch_size": 4},
        }
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return materialise(tmp_path_factory.mktemp("digits")).calib


@pytest.fixture
def request_(data, tmp_path) -> QuantizeRequest:
    return QuantizeRequest("demo_vit", str(data), tmp_path / "runs" / "run", recipe(), device="cpu")


# ---------------------------------------------------------------- the result


@pytest.mark.parametrize(("model", "fisher"), [("demo_vit", "dplr"), ("demo_swin", "brecq")])
def test_the_result_does_not_depend_on_where_the_caches_lie(model, fisher, request_, tmp_path):
    found = {}
    for cache in ("auto", "device", "ram", "disk"):
        request = replace(request_, model=model, recipe=recipe(kind=fisher), out=tmp_path / cache, cache=cache)
        found[cache] = quantize(request)
        first = json.loads((request.out / "log.jsonl").read_text().splitlines()[0])
        assert (first["event"], first["cache"]) == ("memory", "disk" if cache == "disk" else "ram")
        assert first["needs"]["disk"] == (first["parts"]["caches"] + first["parts"]["probes"]) * (cache == "disk")
    assert len({result["sha256"] for result in found.values()}) == 1
    losses = [[(row["loss_first"], row["loss_last"]) for row in result["blocks"]] for result in found.values()]
    assert losses == [losses[0]] * 4
    assert {path.name for path in tmp_path.iterdir()} == set(found)


def test_caches_may_lie_elsewhere_than_the_block_computes():
    """Rows are gathered where they lie."""
    rows = torch.arange(12.0).view(4, 3)
    cache = BlockCache(rows, rows + 1, rows + 2)
    clean, quant, target = cache.batch(torch.tensor([2, 2, 0]))
    assert torch.equal(clean, rows[[2, 2, 0]])
    assert torch.equal(quant, rows[[2, 2, 0]] + 1)
    assert torch.equal(target, rows[[2, 2, 0]] + 2)


@pytest.mark.gpu
def test_the_result_on_cuda_does_not_depend_on_where_the_caches_lie(request_, tmp_path):
    found = {
        cache: quantize(replace(request_, device="cuda", out=tmp_path / cache, cache=cache))["sha256"]
        for cache in ("device", "ram", "disk")
    }
    assert len(set(found.values())) == 1


# ---------------------------------------------------------------- files


def test_a_cache_on_disk_is_a_file_without_a_name_that_goes_with_its_tensor(tmp_path):
    tensor = DiskStore(tmp_path).empty(3, 1000, 5)
    tensor.copy_(torch.arange(15000.0).view(3, 1000, 5))
    assert tensor.dtype == torch.float32
    assert tensor.sum() == 15000 * 14999 / 2
    assert list(tmp_path.iterdir()) == []
    part = tensor[1]
    del tensor
    gc.collect()
    assert part[0, 0] == 5000  # a view keeps the file
    with open("/proc/self/maps") as maps:
        assert str(tmp_path) in maps.read()
    del part
    gc.collect()
    with open("/proc/self/maps") as maps:
        assert str(tmp_path) not in maps.read()


def test_memory_of_a_cache_goes_back_to_the_system():
    tensor = RamStore().empty(50 * MB // 4)
    assert tensor.shape == (50 * MB // 4,)
    assert tensor.data_ptr() % os.sysconf("SC_PAGE_SIZE") == 0  # a mapping of its own: `quantize` keeps the heap
    tensor.fill_(1.0)

    def mapped() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = mapped()
    del tensor
    gc.collect()
    assert before - mapped() > 45 * MB


def test_a_disk_that_fills_up_is_said_and_nothing_is_left(request_, monkeypatch):
    made: list[int] = []

    def full(descriptor: int, offset: int, size: int) -> None:
        made.append(size)
        if len(made) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store.os, "posix_fallocate", lambda *how: (full(*how), os.ftruncate(how[0], how[2])))
    with pytest.raises(EnvironmentProblem, match=r"cannot be made in .*No space left.*give --cache ram; then --resume"):
        quantize(replace(request_, cache="disk"))
    assert [path.name for path in request_.out.parent.iterdir()] == [".run.unfinished"]
    assert not list((request_.out.parent / ".run.unfinished").glob("*cache"))
    monkeypatch.undo()
    assert quantize(replace(request_, resume=True))["sha256"]


def test_what_a_kill_left_is_gone_after_the_next_start(request_):
    out = request_.out
    quantize(replace(request_, recipe=replace(request_.recipe, seed=1)))
    finished = json.loads((out / "manifest.json").read_text())["sha256"]
    out.rename(out.with_name(".run.0123abcd.old"))  # killed between two renames: this is the only run there is
    for name in (".run.89abcdef.tmp", ".run.unfinished.89abcdef.tmp"):
        out.with_name(name).mkdir()
    out.with_name("other.89abcdef.tmp").mkdir()  # someone else's
    with pytest.raises(quantizing.InputError, match="exists"):
        quantize(request_)
    assert json.loads((out / "manifest.json").read_text())["sha256"] == finished
    assert sorted(path.name for path in out.parent.iterdir()) == ["other.89abcdef.tmp", "run"]


# ---------------------------------------------------------------- the estimate


@pytest.fixture
def _fused_attention():
    set_fused_attn(enable=True, experimental=True)
    yield
    set_fused_attn(enable=True, experimental=False)


class Square:
    settled = True

    def before_step(self, step: int, module: Any, cache: BlockCache) -> None:
        pass

    def loss(self, output: Tensor, target: Tensor, images: Tensor) -> Tensor:
        return (output - target).square().mean()


def vit(depth: int, width: int = 32) -> QuantModel:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": width, "depth": depth, "num_heads": 2, "num_classes": 5}
    return wrap(timm.create_model("vit_tiny_patch16_224", **sizes), (3, 16, 16))


def test_the_meter_counts_what_is_alive_at_once():
    with TensorMeter() as meter:
        a = torch.zeros(1000)
        b = a + 1  # 8,000 bytes
        view = b[:10]
        del a, b
        c = view * 2  # the view keeps 4,000, and 40 more
        b = torch.zeros(500)
        assert meter.peak == 8000
        del view
        meter.restart()
        assert meter.peak == 2040
        torch.zeros(250).add_(c[0])
        assert meter.peak == 3040
        del b


@pytest.mark.usefixtures("_fused_attention")
@pytest.mark.parametrize(("depth", "samples"), [(1, 40), (3, 24)])
def test_caches_and_probes_are_as_large_as_was_estimated(depth, samples, tmp_path):
    """Counted: the bytes of all tensors that the store made and that are alive at once."""
    live = {"now": 0, "peak": 0}

    class Counting:
        def empty(self, *shape: int) -> Tensor:
            tensor = RamStore().empty(*shape)
            live["now"] += tensor.nbytes
            live["peak"] = max(live["peak"], live["now"])
            weakref.finalize(tensor.untyped_storage(), self.freed, tensor.nbytes)
            return tensor

        def freed(self, size: int) -> None:
            live["now"] -= size

    model, settings = vit(depth), recipe(samples)
    estimate = estimate_memory(model, (3, 16, 16), settings, samples)
    counting = Counting()
    images = counting.empty(samples, 3, 16, 16)
    images.copy_(torch.randn(samples, 3, 16, 16))
    calibrate(model, images[:4], settings, NullProgress())
    inputs = BlockInputs(images, images)
    del images
    reconstruct(model, inputs, settings, NullProgress(), lambda row: None, Checkpoint(tmp_path), counting)
    assert 0.8 * estimate.stored < live["peak"] <= estimate.stored


@pytest.mark.usefixtures("_fused_attention")
def test_a_step_takes_what_the_line_through_a_few_images_says():
    """Against 24 images, a step without a probe."""
    model, batch = vit(2), 24
    settings = recipe(batch)
    settings = replace(
        settings,
        fisher=replace(settings.fisher, samples=1),
        reconstruct=replace(settings.reconstruct, batch_size=batch, iterations=3),
    )
    estimate = estimate_memory(model, (3, 16, 16), settings, batch)
    calibrate(model, torch.randn(4, 3, 16, 16), settings, NullProgress())
    block = model.blocks[1]
    x = torch.randn(batch, 17, 32)
    with torch.no_grad():
        cache = BlockCache(x, x, block.module(x))
    layers = {name: model.layers[name] for name in model.block_layers[block.name]}

    with TensorMeter() as meter, NullProgress().task("", 0) as task:
        reconstruct_block(block.name, block.module, layers, cache, Square(), settings, lambda row: None, task)
    # Fisher's loss has a few more values of the output's size than a mean square.
    assert 0.8 * estimate.step < meter.peak <= 1.05 * estimate.step


@pytest.mark.usefixtures("_fused_attention")
@pytest.mark.parametrize("iterations", [0, 2])
def test_what_the_log_says_of_the_grids_is_in_the_estimate(iterations, monkeypatch):
    """It looks at 16 images, however small the batch."""
    monkeypatch.setattr(estimating, "_search", lambda layers: 0)  # else a model as small as this has no other part
    model = vit(1)
    settings = recipe(16)
    settings = replace(settings, fisher=replace(settings.fisher, samples=1)).with_overrides(
        iters=iterations, batch_size=1, calib_samples=1
    )
    estimate = estimate_memory(model, (3, 16, 16), settings, 16)
    block = model.blocks[1]
    layers = {name: model.layers[name] for name in model.block_layers[block.name]}
    estimating._give_grids(layers)
    with TensorMeter() as meter:
        grid_lines(block, layers, torch.randn(16, 17, 32))
    assert meter.peak <= 1.05 * (estimate.fixed - estimate.model)


@pytest.mark.usefixtures("_fused_attention")
@pytest.mark.parametrize(("kind", "rank"), [("dplr", 5), ("brecq", 1)])
def test_what_is_kept_of_probes_is_in_the_estimate(kind, rank):
    """Of 24 images each."""
    settings = recipe(24, kind=kind, rank=rank)
    settings = replace(settings, fisher=replace(settings.fisher, samples=24))
    estimate = estimate_memory(vit(1), (3, 16, 16), settings, 24)
    fisher, probes = make_fisher(kind), [torch.randn(2, 24, 17 * 32) for _ in range(rank)]
    with TensorMeter() as meter:
        for error, gradient in probes:
            fisher.update(error, gradient, torch.arange(24))
        del error, gradient
        fisher.loss(probes[0][0, :1], torch.arange(1))
        gc.collect()
        meter.restart()
        assert meter.peak <= estimate.fisher


@pytest.mark.usefixtures("_fused_attention")
def test_a_probes_chunk_is_in_the_estimate():
    """32 images through the rest of the network, where a step has one."""
    model, settings = vit(2), recipe(32)
    settings = replace(settings, fisher=replace(settings.fisher, samples=32)).with_overrides(batch_size=1)
    estimate = estimate_memory(model, (3, 16, 16), settings, 32)
    images, block = torch.randn(32, 3, 16, 16), model.blocks[0]
    with torch.no_grad():
        target, logits = block.module(images), model(images)
    estimating._give_grids({name: model.layers[name] for name in model.block_layers[block.name]})
    with TensorMeter() as meter:
        probe(block.module, tail_after(model, 0), images, target, logits, 1.0, RamStore())
    assert 0.8 * estimate.step < meter.peak <= 1.05 * estimate.step


@pytest.mark.usefixtures("_fused_attention")
def test_what_learning_keeps_beside_the_weights_is_in_the_estimate():
    """A wide block and one image: little but the rounding, its gradient and Adam's moments."""
    model = vit(1, 256)
    settings = recipe(4).with_overrides(fisher_samples=1, batch_size=1, recon_samples=1)
    estimate = estimate_memory(model, (3, 16, 16), settings, 1)
    calibrate(model, torch.randn(1, 3, 16, 16), settings, NullProgress())
    block = model.blocks[1]
    layers = {name: model.layers[name] for name in model.block_layers[block.name]}
    x = torch.randn(1, 17, 256)
    with torch.no_grad():
        cache = BlockCache(x, x, block.module(x))
    with TensorMeter() as meter, NullProgress().task("", 0) as task:
        reconstruct_block(block.name, block.module, layers, cache, Square(), settings, lambda row: None, task)
    assert 0.8 * estimate.step < meter.peak <= 1.05 * estimate.step


@pytest.mark.usefixtures("_fused_attention")
def test_outputs_of_calibration_images_are_in_the_estimate():
    """So many that they are more than the samples of the search."""
    model, settings = vit(1), recipe(8000).with_overrides(iters=0, calib_samples=8000)
    estimate = estimate_memory(model, (3, 16, 16), settings, 8000)
    images = torch.randn(8000, 3, 16, 16)
    with TensorMeter() as meter:
        calibrate(model, images, settings, NullProgress())
    assert meter.peak <= estimate.search


@pytest.mark.usefixtures("_fused_attention")
def test_an_estimate_leaves_the_model_as_it_was():
    model = vit(1)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before = model(x)
    estimate = estimate_memory(model, (3, 16, 16), recipe(), 24)
    with torch.no_grad():
        assert torch.equal(model(x), before)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert estimate.model == sum(value.nbytes for value in model.state_dict().values())
    assert estimate.caches == (3 * 16 * 16 + 2 * 17 * 32) * 24 * 4  # images, target and quantized output
    assert estimate.probes == 2 * 4 * 17 * 32 * 4


@pytest.mark.usefixtures("_fused_attention")
def test_rounding_to_nearest_takes_what_its_search_takes_and_no_step(monkeypatch):
    """However few images reconstruction would have: without steps nothing is probed."""
    monkeypatch.setattr(estimating, "_search", lambda layers: 0)  # else a model as small as this has no other part
    rounded = recipe().with_overrides(iters=0)
    found = estimate_memory(vit(1), (3, 16, 16), rounded, 4)
    assert estimate_memory(vit(1), (3, 16, 16), rounded.with_overrides(recon_samples=1), 4) == found
    assert found.search == estimate_memory(vit(1), (3, 16, 16), recipe(), 4).search
    assert (found.step, found.fisher, found.probes) == (0, 0, 0)


def test_rounding_to_nearest_runs_with_fewer_images_than_fisher_would_have(request_):
    rounded = recipe().with_overrides(iters=0, recon_samples=2)
    assert rounded.fisher.samples > rounded.reconstruct.samples
    rows = quantize(replace(request_, recipe=rounded))["blocks"]
    assert [row["loss_last"] for row in rows] == [None] * len(rows)


# ---------------------------------------------------------------- the choice

ESTIMATE = MemoryEstimate(50 * MB, caches=1000 * MB, probes=100 * MB, fisher=10 * MB, step=200 * MB, search=90 * MB)


def free(monkeypatch: pytest.MonkeyPatch, memory: int | None, disk: int, device: int = 0) -> None:
    monkeypatch.setattr(place, "LIBRARIES", 0)
    monkeypatch.setattr(place, "free_memory", lambda: memory)
    monkeypatch.setattr(place, "free_disk", lambda folder: disk)
    monkeypatch.setattr(place.torch.cuda, "mem_get_info", lambda where: (device, 0))


@pytest.mark.parametrize(
    ("device", "memory", "disk", "on_device", "chosen", "passed"),
    [
        ("cpu", 1573 * MB, 0, 0, "ram", 0),  # 1.2 times 1,310
        ("cpu", 1571 * MB, 1321 * MB, 0, "disk", 1),  # 1.2 times 1,100 on disk, 210 in memory
        ("cpu", None, 0, 0, "ram", 0),  # a system that does not tell
        ("cuda", 0, 0, 1873 * MB, "device", 0),  # 1.2 times 1,560: a recorded step stays on the device
        ("cuda", 1201 * MB, 0, 1871 * MB, "ram", 1),  # a probe stays on the device
        ("cuda", 1199 * MB, 1201 * MB, 673 * MB, "disk", 2),
    ],
)
def test_auto_takes_the_first_place_with_room(device, memory, disk, on_device, chosen, passed, monkeypatch, tmp_path):
    free(monkeypatch, memory, disk, on_device)
    plan = plan_caches("auto", ESTIMATE, torch.device(device), tmp_path)
    assert plan.place == chosen
    *passed_over, last = plan.lines()
    assert len(passed_over) == passed
    assert all("does not fit: wanted" in line for line in passed_over)
    where = {"device": "on the device", "ram": "in memory", "disk": "on disk"}[chosen]
    assert last.startswith(f"caches {where}: needs about ")
    assert "caches 1.00 GB" in last


@pytest.mark.parametrize(
    ("asked", "device", "memory", "disk", "message"),
    [
        ("auto", "cpu", 251 * MB, 9999 * MB, r"wanted 0\.25 GB of memory .*estimated 0\.21 GB.* free are 0\.25 GB"),
        ("auto", "cpu", 999 * MB, 999 * MB, r"cache ram does not .*; --cache disk .* 1\.32 GB of disk"),
        ("ram", "cpu", 999 * MB, 9999 * MB, r"wanted 1\.57 GB of memory .*free are 1\.00 GB\. Give --cache disk"),
        ("device", "cpu", 999 * MB, 9999 * MB, "--cache ram does not fit"),
        ("disk", "cpu", 9999 * MB, 99 * MB, r"wanted 1\.32 GB of disk .*Free some space beside -o"),
        ("device", "cuda", 9999 * MB, 9999 * MB, r"wanted 1\.87 GB of device .*Give --cache ram or --cache disk"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_numbers(asked, device, memory, disk, message, monkeypatch, tmp_path):
    if message.startswith("wanted 0"):
        memory -= MB
    free(monkeypatch, memory, disk)
    with pytest.raises(EnvironmentProblem, match=message):
        plan_caches(asked, ESTIMATE, torch.device(device), tmp_path)


def test_a_run_that_cannot_fit_is_refused_before_any_image_is_read(request_, monkeypatch):
    free(monkeypatch, MB, 9999 * MB)
    monkeypatch.setattr(quantizing, "load_images", lambda *how: pytest.fail("images were read"))
    with pytest.raises(EnvironmentProblem, match="--cache disk does not fit"):
        quantize(request_)
    assert not request_.out.parent.exists()


def test_a_dry_run_says_what_the_run_would_take():
    """Caches of 20,000 and of 40,000 images, whose ratio is known; what cannot be is refused as without --dry-run."""

    def invoke(*words: str) -> Any:
        return CliRunner().invoke(cli, ["quantize", *words, "--dry-run"])

    def caches(images: int) -> float:
        result = invoke("demo_vit", "--recon-samples", str(images), "--cache", "disk")
        (line,) = [line for line in result.stderr.splitlines() if "caches on disk: needs about" in line]
        return float(re.search(r"caches ([\d.]+) GB", line)[1])

    assert caches(40000) == pytest.approx(2 * caches(20000), abs=0.02)
    result = invoke("demo_vit", "--cache", "ram", "--recon-samples", "900000000")
    assert result.exit_code == 5
    assert "--cache ram does not fit" in result.stderr
    assert invoke("demo_vit", "--recipe", "fast", "--recon-samples", "16", "--iters", "0").exit_code == 0
    assert invoke("demo_vitt").exit_code == 4
    assert invoke("demo_vit", "--cache", "tape").exit_code == 2


CAPPED = """
import json, resource, sys
from pathlib import Path
from fimaq.toolchain import quantize as quantizing
from fimaq.toolchain.recipe import Recipe
from fimaq.toolchain.reconstruct import place
from fimaq.toolchain.room import _kilobytes, PROC
data, out, recipe, cache, room, place.MARGIN = *sys.argv[1:6], float(sys.argv[6])
original = quantizing.plan_caches
def plan_caches(*how):  # the model is there, and so is everything that was imported
    used = _kilobytes(PROC / "self" / "status", "VmData")
    resource.setrlimit(resource.RLIMIT_DATA, (used + int(room), resource.RLIM_INFINITY))
    return original(*how)
quantizing.plan_caches, place.LIBRARIES, lines = plan_caches, 0, []  # they are there, too
recipe = Recipe.from_dict(json.loads(recipe))
request = quantizing.QuantizeRequest("demo_vit", data, Path(out), recipe, device="cpu", cache=cache)
print(json.dumps([quantizing.quantize(request, announce=lines.append)["sha256"], lines]))
"""


def capped(request: QuantizeRequest, room: int, margin: float) -> subprocess.CompletedProcess[str]:
    """Quantize in a process that may take ``room`` bytes of anonymous memory more than it has with its model."""
    recipe = json.dumps(request.recipe.to_dict())
    return subprocess.run(
        [sys.executable, "-c", CAPPED, request.data, str(request.out), recipe, request.cache, str(room), str(margin)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts anonymous memory on Linux only")
def test_on_disk_a_run_fits_into_memory_that_its_caches_do_not(request_, data, tmp_path):
    """Caches of 75 MB under a limit of 90 MB, of which the rest takes most."""
    many = tmp_path / "many"
    for path in data.rglob("*.png"):
        (many / path.parent.name).mkdir(parents=True, exist_ok=True)
        for number in range(3):
            os.link(path, many / path.parent.name / f"{number}-{path.name}")
    request = replace(request_, data=str(many), recipe=recipe(3000))
    believed = capped(replace(request, cache="ram", out=tmp_path / "ram"), 90 * MB, 0.0)
    assert believed.returncode != 0
    assert "memory" in believed.stderr.lower().splitlines()[-1], believed.stderr[-500:]
    chosen = capped(request, 90 * MB, place.MARGIN)
    assert chosen.returncode == 0, chosen.stderr[-2000:]
    sha256, lines = json.loads(chosen.stdout)
    assert lines[0].startswith("--cache ram does not fit")
    assert lines[1].startswith("caches on disk: needs about")
    assert sha256 == json.loads((request.out / "manifest.json").read_text())["sha256"]
    assert [path.name for path in request.out.parent.iterdir()] == ["run"]
