"""A sweep: quantize, export and evaluate every configuration of a plan, whatever happens to one of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from ..artifact import read_manifest
from ..bench import bench
from ..data import ImageSet, open_dataset
from ..device import pick_device
from ..distributed.launch import read_launch
from ..errors import FimaqError, InputError, UsageError
from ..evaluate import OrtPredictor, evaluate
from ..export import export_float, export_run
from ..files import check_writable, write_whole
from ..progress import NullProgress, Progress, Titled
from ..quantize import QuantizeRequest, quantize
from .pareto import pareto_plot
from .plan import Configuration, Plan, identity, run_name
from .results import read_results
from .table import markdown

RESULTS, TABLE, BENCH = "results.jsonl", "results.md", "bench.json"

PARITY_IMAGES = 64


@final
@dataclass(frozen=True)
class _Run:
    """One configuration with its identity and the places of its files."""

    configuration: Configuration
    identity: str
    folder: Path

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder / run_name(self.configuration, self.identity)

    @property
    def onnx(self) -> Path:
        """The exported file."""
        return self.path.with_name(f"{self.path.name}.onnx")

    @property
    def unfinished(self) -> bool:
        """Whether quantizing was begun and has finished blocks to go on from."""
        return any(self.path.with_name(f".{self.path.name}.unfinished").glob("*.safetensors"))


def sweep(
    plan: Plan, folder: Path, *, device: str = "auto", timed: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Make what is missing in ``folder``; return the JSON object of ``fimaq-tool sweep``.

    ``results.jsonl`` gets a line a run when it is done or has failed; the last line of an identity holds. A run that is
    done is left out, one that failed is tried again, and one that was cut off goes on after its last finished block.
    ``timed`` benches all files against each other at the end; without it speeds are those of an earlier time, if that
    was of the same files. Then ``results.md`` and the plots are written anew.

    Raises InputError for data that cannot be opened and for a results.jsonl that holds something else, UsageError under
    a launcher of several processes, EnvironmentProblem for a device that is not there.
    """
    progress = progress or NullProgress()
    if read_launch().size > 1:
        raise UsageError("a sweep is one process: `quantize` is what several share. Start it without torchrun.")
    pick_device(device)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; wanted the folder of the sweep. Give another -o.")
    check_writable(folder / RESULTS)
    done = read_results(folder / RESULTS)
    facts = {
        name: [source, _open(name, source).sample_ids_sha256]
        for name, source in (("calib", plan.calib), ("val", plan.val))
    }
    runs = []
    for configuration in plan.configurations:
        own = facts | {"weights": _sha256(plan.weights_of(configuration.model))}
        runs.append(_Run(configuration, identity(configuration, own), folder))
    folder.mkdir(parents=True, exist_ok=True)
    with progress.task("sweep", len(runs)) as task:
        for run in runs:
            row = done.get(run.identity)
            if row is None or "error" in row:
                done[run.identity] = _attempt(run, plan, device, progress)
                with (folder / RESULTS).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(done[run.identity]) + "\n")
            task.advance(1, run=run.path.name)
    rows = [done[run.identity] for run in runs]
    good = [row for row in rows if "error" not in row]
    speeds = _bench(good, folder, progress) if timed else _earlier_speeds(good, folder)
    return _written(rows, speeds, folder)


def _open(name: str, source: str) -> ImageSet:
    try:
        return open_dataset(source, require_labels=False)
    except FimaqError as error:  # which speaks of --data
        raise type(error)(f"{name} images (--{name}, or {name} in the plan): {error}") from error


def _attempt(run: _Run, plan: Plan, device: str, progress: Progress) -> dict[str, Any]:
    """A row of figures, or one that says what went wrong."""
    table = dict(run.configuration.table)
    start = {"identity": run.identity, "config": table, "command": _command(run.configuration), "run": run.path.name}
    try:
        return start | _one_run(run, plan, device, Titled(progress, run.path.name))
    except Exception as error:  # noqa: BLE001  (one run's failure, a bug among them, must not cost the others)
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        expected = isinstance(error, FimaqError)
        return start | {"error": {"type": type(error).__name__, "message": message, "expected": expected}}


