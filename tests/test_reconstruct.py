"""Reconstruction: what a step reads and moves, what a probe is, what comes out, and that it helps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.layers import set_fused_attn
from torch import Tensor, nn

from fimaq.toolchain.artifact import Artifact
from fimaq.toolchain.calibrate import calibrate
from fimaq.toolchain.checkpoint import Checkpoint
from fimaq.toolchain.data.demo_set import load_digits
from fimaq.toolchain.families import QuantModel, wrap
from fimaq.toolchain.fisher import kl_divergence
from fimaq.toolchain.model import load_float
from fimaq.toolchain.nn import QuantConv2d, QuantLinear, QuantMatMul, float_layers, quantizer_slots
from fimaq.toolchain.progress import NullProgress
from fimaq.toolchain.quantizers import AdaRoundWeight, CodedWeight, DropQuantizer, UniformQuantizer
from fimaq.toolchain.recipe import Recipe
from fimaq.toolchain.reconstruct import objective as objectives
from fimaq.toolchain.reconstruct import reconstruct
from fimaq.toolchain.reconstruct import run as running
from fimaq.toolchain.reconstruct.block import reconstruct_block
from fimaq.toolchain.reconstruct.cache import BlockCache, BlockInputs
from fimaq.toolchain.reconstruct.objective import FisherObjective, HeadObjective
from fimaq.toolchain.reconstruct.precision import matmul_precision
from fimaq.toolchain.reconstruct.probe import probe
from fimaq.toolchain.reconstruct.schedule import probe_steps, rounding_beta
from fimaq.toolchain.reconstruct.stopwatch import Stopwatch
from fimaq.toolchain.reconstruct.store import RamStore
from fimaq.toolchain.reconstruct.streams import seed_at
from fimaq.toolchain.run_folder import run_tensors
from fimaq.toolchain.spec import QuantSpec

REFERENCE = load_file(Path(__file__).parent / "data" / "reference.safetensors")
IMAGES = 12


@pytest.fixture(autouse=True)
def _fused_attention() -> Iterator[None]:
    """As ``load_float`` builds models."""
    set_fused_attn(enable=True, experimental=True)
    yield
    set_fused_attn(enable=True, experimental=False)  # timm's default


@pytest.fixture
def checkpoint(tmp_path) -> Checkpoint:
    return Checkpoint(tmp_path)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def recipe(wbits: int = 3, abits: int = 4, seed: int = 0, **tables: dict[str, Any]) -> Recipe:
    values: dict[str, Any] = {
        "name": "test",
        "seed": seed,
        "weights": {"bits": wbits},
        "activations": {"bits": abits},
        "calibrate": {"samples": IMAGES, "candidates": 16, "rounds": 1},
        "fisher": {"samples": 8, "rank": 2},
        "reconstruct": {"samples": IMAGES, "iterations": 6, "batch_size": 4, "alpha_lr": 0.05, "scale_lr": 1e-3},
    }
    for table, changes in tables.items():
        values[table] = values[table] | changes
    return Recipe.from_dict(values)


def tiny(depth: int = 2) -> QuantModel:
    """A ViT that runs in a millisecond, none of whose parameters is what timm starts it at."""
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": depth, "num_heads": 2, "num_classes": 5}
    model = timm.create_model("vit_tiny_patch16_224", **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return wrap(model, (3, 8, 8))


def calibrated(settings: Recipe, depth: int = 2) -> QuantModel:
    model = tiny(depth)
    calibrate(model, noise(IMAGES, 3, 8, 8), settings, NullProgress())
    return model


def finished(
    model: QuantModel, settings: Recipe, checkpoint: Checkpoint, log: Callable = lambda row: None
) -> list[dict]:
    return run_blocks(model, noise(IMAGES, 3, 8, 8), settings, checkpoint, log)


def run_blocks(
    model: QuantModel, images: Tensor, settings: Recipe, checkpoint: Checkpoint, log: Callable = lambda row: None
) -> list[dict]:
    return reconstruct(model, BlockInputs(images, images), settings, NullProgress(), log, checkpoint, RamStore())


class DoubleStore:
    """Keeps probes in float64, for oracles in float64."""

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float64)


def watch() -> Stopwatch:
    return Stopwatch(torch.device("cpu"))


def weights_of(model: QuantModel) -> dict[str, tuple[QuantLinear | QuantConv2d, Any]]:
    """Layers that have a weight, with its quantizer as it is now."""
    return {
        name: (layer, layer.weight_quantizer)
        for name, layer in model.layers.items()
        if not isinstance(layer, QuantMatMul)
    }


def activations_of(model: QuantModel) -> dict[str, UniformQuantizer]:
    return {
        f"{name}.{slot}": getattr(layer, slot)
        for name, layer in model.layers.items()
        for slot in quantizer_slots(layer)
        if slot != "weight_quantizer"
    }


# ---------------------------------------------------------------- schedules


def test_beta_equals_the_published_one():
    """The published one is constant during the warm-up, in which its regularizer is off; ours says None."""
    published = REFERENCE["schedule.b"].tolist()
    settings = recipe(reconstruct={"iterations": 20000, "warmup": 0.2, "beta_start": 20.0, "beta_end": 2.0}).reconstruct
    ours = [rounding_beta(step, settings) for step in range(0, 20001, 500)]
    assert [beta is None for beta in ours] == [step < 4000 for step in range(0, 20001, 500)]
    assert [20.0 if beta is None else beta for beta in ours] == pytest.approx(published, rel=1e-12)
    assert {beta for beta, mine in zip(published, ours, strict=True) if mine is None} == {20.0}


@pytest.mark.parametrize(("warmup", "off"), [(0.0, 0), (0.25, 2), (0.3, 3), (1.0, 10)])
def test_beta_at_the_ends(warmup, off):
    settings = recipe(reconstruct={"iterations": 10, "warmup": warmup}).reconstruct
    betas = [rounding_beta(step, settings) for step in range(10)]
    assert betas.count(None) == math.ceil(warmup * 10) == max(off, math.ceil(warmup * 10))
    numbers = [beta for beta in betas if beta is not None]
    assert numbers == sorted(numbers, reverse=True)
    assert all(2 <= beta <= 20 for beta in numbers)


@pytest.mark.parametrize(
    ("schedule", "rank", "wanted", "iterations", "steps"),
    [
        ("spread", 5, None, 20000, [0, 4000, 8000, 12000, 16000]),
        ("spread", 3, None, 10, [0, 3, 6]),
        ("first", 5, None, 20000, [0, 1, 2, 3, 4]),
        ("spread", 5, None, 3, [0, 1, 2]),
        ("first", 5, None, 3, [0, 1, 2]),
        ("spread", 5, 1, 100, [0]),  # rank-one and brecq take one, whatever the rank
        ("spread", 5, 0, 100, []),  # mse takes none
    ],
)
def test_probe_steps(schedule, rank, wanted, iterations, steps):
    settings = recipe(fisher={"rank": rank, "schedule": schedule}).fisher
    assert probe_steps(settings, wanted, iterations) == steps


def test_a_random_stream_depends_on_seed_block_and_step_only():
    def draw(*where: Any) -> list[int]:
        generator = torch.Generator().manual_seed(99)
        seed_at(generator, *where)
        return torch.randint(1 << 30, (4,), generator=generator).tolist()

    places = [(0, "blocks.0", 0), (1, "blocks.0", 0), (0, "blocks.1", 0), (0, "blocks.0", 1), (0, "blocks.01", 0)]
    drawn = [draw(*where) for where in places]
    assert len({tuple(numbers) for numbers in drawn}) == len(places)
    assert [draw(*where) for where in places] == drawn


def test_precision_is_restored_on_an_error():
    def now() -> tuple[str, str]:
        return torch.get_float32_matmul_precision(), torch.backends.mkldnn.matmul.fp32_precision

    before = now()

    def fail() -> None:
        with matmul_precision("medium"):
            assert now() == ("medium", "bf16")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert now() == before
    with matmul_precision("highest"):
        assert now() == before
    assert now() == before


# ---------------------------------------------------------------- probes and objectives


def test_a_probe_is_the_error_and_the_gradient_of_the_divergence():
    """The gradient against central differences in float64, for more images than one chunk holds."""
    torch.manual_seed(0)
    n, temperature, step = 37, 3.0, 1e-5
    block = nn.Linear(6, 4).double()
    tail = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 5)).double()
    clean = noise(n, 2, 6).double()
    target = noise(n, 2, 4, seed=1).double()

    def to_logits(z: Tensor) -> Tensor:
        return tail(z).mean(1)

    logits = to_logits(target).detach()
    error, gradient = probe(block, to_logits, clean, target, logits, temperature, DoubleStore())
    with torch.no_grad():
        quantized = block(clean)
        torch.testing.assert_close(error, (quantized - target).flatten(1), rtol=0, atol=0)
        differences = torch.zeros(n, 8, dtype=torch.float64)
        p = (logits / temperature).softmax(-1)
        for a in range(8):
            moved = torch.zeros(8, dtype=torch.float64)
            moved[a] = step
            ends = [
                F.kl_div(
                    (to_logits(quantized + sign * moved.view(2, 4)) / temperature).log_softmax(-1), p, reduction="none"
                )
                for sign in (1, -1)
            ]
            differences[:, a] = (ends[0].sum(-1) - ends[1].sum(-1)) / (2 * step)
    torch.testing.assert_close(gradient, differences, rtol=1e-6, atol=1e-10)
    assert gradient.shape == error.shape == (n, 8)
    assert not error.requires_grad
    assert all(parameter.grad is None for parameter in (*block.parameters(), *tail.parameters()))


def test_an_exact_block_has_no_error_and_no_gradient():
    torch.manual_seed(0)
    block, tail = nn.Linear(6, 4).double(), nn.Linear(4, 5).double()
    x = noise(3, 6).double()
    with torch.no_grad():
        target = block(x)
        error, gradient = probe(block, tail, x, target, tail(target), 20.0, DoubleStore())
    assert not error.any()
    assert gradient.abs().max() < 1e-15


def test_the_heads_objective_is_the_divergence_of_the_logits():
    target, output = noise(6, 5), noise(6, 5, seed=1)
    ours = HeadObjective().loss(output, target, torch.arange(6))
    theirs = F.kl_div(output.log_softmax(-1), target.softmax(-1), reduction="batchmean")
    torch.testing.assert_close(ours, theirs)
    assert HeadObjective().before_step(0, lambda x: x, BlockCache(target, target, target)) is None


def test_the_fisher_objective_probes_when_due_on_the_first_images():
    settings = recipe(reconstruct={"iterations": 10}, fisher={"rank": 2, "samples": 3})
    torch.manual_seed(0)
    tail, seen = nn.Linear(4, 5), []
    cache = BlockCache(noise(6, 4), noise(6, 4, seed=1), noise(6, 4, seed=2))
    objective = FisherObjective(settings, tail, tail(cache.target[:3]).detach(), RamStore(), watch())

    def block(x: Tensor) -> Tensor:
        seen.append(x)
        return x * 1.1

    for step in range(10):
        objective.before_step(step, block, cache)
    assert len(seen) == 2  # steps 0 and 5
    assert all(torch.equal(x, cache.clean_in[:3]) for x in seen)
    batch = torch.tensor([5, 0])
    output = cache.target[batch] + 0.1
    torch.testing.assert_close(
        objective.loss(output, cache.target[batch], batch), torch.tensor(2.0)
    )  # low-rank and diagonal, each 1 after a probe


@pytest.mark.parametrize("fisher", [{"p1": 3.0, "p2": 0.5}, {"p1": 0.5, "p2": 3.0}, {"temperature": 1.5}], ids=str)
def test_the_fisher_objective_has_the_recipes_weights_and_temperature(fisher):
    """One probe and two batches, against the equations in float64."""
    settings = recipe(fisher={"rank": 1, "samples": 6} | fisher)
    torch.manual_seed(0)
    tail = nn.Linear(4, 5).double()
    clean, target, first, second = (noise(6, 4, seed=seed).double() for seed in range(4))
    logits = tail(target).detach()
    objective = FisherObjective(settings, tail, logits, DoubleStore(), watch())
    objective.before_step(0, lambda x: 1.1 * x, BlockCache(clean, clean, target))
    numbers = torch.arange(6)
    objective.loss(target + first, target, numbers)
    found = objective.loss(target + second, target, numbers)

    temperature = settings.fisher.temperature
    output = (1.1 * clean).requires_grad_()
    log_q, p = (tail(output) / temperature).log_softmax(-1), (logits / temperature).softmax(-1)
    (gradient,) = torch.autograd.grad(F.kl_div(log_q, p, reduction="sum"), output)
    g, d = gradient.abs().mean(0), (output - target).detach().abs().mean(0)
    low_rank = [((e.abs() @ g).square() / (d @ d)).mean() for e in (first, second)]
    diagonal = [(e.square() @ g).mean() for e in (first, second)]
    wanted = settings.fisher.p1 * low_rank[1] / low_rank[0] + settings.fisher.p2 * diagonal[1] / diagonal[0]
    torch.testing.assert_close(
        found, wanted, rtol=1e-9, atol=0
    )  # float64, and a quotient of close sums in the gradient


def test_each_image_is_weighed_by_its_own_gradient():
    """brecq: the numbers of the probe's images and of the batch's must reach it; 3 to 5 have no own gradient."""
    settings = recipe(fisher={"kind": "brecq", "samples": 3, "temperature": 2.0})
    torch.manual_seed(0)
    tail = nn.Linear(4, 5).double()
    clean, target, first, second = (noise(6, 4, seed=seed).double() for seed in range(4))
    logits = tail(target[:3]).detach()
    objective = FisherObjective(settings, tail, logits, DoubleStore(), watch())
    objective.before_step(0, lambda x: 1.1 * x, BlockCache(clean, clean, target))
    early, late = torch.tensor([1, 0]), torch.tensor([4, 2])
    objective.loss(target[early] + first[early], target[early], early)
    found = objective.loss(target[late] + second[late], target[late], late)

    output = (1.1 * clean[:3]).requires_grad_()
    log_q, p = (tail(output) / 2).log_softmax(-1), (logits / 2).softmax(-1)
    (gradient,) = torch.autograd.grad(F.kl_div(log_q, p, reduction="sum"), output)
    squares = torch.cat([gradient.square(), gradient.square().mean(0).expand(3, -1)])
    wanted = (second.square() * squares)[late].mean() / (first.square() * squares)[early].mean()
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)


# ---------------------------------------------------------------- a step


class Recorder:
    """An objective that keeps what it is given; its loss is ``gain`` times the output's sum."""

    settled = True

    def __init__(self, gain: float = 0.0) -> None:
        self.gain = gain
        self.batches: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.probed: list[Tensor] = []

    def before_step(self, step: int, block: Callable[[Tensor], Tensor], cache: BlockCache) -> str | None:
        with torch.no_grad():
            self.probed.append(block(cache.clean_in))
        return f"note {step}" if step == 2 else None

    def loss(self, output: Tensor, target: Tensor, batch: Tensor) -> Tensor:
        self.batches.append(batch)
        self.targets.append(target)
        return self.gain * output.sum()


