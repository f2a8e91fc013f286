"""The whole path on the bundled models and digits: float, round to nearest and FIMA-Q at W3/A3, all as ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .data import open_dataset
from .data.demo_set import DEMO_MODELS, DemoData, materialise
from .errors import InputError
from .evaluate import EvalResult, OrtPredictor, evaluate
from .evaluate.torch_backend import TorchPredictor
from .export import export_float, export_run
from .files import check_writable
from .progress import Progress, Titled
from .quantize import QuantizeRequest, quantize
from .recipe import Recipe, load_recipe

RECIPE = "fast-w3a3"
FIRST = "demo_vit"
"""The model whose figures stand for the demo."""

TITLES = {"rtn": "round to nearest", "fimaq": "FIMA-Q"}
"""How progress names the two quantized models."""


def run_demo(folder: Path, *, device: str, force: bool, progress: Progress) -> dict[str, Any]:
    """Fill ``folder`` with digits, runs, ONNX files and results; return the figures, accuracies in percent.

    Accuracies are on the 797 held-out digits. ``fimaq_top1`` is the fake-quantized torch model, every other figure
    ONNX Runtime; ``agreement`` is the share of images on which those two predict the same. Raises InputError where
    the folder is not empty, unless ``force``, or cannot be written.
    """
    if folder.exists() and not force and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists. Give another -o, or --force to replace what the demo wrote there.")
    check_writable(folder / "digits")
    data = materialise(folder / "digits")
    models = {name: _one(name, folder, data, device, force, progress) for name in DEMO_MODELS}
    first = models[FIRST]
    return {
        "folder": str(folder),
        "recipe": RECIPE,
        "float_top1": first["float"]["top1"],
        "rtn_top1": first["rtn"]["top1"],
        "fimaq_top1": first["fimaq"]["torch_top1"],
        "onnx_top1": first["fimaq"]["top1"],
        "agreement": first["fimaq"]["agreement"],
        "onnx_bytes": first["fimaq"]["bytes"],
        "float_bytes": first["float"]["bytes"],
        "models": models,
    }


def _one(
    name: str, folder: Path, data: DemoData, device: str, force: bool, progress: Progress
) -> dict[str, dict[str, Any]]:
    recipe = load_recipe(RECIPE)
    onnx = folder / f"{name}-float.onnx"
    export_float(name, onnx, weights=None, opset=None, force=force)
    figures = {"float": _figures(_in_onnx_runtime(onnx, data, force, Titled(progress, f"{name}, float")))}
    for label, wanted in (("rtn", recipe.with_overrides(iters=0)), ("fimaq", recipe)):
        titled = Titled(progress, f"{name}, {TITLES[label]}")
        run, onnx = folder / f"{name}-{label}", folder / f"{name}-{label}.onnx"
        done = quantize(_request(name, data, run, wanted, device, force), progress=titled)
        with titled.task("export and check", 1) as task:
            export_run(run, onnx, target="ort-cpu", opset=None, force=force, data=str(data.calib))
            task.advance()
        found = _in_onnx_runtime(onnx, data, force, titled)
        figures[label] = {**_figures(found), "seconds": done["seconds"]["total"]}
        if label == "fimaq":
            fake = TorchPredictor(run, "cpu")
            in_torch = evaluate(fake, open_dataset(data.val, classes=fake.classes), progress=titled)
            figures[label] |= {"torch_top1": in_torch.top1, "agreement": _agreement(found, in_torch)}
    return figures


def _request(name: str, data: DemoData, run: Path, recipe: Recipe, device: str, force: bool) -> QuantizeRequest:
    return QuantizeRequest(
        model=name,
        data=str(data.calib),
        out=run,
        weights=None,
        recipe=recipe,
        device=device,
        resume=False,
        force=force,
        labels=None,
    )


def _in_onnx_runtime(onnx: Path, data: DemoData, force: bool, progress: Progress) -> EvalResult:
    predictor = OrtPredictor(onnx)
    result = evaluate(predictor, open_dataset(data.val, classes=predictor.classes), progress=progress)
    result.save(onnx.with_suffix(".json"), force)
    return result


def _figures(result: EvalResult) -> dict[str, Any]:
    return {
        "top1": result.top1,
        "top1_interval": list(result.top1_interval),
        "n": result.n,
        "bytes": result.bytes,
        "onnx": result.model,
    }


def _agreement(one: EvalResult, other: EvalResult) -> float:
    """Percent of images whose first prediction is the same."""
    same = one.predictions.top5[:, 0] == other.predictions.top5[:, 0]
    return 100.0 * float(same.mean())
