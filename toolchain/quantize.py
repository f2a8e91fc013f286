"""From a float model and images to a run folder: the main job."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, final

import torch
from torch import Tensor

from .allocator import keep_freed_memory
from .artifact import LOG, Artifact, check_destination
from .calibrate import calibrate, restore_grids
from .calibration_images import load_images, open_calibration_images, wanted_images
from .checkpoint import (
    Checkpoint,
    FinishedPart,
    at_work,
    open_checkpoint,
    require_idle,
    require_unfinished,
    unfinished_folder,
)
from .data import ImageSet
from .device import pick_device
from .distributed.launch import read_launch
from .distributed.ranks import Ranks, joined
from .environment import environment
from .errors import InputError, UsageError
from .families import QuantModel, wrap
from .files import check_folder, remove_leftovers
from .model import FloatModel, load_float, require_quantizable, untrained
from .progress import NullProgress, Progress
from .recipe import Recipe
from .reconstruct import reconstruct
from .reconstruct.cache import BlockInputs
from .reconstruct.estimate import estimate_memory
from .reconstruct.place import CacheChoice, CachePlan, plan_caches
from .reconstruct.store import Store, make_store
from .run_folder import layer_rows, run_tensors

CALIBRATION = "calibration"
"""Its part of a checkpoint; blocks are called after their modules."""


@final
@dataclass(frozen=True)
class QuantizeRequest:
    """What ``fimaq-tool quantize`` was asked for."""

    model: str
    data: str
    out: Path
    recipe: Recipe
    weights: Path | None = None
    device: str = "auto"
    force: bool = False
    labels: Path | None = None
    resume: bool = False
    cache: CacheChoice = "auto"


def quantize(
    request: QuantizeRequest, progress: Progress | None = None, announce: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Quantize and write the run folder; returns the JSON object of the command line.

    ``announce`` is told what will be taken of memory and disk, before it is. Raises InputError for a model, weights,
    data folder or output that cannot be used, and EnvironmentProblem for a device that is not there, for caches that do
    not fit and for another process of the job that is lost; before the first step nothing is written. Another process
    that is at work on the same output is an InputError.

    Where a launcher started this process as one of several (``distributed.launch``), they do it together: the first one
    writes, and all return the same but for seconds.
    """
    launch = read_launch()
    device = pick_device(request.device, launch)
    with joined(launch, device) as ranks, ExitStack() as lock:
        return _quantize(request, device, progress or NullProgress(), announce, ranks, lock)


def _quantize(
    request: QuantizeRequest,
    device: torch.device,
    progress: Progress,
    announce: Callable[[str], None],
    ranks: Ranks,
    lock: ExitStack,
) -> dict[str, Any]:
    began = time.monotonic()
    keep_freed_memory()
    recipe = request.recipe
    # An unfinished run was begun with --force, or killed between its last write and its clearing up.
    replace = request.force or request.resume

    def prepare() -> None:
        out = check_folder(request.out)
        require_idle(request.out)
        remove_leftovers(out, unfinished_folder(request.out))
        if request.resume:
            require_unfinished(request.out)
        check_destination(request.out, replace)

    def load() -> tuple[FloatModel, ImageSet]:
        require_quantizable(request.model)
        loaded = load_float(request.model, request.weights)
        images = open_calibration_images(request.data, request.labels, loaded.classes, recipe)
        _refuse_idle(ranks, recipe, len(images))
        return loaded, images

    ranks.by_first(prepare)
    loaded, images = ranks.together(load)
    model = wrap(loaded.module, loaded.input_size)
    estimate = estimate_memory(model, loaded.input_size, recipe, len(images))
    plan = ranks.together(
        partial(plan_caches, request.cache, estimate, device, unfinished_folder(request.out), ranks.launch.local_size)
    )
    for line in plan.lines():
        announce(line)
    model.to(device)
    identity = ranks.together(partial(_identity, loaded, images, recipe, device))
    ranks.require_same(identity, "models, images or recipes")
    checkpoint = ranks.by_first(partial(open_checkpoint, request.out, identity, request.resume, request.force))
    if ranks.first:
        lock.enter_context(at_work(request.out))
    store = make_store(plan.place, device, checkpoint.folder)
    try:
        arrays = ranks.together(partial(load_images, images, loaded.preprocessing, recipe, progress, store, ranks))
    except InputError:
        if ranks.first and not request.resume:
            checkpoint.discard()
        raise
    ranks.fill(arrays)
    inputs = BlockInputs(arrays, arrays)
    del arrays  # the images are freed once they are behind the first block
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        log.write(json.dumps(plan.row()) + "\n")
        seconds, blocks = _run(model, inputs, recipe, progress, log, began, checkpoint, store, ranks)
        log.seek(0)
        manifest = _manifest(request, loaded, model, images, blocks, seconds, str(device), ranks.size)
        artifact = Artifact(manifest, run_tensors(model))
        ranks.require_same(artifact.content_sha256(), "results")
        content = {LOG: log.read().encode()}
        sha256 = ranks.by_first(lambda: artifact.save(request.out, replace, content).manifest["sha256"])
    if ranks.first:
        checkpoint.discard()
    return {
        "run": str(request.out),
        "model": request.model,
        "wbits": recipe.weights.bits,
        "abits": recipe.activations.bits,
        "fisher": recipe.fisher.kind,
        "seed": recipe.seed,
        "seconds": seconds,
        "blocks": [{key: row[key] for key in ("name", "loss_first", "loss_last", "seconds")} for row in blocks],
        "sha256": sha256,
    }


