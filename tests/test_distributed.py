"""Several processes do what one does, agree with each other bit by bit, and never leave each other hanging."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fimaq.cli.quantize import command as quantize_command
from fimaq.toolchain import quantize as quantizing
from fimaq.toolchain.artifact import Artifact
from fimaq.toolchain.device import pick_device
from fimaq.toolchain.distributed.launch import Launch, is_first, read_launch
from fimaq.toolchain.distributed.ranks import Ranks
from fimaq.toolchain.distributed.share import even_share
from fimaq.toolchain.errors import EnvironmentProblem, UsageError
from fimaq.toolchain.evaluate import EvalResult
from fimaq.toolchain.quantizers import random_mask
from fimaq.toolchain.recipe import load_recipe
from fimaq.toolchain.reconstruct import place
from fimaq.toolchain.reconstruct.estimate import MemoryEstimate

DRIVER = Path(__file__).with_name("rank_runs.py")
BIN = Path(sys.executable).parent


# ---------------------------------------------------------------- without processes


@pytest.mark.parametrize(("n", "size"), [(1, 1), (7, 2), (7, 3), (3, 3), (1024, 5)])
def test_shares_are_consecutive_complete_and_even(n, size):
    shares = [even_share(rank, size, n) for rank in range(size)]
    assert [row for share in shares for row in range(n)[share.rows]] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("probability", [0.5, 0.3, 1.0])
def test_masks_of_shares_are_parts_of_the_mask_of_the_batch(probability):
    def mask(images: int, share: Any = None) -> torch.Tensor:  # windows: each image makes three rows
        return random_mask(torch.Size([images * 3, 5]), probability, torch.Generator().manual_seed(1), share)

    shares = [even_share(rank, 3, 7) for rank in range(3)]
    torch.testing.assert_close(torch.cat([mask(len(s), s) for s in shares]), mask(7), rtol=0, atol=0)


PLACE = {"MASTER_ADDR": "a", "RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


def test_a_launcher_says_which_process_this_is():
    assert read_launch(PLACE) == Launch(1, 4, 1, 2)
    assert read_launch({"RANK": "1", "WORLD_SIZE": "4"}) == Launch()  # some clusters set these for every container


@pytest.mark.parametrize(
    "wrong", [{"RANK": "4"}, {"RANK": "x"}, {"WORLD_SIZE": ""}, {"LOCAL_RANK": "2"}, {"LOCAL_WORLD_SIZE": "5"}]
)
def test_what_no_launcher_says_is_refused(wrong, monkeypatch):
    with pytest.raises(EnvironmentProblem, match=r"wanted ranks below their sizes\. Start with torchrun"):
        read_launch(PLACE | wrong)
    for name, value in (PLACE | wrong).items():
        monkeypatch.setenv(name, value)
    assert is_first()  # someone has to tell


def test_each_process_has_its_own_cuda_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto", Launch(1, 2, 1, 2)) == torch.device("cuda:1")
    assert pick_device("cuda", Launch(3, 4, 1, 2)) == torch.device("cuda:1")
    with pytest.raises(EnvironmentProblem, match="device cuda:2 was asked for and torch sees 2"):
        pick_device("cuda", Launch(2, 3, 2, 3))
    with pytest.raises(UsageError, match="cuda:0 is one device for 2 processes"):
        pick_device("cuda:0", Launch(1, 2, 1, 2))


def test_processes_of_a_machine_share_its_memory_and_disk(monkeypatch, tmp_path):
    estimate = MemoryEstimate(model=0, caches=10**9, probes=0, fisher=0, step=0, search=0)
    monkeypatch.setattr(place, "free_memory", lambda: 2_500_000_000)
    monkeypatch.setattr(place, "free_disk", lambda folder: 2_500_000_000)
    cpu = torch.device("cpu")
    assert place.plan_caches("auto", estimate, cpu, tmp_path, 1).place == "ram"
    assert place.plan_caches("auto", estimate, cpu, tmp_path, 2).place == "disk"  # LIBRARIES come on top in memory
    with pytest.raises(EnvironmentProblem, match="--cache disk does not fit"):
        place.plan_caches("auto", estimate, cpu, tmp_path, 3)


# ---------------------------------------------------------------- with processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def jobs(folder) -> dict[str, Any]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(folder)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def require_alike(one: Path, many: Path) -> None:
    """Sums are made in another order, so a rounding that is on the fence may fall on the other side."""
    a, b = Artifact.load(one / "run"), Artifact.load(many / "run")
    codes = [name for name in a.tensors if name.endswith(".codes")]
    equal = np.concatenate([(a.tensors[name] == b.tensors[name]).ravel() for name in codes])
    assert equal.mean() >= 0.99
    for name, value in a.tensors.items():
        if name.endswith(".scale"):
            np.testing.assert_allclose(b.tensors[name], value, rtol=1e-4)
        elif name.endswith(".zero_point"):
            np.testing.assert_array_equal(b.tensors[name], value)  # calibration is that of one process exactly
    for row, other in zip(a.manifest["blocks"], b.manifest["blocks"], strict=True):
        for key in ("loss_first", "loss_last"):
            assert other[key] == pytest.approx(row[key], rel=1e-4), row["name"]


@pytest.mark.parametrize("size", [2, 3])
def test_a_vit_comes_out_as_from_one_process_and_the_same_everywhere(size, jobs, folder):
    assert jobs["vit1"]["codes"] == [0]
    assert jobs[f"vit{size}"]["codes"] == [0] * size, jobs[f"vit{size}"]["words"]
    require_alike(folder / "vit1", folder / f"vit{size}")
    manifest = json.loads((folder / f"vit{size}" / "run" / "manifest.json").read_text())
    hashes = {(folder / f"vit{size}.{rank}.sha256").read_text() for rank in range(size)}
    assert hashes == {manifest["sha256"]}
    assert manifest["processes"] == size
    assert [path.name for path in (folder / f"vit{size}").iterdir()] == ["run"]


def test_learning_changed_more_than_agreement_allows(jobs, folder):
    """Else agreement would say nothing: against nearest rounding and scales as calibrated."""
    learned, nearest = (Artifact.load(folder / name / "run").tensors for name in ("vit1", "nearest"))
    codes = [name for name in learned if name.endswith(".codes")]
    assert np.mean([(learned[name] != nearest[name]).mean() for name in codes]) > 0.02
    scales = [name for name in learned if name.endswith("input.scale")]
    assert max(float(np.abs(learned[name] / nearest[name] - 1).max()) for name in scales) > 1e-3


def test_windows_of_a_swin_are_drawn_for_their_images(jobs, folder):
    assert jobs["swin2"]["codes"] == [0, 0], jobs["swin2"]["words"]
    require_alike(folder / "swin1", folder / "swin2")


def test_a_lost_process_ends_the_others_and_leaves_a_run_to_resume(jobs, folder):
    lost = jobs["lost"]
    assert lost["codes"] == [EnvironmentProblem.exit_code, "SIGKILL"]
    assert "another process of this job ended" in lost["words"][0]
    assert "--resume" in lost["words"][0]
    assert lost["seconds"] < 30
    parts = ["blocks.0.safetensors", "calibration.safetensors", "identity.json", "patch_embed.safetensors"]
    assert lost["left"] == [".run.unfinished", *parts]
    assert jobs["resumed"]["codes"] == [0, 0], jobs["resumed"]["words"]
    resumed, whole = (Artifact.load(folder / name / "run").manifest for name in ("lost", "vit2"))
    assert resumed["sha256"] == whole["sha256"]


def test_a_run_is_resumed_by_another_number_of_processes(jobs, folder):
    assert jobs["resumed3"]["codes"] == [0, 0, 0], jobs["resumed3"]["words"]
    require_alike(folder / "vit1", folder / "lost3")


def test_an_image_one_process_cannot_read_is_everyones_error(jobs):
    assert jobs["bad image"]["codes"] == [4, 4]
    assert all("cannot be decoded" in words or "InputError" in words for words in jobs["bad image"]["words"])
    assert jobs["bad image"]["left"] == []


def test_processes_without_work_are_refused(jobs):
    assert jobs["idle"]["codes"] == [2, 2]
    assert "got 2 processes for 1 images a batch" in jobs["idle"]["words"][0]


def test_processes_that_were_asked_for_different_things_are_refused(jobs):
    assert jobs["other seed"]["codes"] == [5, 5]
    assert "different models, images or recipes" in jobs["other seed"]["words"][1]


@pytest.mark.parametrize(("job", "what"), [("differing", "results in blocks.0"), ("differing at the end", "results")])
def test_processes_that_come_to_different_results_are_refused(job, what, jobs):
    assert jobs[job]["codes"] == [5, 5], jobs[job]["words"]
    assert all(f"different {what}; wanted the same everywhere" in words for words in jobs[job]["words"])


@pytest.mark.parametrize(
    ("images", "fisher", "batch", "name"),
    [(2, 8, 8, "2 images"), (8, 2, 8, "2 Fisher samples"), (8, 8, 2, "2 images a batch"), (3, 3, 3, None)],
)
def test_each_of_three_processes_needs_work_everywhere(images, fisher, batch, name):
    recipe = load_recipe("fast-w4a4").with_overrides(fisher_samples=fisher, recon_samples=8, batch_size=batch)
    with pytest.raises(UsageError, match=f"got 3 processes for {name};") if name else nullcontext():
        quantizing._refuse_idle(Ranks(Launch(0, 3, 0, 3)), recipe, images)


@pytest.mark.parametrize(("kind", "size"), [("torch", 2), ("ort", 3)])
def test_an_evaluation_is_that_of_one_process(kind, size, jobs, folder):
    assert jobs[f"{kind}{size}"]["codes"] == [0] * size, jobs[f"{kind}{size}"]["words"]
    one = EvalResult.load(folder / f"{kind}1.0.json")
    assert one.n == 204
    assert len(one.skipped) == 1
    for rank in range(size):
        found = EvalResult.load(folder / f"{kind}{size}.{rank}.json")
        for name, array in one.predictions.arrays.items():
            if array.dtype.kind == "f":  # a skipped image shifts the batches behind it, and with them sums by a bit
                np.testing.assert_allclose(found.predictions.arrays[name], array, rtol=1e-4, atol=1e-4)
            else:
                np.testing.assert_array_equal(found.predictions.arrays[name], array)
        for name in ("n", "top1", "top5", "top1_interval", "skipped", "dataset", "sha256"):
            assert getattr(found, name) == getattr(one, name)


def test_torchrun_prints_one_result(jobs, folder):
    """The command of docs/distributed.md, as a person would start it."""
    out = folder / "torchrun.json"
    command = [BIN / "torchrun", "--nproc-per-node", "2", "-m", "fimaq.cli.main", "evaluate", folder / "vit.onnx"]
    command += ["--data", folder / "data" / "val", "--limit", "205", "--batch-size", "16", "--skip-corrupt"]
    ran = subprocess.run([*command, "-o", out, "--json"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    printed = json.loads(ran.stdout)  # one object
    assert printed["top1"] == EvalResult.load(folder / "ort1.0.json").top1
    assert EvalResult.load(out).to_json()["sha256"] == printed["sha256"]


@pytest.mark.slow
def test_torchrun_ends_when_a_process_is_killed(folder, jobs):
    """The command of docs/distributed.md; the run is left to resume."""
    out = folder / "killed" / "run"
    command = [
        BIN / "torchrun",
        "--nproc-per-node",
        "2",
        "-m",
        "fimaq.cli.main",
        "quantize",
        "demo_vit",
        "--iters",
        "60",
    ]
    command += ["--data", folder / "data" / "train", "-o", out, "--recon-samples", "16", "--fisher-samples", "8"]
    command += ["--calib-samples", "8", "--batch-size", "8", "--device", "cpu", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    first = out.with_name(".run.unfinished") / "blocks.0.safetensors"
    deadline = time.monotonic() + 120
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    ranks = {Path(f"/proc/{child}/environ").read_bytes().split(b"\0RANK=")[1][:1]: int(child) for child in children}
    os.kill(ranks[b"1"], signal.SIGKILL)
    told, errors = running.communicate(timeout=60)
    assert running.returncode != 0
    assert json.loads(told)["error"]["type"] == "EnvironmentProblem"
    assert "another process of this job ended" in errors
    assert first.exists()
    assert not out.exists()


# ---------------------------------------------------------------- the example of a cluster


SLURM = Path(__file__).parent.parent / "examples" / "slurm" / "quantize.sbatch"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Run the job as Slurm does on the first node, with a torchrun that says what it was asked for."""
    tools = tmp_path / "bin"
    tools.mkdir()
    scripts = {
        "scontrol": 'printf "node1\\nnode2\\n"',
        "srun": '[ "$1" = --kill-on-bad-exit=1 ]; shift; exec "$@"',
        "torchrun": 'echo "threads=$OMP_NUM_THREADS"; printf "%s\\n" "$@"',
    }
    for name, script in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    places = {"JOB_NODELIST": "node[1-2]", "JOB_NUM_NODES": "2", "GPUS_ON_NODE": "4", "CPUS_PER_TASK": "32"}
    environment = {f"SLURM_{name}": value for name, value in places.items()} | {"SLURM_JOB_ID": "7"}
    environment["PATH"] = f"{tools}:{os.environ['PATH']}"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", SLURM, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
        )

    return run


