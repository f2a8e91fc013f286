"""``fimaq-tool env``: what a bug report should say about the machine."""

from __future__ import annotations

import re
from typing import Any

import click

from .options import debug_option, example, json_option
from .output import emit, library_output, next_command


@click.command(epilog=example("fimaq-tool env --json"))
@json_option
@debug_option
def command(as_json: bool) -> None:
    """Show versions, execution providers, devices and CPU features.

    Every provider is tried on a tiny model; where one does not load, the reason is shown.
    """
    with library_output():
        from fimaq.toolchain.environment import environment

        result = {**environment(), "providers": _providers(), "torch": _torch()}
    emit(result, as_json, _text(result))
    next_command("demo")


def _providers() -> dict[str, str]:
    """Provider -> ``ok``, or why it cannot be used."""
    from fimaq.toolchain.errors import FimaqError
    from fimaq.toolchain.runtime import available_providers, open_session

    found: dict[str, str] = {}
    try:
        for provider in available_providers():
            try:
                open_session(_tiny_model(), provider)
                found[provider] = "ok"
            except FimaqError as error:
                found[provider] = _reason(error)
    except FimaqError as error:  # no onnxruntime at all
        found["cpu"] = str(error)
    return found


def _reason(error: Exception) -> str:
    """What did not load, without the advice to come here."""
    found = re.search(r"did not load \((.*)\);", str(error))
    return found.group(1) if found else str(error)


def _tiny_model() -> bytes:
    """One Identity node."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "tiny", [x], [y])
    content: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()
    return content


def _torch() -> dict[str, Any]:
    """Whether torch can be imported, and the devices it sees."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return {"usable": False, "reason": str(error), "devices": []}
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"usable": True, "cuda": torch.version.cuda, "devices": [f"cuda:{i} {name}" for i, name in enumerate(names)]}


def _text(result: dict[str, Any]) -> str:
    cpu, torch = result["cpu"], result["torch"]
    devices = torch["devices"] or ["cpu only"] if torch["usable"] else [f"not usable: {torch['reason']}"]
    rows = [
        ("python", result["python"]),
        ("system", result["system"]),
        ("cpu", f"{cpu['name']}, {cpu['cores']} usable cores"),
        ("cpu features", " ".join(cpu["features"]) or "unknown"),
        *result["versions"].items(),
        *((f"provider {name}", state) for name, state in result["providers"].items()),
        *(("torch device", device) for device in devices),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