def _one_run(run: _Run, plan: Plan, device: str, progress: Progress) -> dict[str, Any]:
    model = run.configuration.model
    weights = plan.weights_of(model)
    if (recipe := run.configuration.recipe) is None:
        exported = export_float(model, run.onnx, weights=weights, force=True)
        made: dict[str, Any] = {"wbits": None, "abits": None, "fisher": None, "seed": None, "seconds": None}
        made["sha256"] = _sha256(run.onnx)
    else:
        if not run.path.exists():
            request = QuantizeRequest(
                model, plan.calib, run.path, recipe, weights=weights, device=device, resume=run.unfinished
            )
            quantize(request, progress)
        manifest = read_manifest(run.path)
        exported = export_run(run.path, run.onnx, force=True, images=PARITY_IMAGES, data=plan.calib, allow_float=True)
        made = {
            "wbits": recipe.weights.bits,
            "abits": recipe.activations.bits,
            "fisher": recipe.fisher.kind,
            "seed": recipe.seed,
            "seconds": manifest["seconds"],
            "sha256": manifest["sha256"],
        }
    predictor = OrtPredictor(run.onnx)
    found = evaluate(predictor, open_dataset(plan.val, classes=predictor.classes), progress=progress)
    found.save(run.onnx.with_suffix(".json"), force=True)
    return made | {
        "bytes": exported["bytes"],
        "layers": exported["layers"],
        "parity": exported["parity"],
        "n": found.n,
        "top1": found.top1,
        "top1_interval": list(found.top1_interval),
    }


def _command(configuration: Configuration) -> str:
    """What a person would type for its first step."""
    if configuration.recipe is None:
        return f"fimaq-tool export {configuration.model} --float"
    options = (f"--{key} {value}" for key, value in configuration.options.items())
    return " ".join(["fimaq-tool quantize", configuration.model, *options])


def _sha256(path: Path | None) -> str | None:
    """Of a file's content; None where there is none, which its run will say."""
    with suppress(OSError):
        if path is not None:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    return None


def _bench(rows: list[dict[str, Any]], folder: Path, progress: Progress) -> dict[str, float]:
    """Images a second of each run's file at batch 1, taken in turns; by the run's identity."""
    files = [folder / f"{row['run']}.onnx" for row in rows]
    if not files:
        return {}
    result = bench(files, progress=progress)
    write_whole(folder / BENCH, (json.dumps(result, indent=1) + "\n").encode())
    return {row["identity"]: timed["images_per_second"] for row, timed in zip(rows, result["models"], strict=True)}


def _earlier_speeds(rows: list[dict[str, Any]], folder: Path) -> dict[str, float]:
    """What ``_bench`` found before, if it was of each of these files as they are now."""
    try:
        timed = json.loads((folder / BENCH).read_text(encoding="utf-8"))["models"]
        found = {(Path(one["model"]).name, one["sha256"]): float(one["images_per_second"]) for one in timed}
        names = {row["identity"]: f"{row['run']}.onnx" for row in rows}
        return {identity: found[name, _sha256(folder / name)] for identity, name in names.items()}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _written(rows: list[dict[str, Any]], speeds: Mapping[str, float], folder: Path) -> dict[str, Any]:
    """Write the table and the plots; the JSON object of the command."""
    good = [row for row in rows if "error" not in row]
    write_whole(folder / TABLE, (markdown(rows, speeds) + "\n").encode())
    plots = []
    if good:
        sizes = {row["identity"]: row["bytes"] / 1e6 for row in good}
        plots.append(folder / "pareto-bytes.svg")
        write_whole(plots[-1], pareto_plot(good, sizes, "file, MB").encode())
    if speeds:
        plots.append(folder / "pareto-speed.svg")
        write_whole(plots[-1], pareto_plot(good, speeds, "images a second", more_is_better=True).encode())
    return {
        "folder": str(folder),
        "results": str(folder / RESULTS),
        "table": str(folder / TABLE),
        "plots": [str(plot) for plot in plots],
        "runs": [row | {"images_per_second": speeds.get(row["identity"])} for row in rows],
        "failed": len(rows) - len(good),
    }
