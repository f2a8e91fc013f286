"""What torch.compile is worth on a CPU: forward and backward of a block in reconstruction, compiled and not, in turns.

    python benchmarks/compiled_step.py MODEL ...   (see --help)

Milliseconds of processor time. Masks are drawn beforehand, since the compiler breaks a graph at a generator, and the
quantizer that is compiled writes no result in place, which it breaks at too; drawing, Adam and the regularizer are in
neither time. Random weights and inputs: the cost does not depend on them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from one_block import give_grids, one_block
from torch import Tensor, nn

from fimaq.toolchain.nn import QuantLayer, quantizer_slots
from fimaq.toolchain.quantizers import AdaRoundWeight, UniformQuantizer, random_mask
from fimaq.toolchain.quantizers.uniform import _FakeQuantize
from fimaq.toolchain.recipe import load_recipe
from fimaq.toolchain.reconstruct.precision import matmul_precision


class _Compilable(_FakeQuantize):
    """The product's fake quantization, its backward included, with a forward that writes no result in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmax: int, keep: Tensor | None) -> Tensor:
        """Quantize and dequantize ``x`` (any shape) where ``keep`` is 0; same shape."""
        assert keep is not None
        places = torch.round(x / scale) + zero_point
        codes = places.clamp(0, qmax)
        passed = torch.maximum((places == codes).to(x.dtype), keep)
        y = torch.lerp((codes - zero_point) * scale, x, keep)
        ctx.save_for_backward(x, y, passed, scale)
        return y


class Masked(nn.Module):
    """A quantizer with one mask, drawn at the first call."""

    def __init__(self, quantizer: UniformQuantizer, drop: float) -> None:
        super().__init__()
        quantizer.scale.requires_grad_(True)
        self.quantizer, self.drop, self.compilable = quantizer, drop, False
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize what the mask does not keep."""
        if self.mask is None:
            self.mask = random_mask(x.shape, self.drop, torch.Generator())
        q = self.quantizer
        if self.compilable:
            return _Compilable.apply(x, q.scale, q.zero_point, q.spec.qmax, self.mask)
        return q(x, self.mask)


def put_learned(layers: dict[str, QuantLayer], drop: float) -> tuple[list[Masked], list[nn.Parameter]]:
    """Learned rounding and masked activations into the layers; the activations, and all that is learned."""
    masked: list[Masked] = []
    learned: list[nn.Parameter] = []
    for layer in layers.values():
        for slot in quantizer_slots(layer):
            quantizer = getattr(layer, slot)
            if slot == "weight_quantizer":
                weight = AdaRoundWeight(quantizer.spec, layer.weight, quantizer.scale, quantizer.zero_point)
                setattr(layer, slot, weight)
                learned.append(weight.alpha)
            else:
                masked.append(Masked(quantizer, drop))
                setattr(layer, slot, masked[-1])
                learned.append(quantizer.scale)
    return masked, learned


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--block", default="blocks.3")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5, help="Forward and backward passes in a turn.")
    parser.add_argument("--rounds", type=int, default=5, help="Turns.")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    recipe = load_recipe("fast-w4a4")
    one = one_block(arguments.model, arguments.block, arguments.batch_size, arguments.threads)
    give_grids(one.layers, recipe.weights.bits, recipe.activations.bits)
    masked, learned = put_learned(one.layers, recipe.reconstruct.drop_inside)

    def step(block: Callable[[Tensor], Tensor], compilable: bool) -> list[Tensor]:
        for quantizer in masked:
            quantizer.compilable = compilable
        for parameter in learned:
            parameter.grad = None
        (block(one.x) - one.cache.target).square().mean().backward()
        return [parameter.grad for parameter in learned if parameter.grad is not None]

    def turn(block: Callable[[Tensor], Tensor], compilable: bool) -> float:
        times = []
        for _ in range(arguments.repeats):
            began = time.process_time()
            step(block, compilable)
            times.append(time.process_time() - began)
        return 1e3 * statistics.median(times)

    with matmul_precision(recipe.reconstruct.matmul_precision):
        expected = step(one.block.module, compilable=False)
        compiled = torch.compile(one.block.module, dynamic=False, fullgraph=True)
        began = time.perf_counter()
        found = step(compiled, compilable=True)
        seconds = time.perf_counter() - began
        apart = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))
        turns = [
            (turn(one.block.module, compilable=False), turn(compiled, compilable=True)) for _ in range(arguments.rounds)
        ]
    ratios = [eager / quick for eager, quick in turns]
    sys.stdout.write(
        f"{arguments.model} {arguments.block}, batch {arguments.batch_size}, {arguments.threads} thread(s): "
        f"{statistics.median(eager for eager, _ in turns):.0f} ms, compiled "
        f"{statistics.median(quick for _, quick in turns):.0f} ms "
        f"({statistics.median(ratios):.2f} times, {min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} turns), "
        f"compiling {seconds:.0f} s, gradients {apart:.1e} apart\n"
    )


if __name__ == "__main__":
    main()
