"""Reading a state dict from a file, safely: safetensors, or .pth with ``weights_only=True`` and nothing else."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .errors import InputError

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys under which training scripts put the state dict in a .pth file."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pth/.pt/.bin file.

    Raises InputError for a file that is missing, unreadable, holds code (pickle) or no state dict.
    """
    if not path.is_file():
        raise InputError(f"weights file {path} does not exist. Give --weights a .safetensors or .pth state dict.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"weights file {path} is damaged, or holds more than tensors, which could run code when loaded; it was "
            "refused. Save the bare state dict: torch.save(model.state_dict(), ...), or better as safetensors."
        ) from error
    except Exception as error:  # a damaged file can raise anything in torch.load
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(
            f"weights file {path} cannot be read ({reason}). Wanted a .safetensors or .pth state dict; "
            "download or save it again."
        ) from error
    for key in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded or not all(map(_is_named_tensor, loaded.items())):
        raise InputError(
            f"weights file {path} holds no state dict (a mapping of names to tensors). "
            "Save it with torch.save(model.state_dict(), ...)."
        )
    return {key.removeprefix("module."): value for key, value in loaded.items()}


def _is_named_tensor(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def load_into(model: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Strictly load ``tensors``; InputError names the keys or shapes that do not fit, or hold NaN or infinity."""
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(tensors))
    unexpected = sorted(set(tensors) - set(wanted))
    shapes = [
        f"{key} is {list(tensors[key].shape)}, wanted {list(wanted[key].shape)}"
        for key in sorted(set(wanted) & set(tensors))
        if wanted[key].shape != tensors[key].shape
    ]
    if missing or unexpected or shapes:
        parts = [_listing("missing", missing), _listing("unexpected", unexpected), _listing("wrong shape:", shapes)]
        raise InputError(
            f"{source} does not fit {type(model).__name__}: {'; '.join(part for part in parts if part)}. "
            "Check that MODEL names the architecture these weights were trained with."
        )
    broken = sorted(key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all())
    if broken:
        raise InputError(f"{source} holds NaN or infinity: {_listing('in', broken)}. Use intact weights.")
    model.load_state_dict(tensors)


def state_dict_sha256(model: nn.Module) -> str:
    """Content hash of the model's state dict: names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        array = value.detach().cpu().contiguous().numpy()
        digest.update(f"{key}\0{array.dtype}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _listing(word: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return f"{word} {', '.join(keys[:5])}{more}"
