"""Models by name: the float model with its preprocessing and classes."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import timm
import torch
from timm.data import ImageNetInfo, resolve_model_data_config
from timm.layers import set_fused_attn, use_fused_attn
from torch import nn

from .data.demo_set import DEMO_MODELS
from .errors import InputError
from .families import find_family
from .hub import asked_once
from .preprocess import Preprocessing
from .weights import load_into, read_state_dict, state_dict_sha256

IMAGENET_CLASSES = 1000

HUB = ("hf-hub:", "hf_hub:")
"""How timm names a model that the hub describes."""


@final
@dataclass(frozen=True)
class FloatModel:
    """A timm model in evaluation mode, and what belongs to it.

    ``classes`` is ``{"wnids": [...] | None, "names": [...]}`` in logit order; ``kwargs`` rebuild the architecture.
    """

    name: str
    timm_name: str
    module: nn.Module
    input_size: tuple[int, int, int]
    preprocessing: Preprocessing
    classes: dict[str, Any]
    kwargs: dict[str, Any]
    weights_sha256: str


def load_float(name: str, weights: Path | None = None) -> FloatModel:
    """A bundled demo model, or any timm model with weights from ``weights`` or from its hub.

    Raises InputError for an unknown name (naming near ones) or a model without a classifier, for weights that do not
    fit, and for a hub that cannot be reached.
    """
    demo = DEMO_MODELS.get(name)
    timm_name = demo.timm_name if demo else name
    kwargs = dict(demo.kwargs) if demo else {}
    if demo and weights is None:
        weights = demo.weights
    module = _create(timm_name, kwargs, demo.pretrained_cfg if demo else None, pretrained=weights is None)
    if weights is not None:
        load_into(module, read_state_dict(weights), f"weights file {weights}")
    _require_classifier(name, module)
    return _describe(name, timm_name, module, kwargs)


def untrained(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """The architecture of a model with random weights, and its input size ``(3, h, w)``. Raises as ``load_float``."""
    demo = DEMO_MODELS.get(name)
    timm_name, kwargs = (demo.timm_name, dict(demo.kwargs)) if demo else (name, {})
    module = _create(timm_name, kwargs, demo.pretrained_cfg if demo else None, pretrained=False)
    _require_classifier(name, module)
    size = tuple(int(side) for side in resolve_model_data_config(module)["input_size"])
    return module, (size[0], size[1], size[2])


def require_quantizable(name: str) -> None:
    """Refuse a model whose architecture cannot be quantized, before its weights are fetched.

    What a name of another source (``hf-hub:...``) stands for is not known before it is loaded, and not looked at.
    Raises UnsupportedModelError, and InputError for an unknown name or a model without a classifier.
    """
    if name not in DEMO_MODELS and ":" not in name:
        with torch.device("meta"):
            module = _create(name, {}, None, pretrained=False)
        find_family(module)
        _require_classifier(name, module)


def _require_classifier(name: str, module: nn.Module) -> None:
    if module.num_classes == 0:
        raise InputError(
            f"model {name!r} has no classifier: wanted logits, whose divergence is what quantization minimises. "
            "Give a model that was trained to classify."
        )


def rebuild(description: Mapping[str, Any]) -> nn.Module:
    """The untrained architecture that a manifest's ``model`` table describes."""
    demo = DEMO_MODELS.get(description["name"])
    overlay = demo.pretrained_cfg if demo else None
    return _create(description["timm_name"], dict(description["kwargs"]), overlay, pretrained=False)


def _create(timm_name: str, kwargs: dict[str, Any], overlay: dict[str, Any] | None, *, pretrained: bool) -> nn.Module:
    bare = timm_name.split(".")[0]
    if ":" not in timm_name and not timm.is_model(bare):
        near = difflib.get_close_matches(bare, [*timm.list_models(), *DEMO_MODELS], n=3, cutoff=0.5)
        hint = f" Nearest: {', '.join(near)}." if near else ""
        raise InputError(
            f"unknown model {timm_name!r}: wanted a timm model name or one of {', '.join(DEMO_MODELS)}.{hint}"
        )
    from_hub = timm_name.startswith(HUB) or (pretrained and ":" not in timm_name)
    with _fused_attention(), asked_once() if from_hub else nullcontext() as silence:
        try:
            return timm.create_model(timm_name, pretrained=pretrained, pretrained_cfg_overlay=overlay, **kwargs).eval()
        except Exception as error:  # the hub client raises many kinds; each means that the model did not come
            reason = silence or (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            if not pretrained:
                raise InputError(
                    f"timm cannot build {timm_name!r} ({reason}). Give a model name the installed timm knows."
                ) from error
            raise InputError(
                f"pretrained weights of {timm_name!r} could not be fetched from the hub ({reason}). "
                "Check the network, or give a local file: --weights FILE.safetensors."
            ) from error


@contextmanager
def _fused_attention() -> Iterator[None]:
    """timm decides at construction whether attention is one fused call, which is what QuantAttention intercepts."""
    before = use_fused_attn(), use_fused_attn(experimental=True)
    set_fused_attn(enable=True, experimental=True)
    try:
        yield
    finally:
        set_fused_attn(enable=before[0], experimental=before[1])


def _describe(name: str, timm_name: str, module: nn.Module, kwargs: dict[str, Any]) -> FloatModel:
    config = resolve_model_data_config(module)
    size = tuple(int(side) for side in config["input_size"])
    return FloatModel(
        name=name,
        timm_name=timm_name,
        module=module,
        input_size=(size[0], size[1], size[2]),
        preprocessing=Preprocessing.from_timm(config),
        classes=_classes(module, size),
        kwargs=kwargs,
        weights_sha256=state_dict_sha256(module),
    )


def _classes(module: nn.Module, size: tuple[int, ...]) -> dict[str, Any]:
    """Class names in logit order: the config's own, ImageNet-1k's, else plain indices."""
    with torch.no_grad():
        count = module(torch.zeros(2, *size)).shape[-1]
    config: Mapping[str, Any] = module.pretrained_cfg  # type: ignore[assignment]  # timm sets it on every model
    names = config.get("label_names")
    if names and len(names) == count:
        return {"wnids": None, "names": [str(name) for name in names]}
    if count == IMAGENET_CLASSES:
        info = ImageNetInfo()
        return {
            "wnids": list(info.label_names()),
            "names": [info.index_to_description(index) for index in range(count)],
        }
    return {"wnids": None, "names": [str(index) for index in range(count)]}
