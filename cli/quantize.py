"""``fimaq-tool quantize``: a float model and images in, a run folder out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from fimaq.toolchain.errors import UsageError
from fimaq.toolchain.recipe import DEFAULT_RECIPE, PRESETS, FisherKind, Recipe, load_recipe
from fimaq.toolchain.spec import MAX_BITS, MIN_BITS

from .options import FILE, count, debug_option, device_option, example, force_option, json_option, option, typed
from .output import emit, library_output, next_command, note, table
from .progress import progress

OVERRIDES = (
    "wbits",
    "abits",
    "fisher",
    "rank",
    "calib_samples",
    "fisher_samples",
    "recon_samples",
    "iters",
    "batch_size",
    "seed",
)
"""Options that change the recipe, by their parameter names."""

LOSSES = (
    "A loss is relative to its value just after the latest Fisher probe, so first and last have different units;\n"
    "the head's is the KL divergence of its logits, in nats."
)

FAST_RECIPE = "fast"
"""What to take on a CPU."""

MUCH_WORK = 10
"""More than this many times the work of ``FAST_RECIPE`` is worth a warning on a CPU."""

FILE_ENDINGS = (".onnx", ".safetensors", ".pth", ".pt", ".bin", ".npz", ".json", ".toml", ".txt", ".csv", ".zip")
"""Endings that nobody gives a folder on purpose; that of ``run-v1.2`` is none."""

BITS = click.IntRange(MIN_BITS, MAX_BITS)


@click.command(
    no_args_is_help=True,
    epilog=example(
        "fimaq-tool quantize deit_tiny_patch16_224 --data calib/ --recipe fast-w4a4 -o runs/deit-tiny",
        f"Presets: {', '.join(PRESETS)}.",
    ),
)
@click.argument("model")
@option(
    "--data",
    metavar="DIR",
    help="Calibration images: an ImageFolder, a flat folder with --labels, or hfds/..., wds/...",
)
@option("-o", "--out", type=FILE, metavar="RUN", help="The run folder to write.")
@option("--weights", type=FILE, help="A .safetensors or .pth state dict; else pretrained weights from the hub.")
@option("--labels", type=FILE, help="For a flat folder: a file with an image name and a class per line.")
@option("--recipe", default=DEFAULT_RECIPE, show_default=True, metavar="NAME|FILE", help="A preset, or a .toml file.")
@option("--wbits", type=BITS, help="Weight bits.")
@option("--abits", type=BITS, help="Activation bits.")
@option("--fisher", type=click.Choice(get_args(FisherKind)), help="Approximation of the Fisher matrix.")
@option("--rank", type=count(), help="Fisher probes per block.")
@option("--calib-samples", type=count(), help="Images for the scale search.")
@option("--fisher-samples", type=count(), help="Images per Fisher probe.")
@option("--recon-samples", type=count(), help="Images for reconstruction.")
@option("--iters", type=count(0), help="Reconstruction steps per block; 0 rounds to nearest.")
@option("--batch-size", type=count(), help="Images per reconstruction step.")
@device_option("Where to compute.")
@option(
    "--cache",
    type=click.Choice(["auto", "device", "ram", "disk"]),
    default="auto",
    show_default=True,
    help="Where block inputs and targets lie; auto takes the first that has room. Never changes the result.",
)
@option("--seed", type=count(0), help="Decides every random draw.")
@option("--resume", is_flag=True, help="Go on with an interrupted run in RUN.")
@option("--dry-run", is_flag=True, help="Print the resolved recipe and the memory it takes; write nothing.")
@force_option
@json_option
@debug_option
def command(model: str, data: str | None, out: Path | None, **options: Any) -> None:
    """Quantize MODEL, any timm ViT, DeiT or Swin by name, into the run folder RUN.

    Options override the recipe; --dry-run shows the result.
    """
    recipe = _resolved(options)
    if out is not None:
        _refuse_file_name(out)
    if options["dry_run"]:
        emit(recipe.to_dict(), options["as_json"], recipe.to_toml().rstrip())
        _announce_memory(model, recipe, out, options)
        places = [*([] if data else ["--data", "DIR"]), *([] if out else ["-o", "RUN"])]
        next_command("quantize", model, *typed(without="dry_run"), *places)
        return
    if data is None or out is None:
        name, missing = ("data", "--data DIR") if data is None else ("out", "-o RUN")
        parameter = next(p for p in command.params if p.name == name)
        raise click.MissingParameter(param=parameter, message=f"Wanted {missing}.")
    note(f"recipe {recipe.name}: W{recipe.weights.bits}/A{recipe.activations.bits}, fisher {recipe.fisher.kind}")
    _warn_of_hours(recipe, options["device"])
    result = _run(model, data, out, recipe, options)
    emit(result, options["as_json"], _text(result))
    next_command("export", out, "-o", out.with_name(out.name + ".onnx"))


def _announce_memory(model: str, recipe: Recipe, out: Path | None, options: dict[str, Any]) -> None:
    with library_output():
        from fimaq.toolchain.quantize import plan_untrained

        plan = plan_untrained(model, recipe, options["device"], out or Path.cwd(), options["cache"])
    for line in plan.lines():
        note(line)


def _resolved(options: dict[str, Any]) -> Recipe:
    """The recipe with the options on top; refuses options that contradict each other."""
    if options["resume"] and options["force"]:
        raise UsageError("--resume keeps what is in RUN and --force replaces it. Give one of them.")
    return load_recipe(options["recipe"]).with_overrides(**{name: options[name] for name in OVERRIDES})


def _refuse_file_name(out: Path) -> None:
    if out.suffix.lower() in FILE_ENDINGS:
        raise UsageError(
            f"-o {out} is the name of a file; wanted a folder for the run. Give -o {out.with_suffix('')}; "
            "`fimaq-tool export` then writes the ONNX file."
        )


def _warn_of_hours(recipe: Recipe, device: str) -> None:
    """Where nobody chose the recipe and it is much work for a CPU, say so before it starts."""
    chosen = click.get_current_context().get_parameter_source("recipe") is not click.core.ParameterSource.DEFAULT
    times = _work(recipe) / _work(load_recipe(FAST_RECIPE))
    if not chosen and times > MUCH_WORK and _is_cpu(device):
        note(
            f"no --recipe was given, so it is {DEFAULT_RECIPE}, which is made for a GPU. On this CPU it is about "
            f"{times:.0f} times the work of --recipe {FAST_RECIPE}, which takes minutes. Stop with Ctrl-C and give "
            "--recipe, or let it run: an interrupted run goes on with --resume."
        )


def _work(recipe: Recipe) -> int:
    """Images that run through a block while it is reconstructed."""
    return recipe.reconstruct.iterations * recipe.reconstruct.batch_size


def _is_cpu(device: str) -> bool:
    if device != "auto":
        return device == "cpu"
    import torch

    return not torch.cuda.is_available()


def _run(model: str, data: str, out: Path, recipe: Recipe, options: dict[str, Any]) -> dict[str, Any]:
    with library_output():
        from fimaq.toolchain.quantize import QuantizeRequest, quantize

        request = QuantizeRequest(
            model=model,
            data=data,
            out=out,
            weights=options["weights"],
            recipe=recipe,
            device=options["device"],
            resume=options["resume"],
            force=options["force"],
            labels=options["labels"],
            cache=options["cache"],
        )
        result: dict[str, Any] = quantize(request, progress=progress(), announce=note)
    return result


def _text(result: dict[str, Any]) -> str:
    rows = [
        (b["name"], b["loss_first"], b["loss_last"], b["seconds"])
        for b in result["blocks"]
        if b["loss_first"] is not None
    ]
    seconds = result["seconds"]
    lines = [table(rows, ("block", "loss first", "loss last", "seconds")), LOSSES, ""] if rows else []
    return "\n".join(
        [
            *lines,
            f"{result['run']}: {result['model']} at W{result['wbits']}/A{result['abits']}, "
            f"fisher {result['fisher']}, seed {result['seed']}",
            f"calibrate {seconds['calibrate']:.1f} s, reconstruct {seconds['reconstruct']:.1f} s, "
            f"total {seconds['total']:.1f} s",
            f"sha256 {result['sha256']}",
        ]
    )