def test_the_slurm_job_starts_torchrun_on_each_node(slurm, tmp_path):
    ran = slurm("deit_tiny_patch16_224", "calib images", "runs/a", "--recipe", "fast-w4a4")
    threads, *words = ran.stdout.splitlines()
    assert threads == "threads=8"
    options, command = words[: words.index("-m")], words[words.index("-m") :]
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert given["--nnodes"] == "2"
    assert given["--nproc-per-node"] == "4"
    assert given["--rdzv-endpoint"] == "node1:29500"
    assert given["--rdzv-id"] == "7"
    assert command[:3] == ["-m", "fimaq.cli.main", "quantize"]
    context = quantize_command.make_context("quantize", command[3:])
    assert context.params["model"] == "deit_tiny_patch16_224"
    assert context.params["data"] == "calib images"
    assert context.params["recipe"] == "fast-w4a4"
    (tmp_path / "runs" / ".a.unfinished").mkdir(parents=True)
    assert "--resume" not in command
    (tmp_path / "runs" / ".a.unfinished" / "identity.json").touch()
    assert "--resume" in slurm("deit_tiny_patch16_224", "calib images", "runs/a").stdout.splitlines()


def test_the_slurm_job_says_what_it_wants(slurm):
    ran = slurm("deit_tiny_patch16_224")
    assert ran.returncode == 2
    assert ran.stderr.startswith("usage: sbatch quantize.sbatch MODEL DATA RUN")