class Advances:
    """A progress task that calls back after each step."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.steps, self.then = 0, then

    def advance(self, n: int = 1, **info: object) -> None:
        self.steps += n
        self.then()


def one_layer(bits: int = 4) -> QuantLinear:
    """A calibrated layer: 6 inputs, 3 outputs."""
    torch.manual_seed(0)
    layer = QuantLinear.from_float(nn.Linear(6, 3))
    layer.input_quantizer = UniformQuantizer(QuantSpec(bits), torch.tensor(0.3), torch.tensor(7.0))
    scale, zero = torch.full((3, 1), 0.1), torch.full((3, 1), 4.0)
    layer.weight_quantizer = UniformQuantizer(QuantSpec(3, "channel"), scale, zero)
    return layer


def learn(
    layer: QuantLinear, cache: BlockCache, objective: Any, settings: Recipe, module: Callable | None = None, **how: Any
) -> tuple[float, float]:
    how = {"log": lambda row: None, "task": Advances()} | how
    return reconstruct_block("b", module or layer, {"layer": layer}, cache, objective, settings, **how)


def cache_of(n: int = 8) -> BlockCache:
    """Image i is i everywhere in the clean input, i + 1000 in the quantized one and i in the target."""
    numbers = torch.arange(float(n))[:, None]
    return BlockCache(numbers.expand(n, 6).clone(), numbers.expand(n, 6) + 1000, numbers.expand(n, 3).clone())


@pytest.mark.parametrize(("quantized_input", "share"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_a_steps_input_mixes_the_prefixes_of_the_same_images(quantized_input, share):
    layer, cache, objective = one_layer(), cache_of(), Recorder()
    settings = recipe(reconstruct={"quantized_input": quantized_input, "iterations": 200, "batch_size": 8})
    inputs: list[Tensor] = []

    def module(x: Tensor) -> Tensor:
        inputs.append(x)
        return layer(x)

    learn(layer, cache, objective, settings, module)
    steps = [x for x in inputs if x.shape[0] == 8 and not torch.equal(x, cache.clean_in)]
    assert len(objective.batches) == 200
    quantized = 0
    for x, batch, target in zip(steps[-200:], objective.batches, objective.targets, strict=True):
        assert torch.equal(x % 1000, cache.clean_in[batch])  # each element is its image's, from one prefix or the other
        assert torch.equal(target, cache.target[batch])
        quantized += int((x >= 1000).sum())
    assert quantized / (200 * 8 * 6) == pytest.approx(share, abs=0.03)  # five deviations of 9,600 draws; exact at ends
    drawn = torch.cat(objective.batches)
    assert set(drawn.tolist()) == set(range(8))
    assert len({tuple(batch.tolist()) for batch in objective.batches}) > 190


def test_probes_see_the_block_without_drop_and_steps_with_it():
    layer, cache, objective = one_layer(), cache_of(), Recorder()
    cache.clean_in, cache.quant_in = noise(8, 6), noise(8, 6)
    runs: list[tuple[Tensor, Tensor]] = []

    def module(x: Tensor) -> Tensor:
        runs.append((x, layer(x)))
        return runs[-1][1]

    settings = recipe(reconstruct={"drop_inside": 0.5, "iterations": 4, "batch_size": 8, "round_weight": 0.0})
    inner = layer.input_quantizer
    learn(layer, cache, objective, settings, module)
    # with a loss of zero nothing moves: the soft weight is the clamped float one all the way
    weight = layer.weight.detach().clamp(-0.4, 0.3)
    for number, (x, output) in enumerate(runs):
        without_drop = F.linear(inner(x), weight, layer.bias).detach()
        difference = (output.detach() - without_drop).abs().max()
        # a probe and a step take turns; alpha costs 1e-6 of a level
        assert difference < 1e-5 if number % 2 == 0 else difference > 1e-2
    assert len(runs) == 8
    assert layer.input_quantizer is inner
    assert not inner.scale.requires_grad


def test_scales_follow_a_cosine_to_zero():
    """Under a constant gradient Adam moves by its learning rate: the way is the sum of the schedule."""
    layer, steps, rate = one_layer(), 50, 0.002
    cache = BlockCache(torch.full((8, 6), 99.0), torch.full((8, 6), 99.0), torch.zeros(8, 3))
    layer.weight.data.fill_(0.25)  # every input is above the range: the output's gradient by the scale is constant
    settings = recipe(
        reconstruct={
            "iterations": steps, "scale_lr": rate, "alpha_lr": 1e-9, "drop_inside": 0.0, "round_weight": 0.0
        }
    )  # fmt: skip
    seen: list[float] = []
    task = Advances(lambda: seen.append(float(layer.input_quantizer.quantizer.scale.detach())))
    learn(layer, cache, Recorder(gain=1.0), settings, task=task)
    schedule = [rate * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]
    np.testing.assert_allclose(seen, 0.3 - np.cumsum(schedule), rtol=1e-4)  # float32 Adam
    assert task.steps == steps
    assert torch.equal(layer.input_quantizer.zero_point, torch.tensor(7.0))


def test_a_scale_learning_rate_of_zero_leaves_scales():
    layer, cache = one_layer(), cache_of()
    learn(layer, cache, Recorder(gain=1.0), recipe(reconstruct={"scale_lr": 0.0}))
    assert torch.equal(layer.input_quantizer.scale.detach(), torch.tensor(0.3))


def test_scales_stay_positive_under_any_learning_rate():
    """A scale that passes zero has no grid and no ONNX file; a small one is a few steps away from it."""
    layer, seen = one_layer(), []
    layer.weight.data.fill_(0.25)
    cache = BlockCache(torch.full((8, 6), 99.0), torch.full((8, 6), 99.0), torch.zeros(8, 3))
    task = Advances(lambda: seen.append(float(layer.input_quantizer.quantizer.scale.detach())))
    settings = recipe(reconstruct={"scale_lr": 0.05, "iterations": 20, "drop_inside": 0.0})
    learn(layer, cache, Recorder(gain=1.0), settings, task=task)  # pulls the scale down all the way: 0.5 from 0.3
    assert min(seen) < 0.01
    assert min(seen) > 0
    assert layer(cache.clean_in).isfinite().all()


def test_the_regularizer_waits_for_the_warm_up_and_then_decides():
    layer, cache, seen = one_layer(), cache_of(), []
    settings = recipe(reconstruct={"iterations": 400, "warmup": 0.25, "alpha_lr": 0.05, "round_weight": 1.0})
    task = Advances(lambda: seen.append(layer.weight_quantizer.alpha.detach().clone()))
    floor = torch.floor(layer.weight.detach() / 0.1)
    soft = layer.weight.detach() / 0.1 - floor
    learn(layer, cache, Recorder(gain=0.0), settings, task=task)
    assert all(torch.equal(alpha, seen[0]) for alpha in seen[:100])
    assert not torch.equal(seen[101], seen[0])
    h = torch.clamp(torch.sigmoid(seen[-1]) * 1.2 - 0.1, 0, 1)
    assert ((h == 0) | (h == 1)).all()
    # nothing else pulls: each goes to the side it started on
    assert torch.equal(layer.weight_quantizer.codes, (floor + (soft >= 0.5) + 4).clamp(0, 7).to(torch.uint8))


@pytest.mark.parametrize("weight", [0.3, 2.0])
def test_the_regularizer_pulls_with_the_recipes_weight(weight):
    """Adam does not care how long a lone gradient is, so the gradient itself is looked at."""
    layer, seen = one_layer(), []
    settings = recipe(reconstruct={"round_weight": weight, "warmup": 0.0, "beta_start": 4.0, "beta_end": 4.0})

    def keep() -> None:
        alpha = layer.weight_quantizer.alpha
        seen.append((alpha.detach().clone(), alpha.grad.clone()))

    learn(layer, cache_of(), Recorder(gain=0.0), settings, task=Advances(keep))
    alpha = seen[0][0].requires_grad_()
    h = torch.clamp(torch.sigmoid(alpha) * 1.2 - 0.1, 0, 1)
    (gradient,) = torch.autograd.grad((1 - (2 * h - 1).abs().pow(4)).sum(), alpha)
    torch.testing.assert_close(seen[1][1], weight * gradient)


def test_no_regularizer_with_a_weight_of_zero():
    layer, seen = one_layer(), []
    task = Advances(lambda: seen.append(layer.weight_quantizer.alpha.detach().clone()))
    learn(layer, cache_of(), Recorder(), recipe(reconstruct={"round_weight": 0.0, "warmup": 0.0}), task=task)
    assert torch.equal(seen[0], seen[-1])


def test_learning_minimises_a_quadratic_by_rounding():
    """On a problem small enough for brute force over all roundings of a row, the learned one is close to the best."""
    layer = one_layer()
    layer.input_quantizer = UniformQuantizer(QuantSpec(8), torch.tensor(0.05), torch.tensor(128.0))
    x = noise(64, 6) + 0.5
    target = F.linear(x, layer.weight, layer.bias).detach()
    cache = BlockCache(x, x, target)

    class Squares(Recorder):
        def loss(self, output: Tensor, target: Tensor, batch: Tensor) -> Tensor:
            return (output - target).square().sum(1).mean()

    rates = {"iterations": 600, "alpha_lr": 0.03, "scale_lr": 0.0, "round_weight": 0.01, "batch_size": 12}
    settings = recipe(reconstruct=rates | {"drop_inside": 0.0})
    learn(layer, cache, Squares(), settings)

    def error(codes: Tensor) -> Tensor:
        """Per output."""
        return (F.linear(x, (codes - 4) * 0.1, layer.bias) - target).square().mean(0).detach()

    floor = torch.floor(layer.weight.detach() / 0.1) + 4
    choices = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6)
    every = torch.stack([error((floor + up).clamp(0, 7)) for up in choices])
    learned = error(layer.weight_quantizer.codes.float())
    nearest = error(torch.clamp(torch.round(layer.weight.detach() / 0.1) + 4, 0, 7))
    assert (learned <= nearest + 1e-6).all()
    assert (learned <= 1.5 * every.amin(0) + 1e-6).all()


def test_losses_and_log_are_of_the_objective():
    layer, rows = one_layer(), []

    class Counting(Recorder):
        def loss(self, output: Tensor, target: Tensor, batch: Tensor) -> Tensor:
            self.batches.append(batch)
            return output.sum() * 0 + float(len(self.batches))

    settings = recipe(reconstruct={"iterations": 120, "warmup": 0.0})
    assert learn(layer, cache_of(), Counting(), settings, log=rows.append) == (6.5, 114.5)  # of 1..12 and 109..120
    assert rows[0] == {"event": "fallback", "block": "b", "step": 2, "reason": "note 2"}
    steps = [row for row in rows if row["event"] == "step"]
    assert [(row["step"], row["loss"]) for row in steps] == [(50, 50.0), (100, 100.0), (120, 120.0)]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_a_step_leaves_plain_quantizers(error):
    layer = one_layer()
    inner = layer.input_quantizer

    class Failing(Recorder):
        def loss(self, output: Tensor, target: Tensor, batch: Tensor) -> Tensor:
            raise error

    with pytest.raises(error):
        learn(layer, cache_of(), Failing(), recipe())
    assert layer.input_quantizer is inner
    assert not inner.scale.requires_grad
    assert isinstance(layer.weight_quantizer, CodedWeight)


# ---------------------------------------------------------------- a whole model


def test_without_iterations_weights_are_rounded_to_nearest(checkpoint):
    settings = recipe(reconstruct={"iterations": 0})
    model = calibrated(settings)
    grids = {
        name: (quantizer.scale.detach().numpy(), quantizer.zero_point.numpy())
        for name, (_, quantizer) in weights_of(model).items()
    }
    before = {name: quantizer.scale.detach().clone() for name, quantizer in activations_of(model).items()}
    rows = finished(model, settings, checkpoint)
    for name, (layer, coded) in weights_of(model).items():
        assert type(coded) is CodedWeight
        scale, zero = grids[name]
        wanted = np.clip(np.rint(layer.weight.detach().numpy() / scale) + zero, 0, 7)
        np.testing.assert_array_equal(coded.codes.numpy(), wanted)
    assert all(torch.equal(before[name], q.scale) for name, q in activations_of(model).items())
    assert [row["name"] for row in rows] == ["patch_embed", "blocks.0", "blocks.1", "head"]
    assert {(row["loss_first"], row["loss_last"]) for row in rows} == {(None, None)}


@pytest.mark.parametrize("kind", ["dplr", "mse", "brecq", "rank-one", "low-rank", "diagonal"])
def test_what_reconstruction_changes_and_what_not(kind, checkpoint):
    settings = recipe(fisher={"kind": kind}, reconstruct={"iterations": 20}, activations={"granularity": "token"})
    model = calibrated(settings)
    grids = {
        name: (layer.weight.detach().clone(), q.scale.detach().clone(), q.zero_point.clone())
        for name, (layer, q) in weights_of(model).items()
    }
    activations = {
        name: (q, q.scale.detach().clone(), q.zero_point.clone()) for name, q in activations_of(model).items()
    }
    others = {
        name: value.clone()
        for name, value in model.model.named_parameters()
        if not any(part in name for part in ("quantizer", "weight_quantizer"))
    }
    rows = finished(model, settings, checkpoint)
    moved = 0
    for name, (layer, coded) in weights_of(model).items():
        weight, scale, zero = grids[name]
        assert type(coded) is CodedWeight
        assert torch.equal(layer.weight, weight)
        assert torch.equal(coded.scale, scale)
        assert torch.equal(coded.zero_point, zero)
        assert coded.codes.dtype == torch.uint8
        assert int(coded.codes.max()) <= 7
        low = torch.floor(weight / scale) + zero
        codes = coded.codes.float()
        assert ((codes == low.clamp(0, 7)) | (codes == (low + 1).clamp(0, 7))).all(), name
        moved += int((codes != (torch.round(weight / scale) + zero).clamp(0, 7)).sum())
    assert moved > 0
    for name, quantizer in activations_of(model).items():
        same, scale, zero = activations[name]
        assert quantizer is same, name
        assert torch.equal(quantizer.zero_point, zero), name
        assert not torch.equal(quantizer.scale, scale), name
        assert (quantizer.scale > 0).all()
    for name, value in model.model.named_parameters():
        if name in others:
            assert torch.equal(value, others[name]), name
    left = {type(module) for module in model.model.modules()} & {AdaRoundWeight, DropQuantizer, nn.Identity}
    assert AdaRoundWeight not in left
    assert DropQuantizer not in left
    assert all(math.isfinite(row["loss_first"]) and math.isfinite(row["loss_last"]) for row in rows)
    assert [row["kind"] for row in rows] == ["patch-embed", "transformer", "transformer", "head"]


def content(model: QuantModel) -> str:
    return Artifact({}, run_tensors(model)).content_sha256()


def test_the_same_seed_gives_the_same_tensors(tmp_path):
    def sha(seed: int) -> str:
        settings = recipe(seed=seed, reconstruct={"iterations": 10})
        model = calibrated(recipe())  # the same calibration for all
        torch.manual_seed(torch.seed())  # torch's global generator has no part in it
        folder = tmp_path / f"{seed}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        finished(model, settings, Checkpoint(folder))
        return content(model)

    assert sha(3) == sha(3)
    assert sha(3) != sha(4)


def test_forwards_are_counted(checkpoint, monkeypatch):
    """A block runs for its own steps, three advances, its probes and two looks at its fidelity; then only as a tail."""
    depth, iterations, rank = 4, 6, 2
    settings = recipe(fisher={"rank": rank}, reconstruct={"iterations": iterations})
    model = calibrated(settings, depth)
    now: list[str] = ["-"]
    runs: Counter[tuple[str, str]] = Counter()
    for block in model.blocks:
        block.module.register_forward_hook(lambda *_, name=block.name: runs.update([(now[0], name)]))
    original = running.reconstruct_block

    def spy(name: str, *args: Any) -> tuple[float, float]:
        now[0] = name
        try:
            return original(name, *args)
        finally:
            now[0] = "-"

    monkeypatch.setattr(running, "reconstruct_block", spy)
    finished(model, settings, checkpoint)
    names = [block.name for block in model.blocks]
    for number, name in enumerate(names):
        # Float logits, target, quantized output, and a sample before and after: once each, so linear in depth.
        assert runs["-", name] == 5, name
        probes = 0 if name == "head" else rank
        assert runs[name, name] == iterations + probes
        for earlier in names[:number]:
            assert runs[name, earlier] == 0  # nothing in front of the block runs again
        for later in names[number + 1 :]:
            assert runs[name, later] == rank


def test_each_block_reads_what_the_blocks_before_it_give(checkpoint, monkeypatch):
    settings = recipe()
    model, caches = calibrated(settings), []
    original = running.reconstruct_block

    def spy(name: str, module: Any, layers: Any, cache: BlockCache, *args: Any) -> tuple[float, float]:
        caches.append(cache)
        return original(name, module, layers, cache, *args)

    monkeypatch.setattr(running, "reconstruct_block", spy)
    finished(model, settings, checkpoint)
    clean = quant = noise(IMAGES, 3, 8, 8)
    for block, cache in zip(model.blocks, caches, strict=True):
        torch.testing.assert_close(cache.clean_in, clean, rtol=0, atol=0)
        torch.testing.assert_close(cache.quant_in, quant, rtol=0, atol=0)
        with torch.no_grad():
            quant = block.module(quant)  # with its learned weights and scales
            with float_layers(model.layers.values()):
                clean = block.module(clean)
        torch.testing.assert_close(cache.target, clean, rtol=0, atol=0)


def test_the_tail_of_a_probe_is_float_and_the_block_is_not(checkpoint, monkeypatch):
    settings = recipe(reconstruct={"iterations": 2})
    model = calibrated(settings)
    images = noise(IMAGES, 3, 8, 8)
    with torch.no_grad(), float_layers(model.layers.values()):
        x, float_outputs = images[:8], []
        for block in model.blocks:
            x = block.module(x)
            float_outputs.append(x)
    seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    original = objectives.probe

    def spy(block: Any, tail: Any, clean: Tensor, target: Tensor, logits: Tensor, *how: Any) -> Any:
        error, gradient = original(block, tail, clean, target, logits, *how)
        with torch.no_grad():
            seen.append((clean, target, tail(target), error))
        torch.testing.assert_close(logits, float_outputs[-1], rtol=1e-4, atol=1e-5)  # float32, batches of other sizes
        return error, gradient

    monkeypatch.setattr(objectives, "probe", spy)
    finished(model, settings, checkpoint)
    assert len(seen) == 2 * 3
    for number in range(3):
        clean, target, out, error = seen[2 * number]
        close = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(clean, images[:8] if number == 0 else float_outputs[number - 1], **close)
        torch.testing.assert_close(target, float_outputs[number], **close)
        torch.testing.assert_close(out, float_outputs[-1], **close)
        assert error.abs().max() > 1e-3


def test_the_head_is_held_to_the_divergence_of_its_logits(checkpoint):
    """One image in many copies, no drop and no step: the head's first loss is then known."""
    settings = recipe(reconstruct={"iterations": 1, "quantized_input": 0.0, "drop_inside": 0.0})
    model = calibrated(settings)
    images = noise(1, 3, 8, 8).expand(IMAGES, -1, -1, -1).clone()
    head = model.layers["head"]
    with torch.no_grad(), float_layers(model.layers.values()):
        x = images[:1]
        for block in model.blocks[:-1]:
            x = block.module(x)
        logits, read = model.blocks[-1].module(x), model.model.norm(x)[:, 0]
    low, high = ((end - head.weight_quantizer.zero_point) * head.weight_quantizer.scale for end in (0, 7))
    with torch.no_grad():
        soft = head.weight.clamp(low, high)
        output = F.linear(head.input_quantizer(read), soft, head.bias)
        wanted = F.kl_div(output.log_softmax(-1), logits.softmax(-1), reduction="batchmean")
    row = run_blocks(model, images, settings, checkpoint)[-1]
    assert row["name"] == "head"
    assert row["loss_first"] == pytest.approx(float(wanted), rel=1e-3)  # float32 logits, alpha through a logarithm
    assert row["loss_first"] > 0


