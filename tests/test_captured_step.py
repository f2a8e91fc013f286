"""Steps recorded and launched as one: a tape of ATen operators stands for a CUDA graph, which is as blind as it.

The tape runs each recorded operator again on the recorded tensors and puts what comes out where it came out before.
Like a graph it knows no Python value again, reads no number on the host, and what it records is not run. That CUDA's
own graphs do the same is what the last test asks, where there is a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from one_block_vit import IMAGES, calibrated
from timm.layers import set_fused_attn
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fimaq.toolchain.distributed.launch import Launch
from fimaq.toolchain.distributed.ranks import ALONE, Ranks
from fimaq.toolchain.nn import float_layers, quantizer_slots
from fimaq.toolchain.progress import NullProgress
from fimaq.toolchain.recipe import Recipe
from fimaq.toolchain.reconstruct import block as stepping
from fimaq.toolchain.reconstruct.block import reconstruct_block
from fimaq.toolchain.reconstruct.cache import BlockCache
from fimaq.toolchain.reconstruct.captured import CudaGraph, _first_line, make_graph
from fimaq.toolchain.reconstruct.objective import FisherObjective, HeadObjective
from fimaq.toolchain.reconstruct.stopwatch import Stopwatch
from fimaq.toolchain.reconstruct.store import make_store
from fimaq.toolchain.reconstruct.tail import tail_after

STEPS = 30
LAST_BETA = 2.75
"""From 20 at step 6 to 2 at step 30, at step 29."""


def tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors(value)


class Recording(TorchDispatchMode):
    """Keeps each operator with its arguments and results; refuses what a graph refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[tuple[Any, Any, Any, Any]] = []
        self.written: list[tuple[Tensor, Tensor]] = []
        self.made: set[int] = set()
        self.drawn: dict[torch.Generator, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        if (generator := kwargs.get("generator")) is not None:
            self.drawn.setdefault(generator, generator.get_state())
        if func._schema.is_mutable:
            for tensor in tensors((*args, *kwargs.values())):
                if tensor.untyped_storage()._cdata not in self.made:
                    self.written.append((tensor, tensor.clone()))
        out = func(*args, **kwargs)
        given = {tensor.untyped_storage()._cdata for tensor in tensors((*args, *kwargs.values()))}
        self.made |= {tensor.untyped_storage()._cdata for tensor in tensors(out)} - given
        self.tape.append((func, args, kwargs, out))
        return out


class Tape:
    """A ``Graph``."""

    recorded = replayed = 0

    def __init__(self, device: torch.device) -> None:
        self.tape: list[tuple[Any, Any, Any, Any]] = []
        self.drawn: dict[torch.Generator, Tensor] = {}

    def record(self, body: Callable[[], Tensor]) -> Tensor:
        with Recording() as recording:
            out = body()
        for generator, place in recording.drawn.items():
            generator.set_state(place)
        with torch.no_grad():
            for tensor, value in reversed(recording.written):
                tensor.copy_(value)
        self.tape, self.drawn = recording.tape, recording.drawn
        type(self).recorded += 1
        return out

    @torch.no_grad()
    def replay(self) -> None:
        type(self).replayed += 1
        for func, args, kwargs, out in self.tape:
            again = func(*args, **kwargs)
            for old, new in zip(tensors(out), tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def tape(monkeypatch) -> type[Tape]:
    """Steps are recorded on tapes of this class."""

    class Own(Tape):
        pass

    monkeypatch.setattr(stepping, "make_graph", lambda ranks, device: Own)
    return Own


@pytest.fixture(autouse=True)
def _fused_attention() -> Iterator[None]:
    """As ``load_float`` builds models."""
    set_fused_attn(enable=True, experimental=True)
    yield
    set_fused_attn(enable=True, experimental=False)


def settings(**fisher: Any) -> Recipe:
    return Recipe.from_dict(
        {
            "name": "captured",
            "weights": {"bits": 3},
            "activations": {"bits": 4, "granularity": "token", "matmul_granularity": "head"},
            "calibrate": {"samples": IMAGES, "candidates": 16, "rounds": 1},
            "fisher": {"samples": 8, "rank": 3} | fisher,
            "reconstruct": {
                "samples": IMAGES,
                "iterations": STEPS,
                "batch_size": 4,
                "alpha_lr": 0.02,
                "scale_lr": 1e-3,
            },
        }
    )


def learn(recipe: Recipe, number: int = 1, device: str = "cpu") -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """What block ``number`` learns, and what is logged of it."""
    model = calibrated(recipe)
    number %= len(model.blocks)
    model.to(device)
    block = model.blocks[number]
    layers = {name: model.layers[name] for name in model.block_layers[block.name]}
    x = torch.randn(IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(device)
    with torch.no_grad(), float_layers(model.layers.values()):
        for before in model.blocks[:number]:
            x = before.module(x)
        target = block.module(x)
        logits = tail_after(model, number)(target)
    quant = x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(device)
    watch, store = Stopwatch(torch.device(device)), make_store("device", torch.device(device), Path())
    objective = (
        HeadObjective()
        if block.kind == "head"
        else FisherObjective(recipe, tail_after(model, number), logits[: recipe.fisher.samples], store, watch)
    )
    log: list[dict[str, Any]] = []
    with NullProgress().task("", 0) as task:
        reconstruct_block(
            block.name, block.module, layers, BlockCache(x, quant, target), objective, recipe, log.append, task
        )
    learned = {
        f"{name}.{slot}.{key}": value.detach().cpu()
        for name, layer in layers.items()
        for slot in quantizer_slots(layer)
        for key, value in getattr(layer, slot).state_dict().items()
    }
    return learned, log


def require_equal(ours: tuple[dict, list], theirs: tuple[dict, list]) -> None:
    """The same codes, scales and losses."""
    assert ours[0].keys() == theirs[0].keys()
    for name, value in theirs[0].items():
        torch.testing.assert_close(ours[0][name], value, rtol=1e-5, atol=0, msg=name)
    assert [row["event"] for row in ours[1]] == ["step"]
    assert {**ours[1][0], "loss": 0} == {**theirs[1][0], "loss": 0}
    assert (ours[1][0]["step"], ours[1][0]["beta"]) == (STEPS, pytest.approx(LAST_BETA))
    assert ours[1][0]["loss"] == pytest.approx(theirs[1][0]["loss"], rel=1e-4)


# A recording after each probe (steps 0, 10 and 20 are run as they are) and where the regularizer sets in (6); in the
# head, which has no probes, after the first step and at 6; mse is relative to what its first step finds.
@pytest.mark.parametrize(
    ("number", "kind", "recordings", "eager"),
    [
        (0, "dplr", 4, 3),
        (1, "dplr", 4, 3),
        (1, "diagonal", 4, 3),
        (1, "low-rank", 4, 3),
        (1, "brecq", 2, 1),
        (1, "rank-one", 2, 1),
        (1, "mse", 2, 1),
        (-1, "dplr", 2, 1),
    ],
)
def test_recorded_steps_learn_what_steps_learn(tape, monkeypatch, number, kind, recordings, eager):
    recipe = settings(kind=kind)
    ours = learn(recipe, number)
    assert (tape.recorded, tape.replayed) == (recordings, STEPS - eager)
    with monkeypatch.context() as patch:
        patch.setattr(stepping, "make_graph", lambda ranks, device: None)
        theirs = learn(recipe, number)
    require_equal(ours, theirs)


def test_a_block_that_cannot_be_recorded_says_so_and_learns_the_same(tape, monkeypatch):
    """A number read on the host stops a recording; nothing of the attempt stays."""
    recipe = settings()
    loss = FisherObjective.loss

    def reading(self: FisherObjective, *args: Tensor) -> Tensor:
        found = loss(self, *args)
        assert float(found.detach()) >= 0
        return found

    with monkeypatch.context() as patch:
        patch.setattr(FisherObjective, "loss", reading)
        learned, log = learn(recipe)
    assert tape.replayed == 0
    assert log[0] == {
        "event": "fallback",
        "block": "blocks.0",
        "step": 1,
        "reason": "steps are launched kernel by kernel; recorded as a CUDA graph: "
        "operation not permitted when stream is capturing",
    }
    monkeypatch.setattr(stepping, "make_graph", lambda ranks, device: None)
    require_equal((learned, log[1:]), learn(recipe))


class Baked(Tape):
    """Draws, each time, what it drew when it was recorded."""

    def replay(self) -> None:
        for generator, place in self.drawn.items():
            generator.set_state(place)
        super().replay()


class Idle(Tape):
    """Leaves Adam out."""

    def replay(self) -> None:
        self.tape = [entry for entry in self.tape if "_fused_adam_" not in str(entry[0])]
        super().replay()


@pytest.mark.parametrize("graph", [Baked, Idle])
def test_a_recording_that_does_something_else_is_not_used(monkeypatch, graph):
    recipe = settings()
    monkeypatch.setattr(stepping, "make_graph", lambda ranks, device: graph)
    learned, log = learn(recipe)
    assert log[0]["event"] == "fallback"
    assert "of a step from where it should" in log[0]["reason"]
    monkeypatch.setattr(stepping, "make_graph", lambda ranks, device: None)
    require_equal((learned, log[1:]), learn(recipe))


def test_one_process_on_cuda_with_a_new_torch_records(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch, "__version__", "2.14.0+cu130")
    assert make_graph(ALONE, cuda) is CudaGraph
    assert make_graph(ALONE, torch.device("cpu")) is None
    assert make_graph(Ranks(Launch(0, 2, 0, 2)), cuda) is None
    monkeypatch.setattr(torch, "__version__", "2.13.1")
    assert make_graph(ALONE, cuda) is None


def test_the_reason_is_what_went_wrong_first():
    raised = RuntimeError("a recording failed")
    raised.__context__ = RuntimeError("first\nsecond line")
    assert _first_line(raised) == "first"
    assert _first_line(RuntimeError()) == "RuntimeError"


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["dplr", "brecq"])
def test_cuda_graphs_learn_what_kernels_launched_one_by_one_learn(monkeypatch, kind):
    recipe = settings(kind=kind)
    replays: Counter[str] = Counter()
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda self: (replays.update(["replay"]), replay(self)))
    ours = learn(recipe, device="cuda")
    assert replays["replay"] == STEPS - (3 if kind == "dplr" else 1)
    monkeypatch.setattr(stepping, "make_graph", lambda ranks, device: None)
    require_equal(ours, learn(recipe, device="cuda"))