def plan_untrained(name: str, recipe: Recipe, device: str, out: Path, cache: CacheChoice = "auto") -> CachePlan:
    """What quantizing would take and where its caches would go, without weights and images. Raises as ``quantize``."""
    module, input_size = untrained(name)
    model = wrap(module, input_size)
    estimate = estimate_memory(model, input_size, recipe, wanted_images(recipe))
    return plan_caches(cache, estimate, pick_device(device), out)


def _refuse_idle(ranks: Ranks, recipe: Recipe, images: int) -> None:
    """Each process needs work wherever images are shared out. Raises UsageError."""
    shared = {
        "images": images,
        "Fisher samples": min(recipe.fisher.samples, images),
        "images a batch": recipe.reconstruct.batch_size,
    }
    name = min(shared, key=lambda key: shared[key])
    if ranks.size > shared[name]:
        raise UsageError(
            f"got {ranks.size} processes for {shared[name]} {name}; wanted no more processes than that. Start fewer."
        )


def _run(
    model: QuantModel,
    inputs: BlockInputs,
    recipe: Recipe,
    progress: Progress,
    file: IO[str],
    began: float,
    checkpoint: Checkpoint,
    store: Store,
    ranks: Ranks,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Calibrate and reconstruct; returns seconds by part and a row per block."""

    def log(row: dict[str, Any]) -> None:
        file.write(json.dumps(row) + "\n")

    start = time.monotonic()
    calibrated = _calibrated(model, inputs.clean[: recipe.calibrate.samples], recipe, progress, checkpoint, ranks)
    inputs.clean = inputs.quant = inputs.clean[: recipe.reconstruct.samples]
    blocks = reconstruct(model, inputs, recipe, progress, log, checkpoint, store, ranks)
    _check_finite(model)
    spent = sum(row["seconds"] for row in blocks)  # of all attempts, where the run was resumed
    seconds = {"calibrate": calibrated, "reconstruct": spent, "total": start - began + calibrated + spent}
    return {name: round(value, 3) for name, value in seconds.items()}, blocks


def _calibrated(
    model: QuantModel, images: Tensor, recipe: Recipe, progress: Progress, checkpoint: Checkpoint, ranks: Ranks
) -> float:
    """Calibrate, or take what was found before the run was interrupted; the seconds that calibration took."""
    if (finished := ranks.by_first(partial(checkpoint.load, CALIBRATION))) is None:
        start = time.monotonic()
        grids = calibrate(model, images.to(next(model.parameters()).device), recipe, progress, ranks)
        finished = FinishedPart(grids, {"seconds": time.monotonic() - start}, [])
        ranks.by_first(partial(checkpoint.save, CALIBRATION, finished))
    else:
        restore_grids(model, finished.tensors, recipe)
    return float(finished.row["seconds"])


def _identity(loaded: FloatModel, images: ImageSet, recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """Everything that decides the result of a run; what follows from something else after it."""
    return {
        "tool_version": version("fimaq-tool"),
        "model": loaded.name,
        "weights_sha256": loaded.weights_sha256,
        "device": device.type,
        "recipe": recipe.to_dict(),
        "images": images.id,
    }


def _check_finite(model: QuantModel) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(
                f"quantization gave NaN or infinity in {name}. Lower the recipe's learning rates, or check the images."
            )


def _manifest(
    request: QuantizeRequest,
    loaded: FloatModel,
    model: QuantModel,
    images: ImageSet,
    blocks: list[dict[str, Any]],
    seconds: dict[str, float],
    device: str,
    processes: int,
) -> dict[str, Any]:
    return {
        "model": {
            "name": loaded.name,
            "timm_name": loaded.timm_name,
            "family": model.family,
            "num_classes": len(loaded.classes["names"]),
            "input_size": list(loaded.input_size),
            "kwargs": loaded.kwargs,
            "weights_sha256": loaded.weights_sha256,
        },
        "preprocessing": json.loads(loaded.preprocessing.to_json()),
        "classes": loaded.classes,
        "recipe": request.recipe.to_dict(),
        "layers": layer_rows(model),
        "blocks": blocks,
        "calibration": {
            "source": str(Path(request.data).resolve()) if Path(request.data).exists() else request.data,
            "dataset_id": images.id,
            "sample_ids": list(images.sample_ids),
            "sample_ids_sha256": images.sample_ids_sha256,
        },
        "seconds": seconds,
        "device": device,
        "processes": processes,
        "environment": environment(),
    }