def test_finished_blocks_are_taken_from_the_checkpoint(tmp_path):
    settings = recipe(reconstruct={"iterations": 10})
    whole = calibrated(settings)
    (tmp_path / "a").mkdir()
    finished(whole, settings, Checkpoint(tmp_path / "a"))
    for stored in ("blocks.1", "head"):
        (tmp_path / "a" / f"{stored}.safetensors").unlink()
    resumed, steps = calibrated(settings), []
    rows = finished(resumed, settings, Checkpoint(tmp_path / "a"), steps.append)
    assert content(resumed) == content(whole)
    assert len(rows) == 4
    assert [row["block"] for row in steps if row["event"] == "step"] == ["patch_embed", "blocks.0", "blocks.1", "head"]


@pytest.mark.parametrize("name", ["demo_vit", "demo_swin"])
def test_reconstruction_helps_on_images_it_has_not_seen(name, checkpoint):
    """At 3 bits on digits: the divergence from the float model, against the same grids rounded to nearest."""
    digits = torch.from_numpy(load_digits()[0][:512:4].astype(np.float32))
    images = F.interpolate((digits / 8 - 1)[:, None], size=32, mode="bicubic").expand(-1, 3, -1, -1).contiguous()
    seen, unseen = images[::2], images[1::2]

    def divergence(iterations: int) -> float:
        loaded = load_float(name)
        model = wrap(loaded.module, loaded.input_size)
        settings = recipe(
            3,
            3,
            fisher={"samples": 16, "rank": 2},
            reconstruct={
                "iterations": iterations, "samples": 64, "batch_size": 16, "alpha_lr": 0.05, "scale_lr": 2e-3,
                "matmul_precision": "medium",
            },
        )  # fmt: skip
        with torch.no_grad():
            expected = model(unseen)
        calibrate(model, seen[:16], settings, NullProgress())
        run_blocks(model, seen, settings, checkpoint)
        checkpoint.discard()
        checkpoint.folder.mkdir()
        with torch.no_grad():
            return float(kl_divergence(expected, model(unseen), 1.0).mean())

    assert divergence(100) < 0.8 * divergence(0)
