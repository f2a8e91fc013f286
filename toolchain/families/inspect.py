"""Watching one forward pass: who calls fused attention, and which products run outside quantized layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import UnsupportedModelError
from ..nn import QuantConv2d, QuantLinear, QuantMatMul

PRODUCTS = {
    "mm", "addmm", "addmv", "mv", "dot", "bmm", "baddbmm", "addbmm", "matmul", "linear", "convolution",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_attention_math",
    "_scaled_dot_product_cudnn_attention", "_native_multi_head_attention", "_transformer_encoder_layer_fwd",
    "_trilinear", "_cdist_forward", "_sparse_addmm", "_scaled_mm", "_int_mm", "mkldnn_rnn_layer", "_cudnn_rnn",
}  # fmt: skip
"""ATen operators that multiply matrices: each must run inside a quantized layer."""


@contextmanager
def module_stack() -> Iterator[list[nn.Module]]:
    """The modules whose forward is running, outermost first, kept up to date while the context lasts."""
    stack: list[nn.Module] = []
    enter = register_module_forward_pre_hook(lambda module, args: stack.append(module))

    def pop(module: nn.Module, args: Any, output: Any) -> None:  # returning anything would replace the output
        stack.pop()

    leave = register_module_forward_hook(pop, always_call=True)
    try:
        yield stack
    finally:
        enter.remove()
        leave.remove()


def attention_callers(model: nn.Module, image: Tensor) -> list[nn.Module]:
    """The modules that call ``scaled_dot_product_attention`` in a forward of ``image``, each once.

    Raises UnsupportedModelError where one module calls it twice: its two pairs of products could not be told apart.
    """
    callers: list[nn.Module] = []
    with module_stack() as stack:

        class Watch(TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if func is F.scaled_dot_product_attention:
                    callers.append(stack[-1])
                return func(*args, **(kwargs or {}))

        with torch.no_grad(), Watch():
            model(image)
    names = {module: name for name, module in model.named_modules()}
    for caller in callers:
        if callers.count(caller) > 1 or caller is model:
            raise UnsupportedModelError(
                f"module {names[caller]!r} ({type(caller).__name__}) calls attention {callers.count(caller)} times: "
                "wanted one attention a module. This architecture needs a family of its own."
            )
    return callers


def refuse_float_products(model: nn.Module, image: Tensor) -> None:
    """Run a forward and raise UnsupportedModelError if any matrix product would stay float."""
    names = {module: name for name, module in model.named_modules()}
    found: dict[str, None] = {}
    with module_stack() as stack:

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                inside = stack and isinstance(stack[-1], QuantLinear | QuantConv2d | QuantMatMul)
                if not inside and func.overloadpacket.__name__ in PRODUCTS:
                    module = stack[-1] if stack else model
                    found[f"{func.overloadpacket.__name__} in {names.get(module, '')!r} ({type(module).__name__})"] = (
                        None
                    )
                return func(*args, **(kwargs or {}))

        with torch.no_grad(), Watch():
            model(image)
    if found:
        raise UnsupportedModelError(
            f"these products would stay float: {'; '.join(found)}. Wanted every product inside a Linear, Conv2d or "
            "scaled_dot_product_attention. The model is refused rather than half-quantized."
        )
