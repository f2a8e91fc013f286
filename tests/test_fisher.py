"""Contract of every Fisher approximation, run over the registry, and each one's own promises."""

from __future__ import annotations

import math

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor

from fimaq.toolchain.errors import FimaqError, UsageError
from fimaq.toolchain.fisher import FISHER, FisherApproximation, kl_divergence, make_fisher
from fimaq.toolchain.fisher.low_rank import LowRankFisher, inverse_root
from fimaq.toolchain.fisher.rank_one import RankOneFisher

N, A, K, B = 7, 12, 3, 4
INDEX = torch.tensor([5, 0, 3, 3])
START = {"mse": 1.0, "brecq": 1.0, "diagonal": 2.0, "rank-one": 1.0, "low-rank": 1.0, "dplr": 2.0}


def randn(*shape: int, seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def probes(dtype: torch.dtype = torch.float64, grad_scale: float = 1e-3) -> list[tuple[Tensor, Tensor]]:
    return [
        (randn(N, A, seed=10 + k, scale=0.1, dtype=dtype), randn(N, A, seed=20 + k, scale=grad_scale, dtype=dtype))
        for k in range(K)
    ]


def probed(name: str, of: list[tuple[Tensor, Tensor]]) -> FisherApproximation:
    """The approximation after as many of the probes as it wants."""
    fisher = make_fisher(name)
    for error, grad in of[: fisher.needs_probes]:
        fisher.update(error, grad)
    return fisher


def dense_forms(name: str, of: list[tuple[Tensor, Tensor]], index: list[int]) -> list[list[np.ndarray]]:
    """The oracle: for each term the dense matrix F of every batch image, built with numpy from the equations."""
    delta = np.stack([np.abs(e.numpy()).mean(0) for e, _ in of])
    grads = np.stack([np.abs(g.numpy()).mean(0) for _, g in of])
    diagonal = [np.diag(grads.mean(0)) / A] * len(index)
    low_rank = [grads.T @ np.linalg.solve(delta @ delta.T, grads)] * len(index)
    return {
        "mse": [[np.eye(A) / A] * len(index)],
        "brecq": [[np.diag(of[0][1].numpy()[i] ** 2) / A for i in index]],
        "diagonal": [diagonal],
        "rank-one": [[np.outer(grads[0], grads[0]) / (grads[0] @ delta[0])] * len(index)],
        "low-rank": [low_rank],
        "dplr": [low_rank, diagonal],
    }[name]


def dense_values(name: str, of: list[tuple[Tensor, Tensor]], error: Tensor, index: list[int]) -> list[float]:
    rows = np.abs(error.numpy())
    return [
        float(np.mean([row @ f @ row for row, f in zip(rows, form, strict=True)]))
        for form in dense_forms(name, of, index)
    ]


@pytest.mark.parametrize("name", FISHER)
def test_terms_equal_the_dense_quadratic_form(name: str) -> None:
    fisher, error = probed(name, probes()), randn(B, A, seed=1, scale=0.1)
    got = [float(term) * unit for term, unit in zip(fisher.terms(error, INDEX), fisher.units, strict=True)]
    assert got == pytest.approx(dense_values(name, probes(), error, INDEX.tolist()), rel=1e-10)  # float64, a 3x3 solve


@pytest.mark.parametrize("name", FISHER)
def test_loss_is_the_sum_of_ratios_to_the_first_value_after_a_probe(name: str) -> None:
    fisher = probed(name, probes())
    first, second = randn(B, A, seed=1, scale=0.1), randn(B, A, seed=2, scale=0.1)
    assert float(fisher.loss(first, INDEX)) == pytest.approx(START[name], rel=1e-12)
    one, two = (dense_values(name, probes(), e, INDEX.tolist()) for e in (first, second))
    share = START[name] / len(one)
    wanted = share * sum(b / a for a, b in zip(one, two, strict=True))
    assert float(fisher.loss(second, INDEX)) == pytest.approx(wanted, rel=1e-10)
    fisher.update(*probes()[0])
    assert float(fisher.loss(second, INDEX)) == pytest.approx(START[name], rel=1e-12), "a probe restarts the loss"


@pytest.mark.parametrize("name", FISHER)
def test_zero_at_zero_error_with_zero_gradient_and_never_negative(name: str) -> None:
    fisher = probed(name, probes(torch.float32, 1e-8))
    for error in (torch.zeros(B, A), randn(B, A, seed=1, dtype=torch.float32), torch.zeros(B, A)):
        error.requires_grad_()
        loss = fisher.loss(error, INDEX)
        (grad,) = torch.autograd.grad(loss, error)
        zero = not error.any()
        assert loss.shape == ()
        assert (loss == 0.0) if zero else (loss > 0.0)
        assert (not grad.any()) if zero else (bool(grad.isfinite().all()) and bool(grad.any()))
    assert all(float(fisher.loss(randn(B, A, seed=s, dtype=torch.float32), INDEX)) >= 0 for s in range(20))


@pytest.mark.parametrize("name", FISHER)
def test_a_zero_first_error_does_not_become_the_divisor(name: str) -> None:
    fisher = probed(name, probes())
    assert float(fisher.loss(torch.zeros(B, A, dtype=torch.float64), INDEX)) == 0.0
    assert float(fisher.loss(randn(B, A, seed=1), INDEX)) == pytest.approx(START[name])


@pytest.mark.parametrize("name", FISHER)
def test_gradient_equals_finite_differences(name: str) -> None:
    fisher, error = probed(name, probes()), randn(B, A, seed=3).requires_grad_()
    fisher.loss(randn(B, A, seed=4), INDEX)
    (grad,) = torch.autograd.grad(fisher.loss(error, INDEX), error)
    base = dense_values(name, probes(), randn(B, A, seed=4), INDEX.tolist())
    share, step, e = START[name] / len(base), 1e-6, error.detach()
    for place in [(0, 0), (1, 5), (3, 11), (2, 7)]:
        ends = []
        for sign in (1, -1):
            moved = e.clone()
            moved[place] += sign * step
            forms = dense_values(name, probes(), moved, INDEX.tolist())
            ends.append(share * sum(v / b for v, b in zip(forms, base, strict=True)))
        # central differences: O(step^2) truncation, 1e-16 / step rounding
        assert float(grad[place]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("scale", [1e-25, 1e-8, 1e12])
@pytest.mark.parametrize("name", FISHER)
def test_normalised_loss_does_not_depend_on_the_gradients_scale(name: str, scale: float) -> None:
    losses = []
    for grad_scale in (1.0, scale):
        fisher = probed(name, probes(torch.float32, grad_scale))
        fisher.loss(randn(B, A, seed=1, scale=0.1, dtype=torch.float32), INDEX)
        losses.append(float(fisher.loss(randn(B, A, seed=2, scale=0.1, dtype=torch.float32), INDEX)))
    assert losses[1] == pytest.approx(losses[0], rel=3e-6)  # float32 gradients rounded at another exponent


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", FISHER)
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    fisher = make_fisher(name)
    for error, grad in probes(dtype)[: fisher.needs_probes]:
        fisher.update(error, grad)
    loss = fisher.loss(randn(B, A, seed=1, scale=1e-4, dtype=dtype), INDEX)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert float(loss) == pytest.approx(START[name], rel=1e-6)


@pytest.mark.parametrize("name", FISHER)
def test_autocast_does_not_touch_the_loss(name: str) -> None:
    losses = []
    for enabled in (False, True):
        fisher = probed(name, probes(torch.float32))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            fisher.loss(randn(B, A, seed=1, dtype=torch.float32), INDEX)
            losses.append(fisher.loss(randn(B, A, seed=2, dtype=torch.float32), INDEX))
    assert torch.equal(*losses)


@pytest.mark.gpu
@pytest.mark.parametrize("name", FISHER)
def test_cuda_agrees_with_cpu(name: str) -> None:
    losses = []
    for device in ("cpu", "cuda"):
        fisher = make_fisher(name)
        for error, grad in probes(torch.float32, 1e-8)[: fisher.needs_probes]:
            fisher.update(error.to(device), grad.to(device), torch.arange(N))
        fisher.loss(randn(B, A, seed=1, dtype=torch.float32).to(device), INDEX)
        loss = fisher.loss(randn(B, A, seed=2, dtype=torch.float32).to(device), INDEX)
        assert loss.device.type == device
        losses.append(float(loss))
    assert losses[1] == pytest.approx(losses[0], rel=3e-6)  # float32 sums in another order


AWKWARD = {
    "zero gradients": lambda e, g: (e, torch.zeros_like(g)),
    "zero errors": lambda e, g: (torch.zeros_like(e), g),
    "all zero": lambda e, g: (torch.zeros_like(e), torch.zeros_like(g)),
    "g^T d < 0": lambda e, g: (e, -e),
    "disjoint supports": lambda e, g: (e * (torch.arange(A) < 6), g * (torch.arange(A) >= 6)),
    "subnormal gradients": lambda e, g: (e, g * 1e-39),
    "one image": lambda e, g: (e[:1], g[:1]),
}


@pytest.mark.parametrize("case", AWKWARD)
@pytest.mark.parametrize("name", [*FISHER, "signed"])
def test_awkward_probes_give_a_usable_loss(name: str, case: str) -> None:
    fisher = RankOneFisher(signed=True) if name == "signed" else make_fisher(name)
    error, grad = AWKWARD[case](*probes(torch.float32, 1.0)[0])
    for _ in range(2):  # the second probe is parallel to the first
        fisher.update(error, grad)
        e = randn(B, A, seed=1, dtype=torch.float32).requires_grad_()
        loss = fisher.loss(e, torch.tensor([0, 0, 0, 0]))
        (slope,) = torch.autograd.grad(loss, e)
        assert float(loss.detach()) == pytest.approx(START.get(name, 1.0), rel=1e-6)
        assert slope.isfinite().all()
        assert slope.any()


@pytest.mark.parametrize("name", ["brecq", "diagonal", "rank-one", "low-rank"])
def test_all_zero_probe_means_mse_and_says_so(name: str) -> None:
    fisher = make_fisher(name)
    fisher.update(torch.zeros(N, A), torch.zeros(N, A))
    e = randn(B, A, seed=1, dtype=torch.float32)
    assert "mse" in (fisher.fallback or "")
    mean_square = pytest.approx(float((e.double() ** 2).mean()), rel=1e-6)
    assert float(fisher.terms(e, INDEX)[0]) * fisher.units[0] == mean_square
    fisher.update(*probes(torch.float32)[0])
    assert fisher.fallback is None
    fisher.update(torch.zeros(N, A), torch.zeros(N, A))
    if fisher.needs_probes == 1:  # the last probe counts
        assert "mse" in (fisher.fallback or "")
        assert float(fisher.terms(e, INDEX)[0]) * fisher.units[0] == mean_square
    else:  # what earlier probes said stands
        assert fisher.fallback is None


def test_brecq_uses_each_images_own_gradient_and_the_mean_for_the_others() -> None:
    fisher, (error, grad) = make_fisher("brecq"), probes()[0]
    fisher.update(error, grad, torch.tensor([40, 0, 30, 4, 20, 6, 10]))
    e = randn(5, A, seed=1)
    own = grad.numpy() ** 2
    mean = own.mean(0)
    weights = np.stack([own[2], mean, own[0], mean, mean])  # 30 -> row 2; 3, 41 and -1 had no probe; 40 -> row 0
    got = float(fisher.terms(e, torch.tensor([30, 3, 40, 41, -1]))[0]) * fisher.units[0]
    assert got == pytest.approx(float((e.numpy() ** 2 * weights).mean()), rel=1e-12)
    got = float(fisher.terms(e)[0]) * fisher.units[0]
    assert got == pytest.approx(float((e.numpy() ** 2 * mean).mean()), rel=1e-12)


def test_brecq_last_probe_counts() -> None:
    fisher = make_fisher("brecq")
    for error, grad in probes():
        fisher.update(error, grad)
    e, last = randn(B, A, seed=1), probes()[-1][1].numpy()[INDEX.numpy()]
    assert float(fisher.terms(e, INDEX)[0]) * fisher.units[0] == pytest.approx(float((e.numpy() ** 2 * last**2).mean()))


def test_signed_rank_one_uses_signed_means_and_falls_back_when_g_d_is_not_positive() -> None:
    error, grad = probes()[0]
    e, d, g = randn(B, A, seed=1).numpy(), error.numpy().mean(0), grad.numpy().mean(0)
    sign = math.copysign(1.0, g @ d)
    fisher = RankOneFisher(signed=True)
    fisher.update(error, sign * grad)
    wanted = np.mean((e @ g) ** 2) / (sign * g @ d)
    assert float(fisher.terms(torch.tensor(e))[0]) * fisher.units[0] == pytest.approx(wanted, rel=1e-10)
    assert fisher.fallback is None
    fisher.update(error, -sign * grad)
    d, g = np.abs(error.numpy()).mean(0), np.abs(grad.numpy()).mean(0)
    wanted = np.mean((np.abs(e) @ g) ** 2) / (g @ d)
    assert float(fisher.terms(torch.tensor(e))[0]) * fisher.units[0] == pytest.approx(wanted, rel=1e-10)
    assert "absolute" in (fisher.fallback or "")
    fisher.update(error, sign * grad)
    wanted = np.mean((e @ (sign * grad.numpy().mean(0))) ** 2) / abs(grad.numpy().mean(0) @ error.numpy().mean(0))
    assert float(fisher.terms(torch.tensor(e))[0]) * fisher.units[0] == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1.0, 5.0, 1e-6])
def test_low_rank_ignores_a_repeated_probe(factor: float, dtype: torch.dtype) -> None:
    once, twice = LowRankFisher(), LowRankFisher()
    for error, grad in probes(dtype)[:2]:
        once.update(error, grad)
        twice.update(error, grad)
    twice.update(probes(dtype)[0][0] * factor, probes(dtype)[0][1] * factor)
    e = randn(B, A, seed=1, dtype=dtype)
    values = [float(f.terms(e)[0]) * f.units[0] for f in (once, twice)]
    assert values[1] == pytest.approx(values[0], rel=1e-6)  # float32 rounding of the scaled rows


def test_low_rank_skips_a_probe_without_error() -> None:
    fisher = LowRankFisher()
    for error, grad in probes()[:2]:
        fisher.update(error, grad)
    e = randn(B, A, seed=1)
    before = float(fisher.terms(e)[0]) * fisher.units[0]
    fisher.update(torch.zeros(N, A, dtype=torch.float64), probes()[2][1])
    assert float(fisher.terms(e)[0]) * fisher.units[0] == pytest.approx(before, rel=1e-12)


def test_inverse_root_is_the_inverse_down_to_the_cutoff_and_bounded_below_it() -> None:
    base, away = randn(2, A, seed=5).abs()
    away = away - base * (away @ base) / (base @ base)
    away = away * base.norm() / away.norm()
    for epsilon in (0.1, 1e-2, 4e-3):
        rows = torch.stack((base, base + epsilon * away, 1e-6 * randn(A, seed=6).abs()))
        root = inverse_root(rows)
        wanted = np.linalg.inv((rows @ rows.T).numpy())
        np.testing.assert_allclose((root @ root.T).numpy(), wanted, rtol=1e-6)  # condition up to 1e17 before scaling
    root = inverse_root(torch.stack((base, base + 1e-4 * away)))
    assert root.shape == (2, 1)
    assert float((root @ root.T).abs().max()) <= 1.001 / float(base @ base)


@pytest.mark.parametrize(("p1", "p2"), [(0.25, 3.0), (0.0, 1.0), (1.0, 0.0)])
def test_dplr_weights_its_terms(p1: float, p2: float) -> None:
    fisher = make_fisher("dplr", p1=p1, p2=p2)
    for error, grad in probes():
        fisher.update(error, grad)
    first, second = randn(B, A, seed=1), randn(B, A, seed=2)
    one, two = (dense_values("dplr", probes(), e, [0] * B) for e in (first, second))
    assert float(fisher.loss(first)) == pytest.approx(p1 + p2)
    assert float(fisher.loss(second)) == pytest.approx(p1 * two[0] / one[0] + p2 * two[1] / one[1], rel=1e-10)


def test_full_width_float32_agrees_with_float64() -> None:
    a, steps = 37_824, []
    base = randn(a, seed=0).abs()
    for k in range(5):  # probes as they come: nearly parallel
        noise = randn(2, 8, a, seed=30 + k)
        steps.append((base * noise[0] * 1e-2, base * noise[1] * 1e-8))
    values = []
    for dtype in (torch.float32, torch.float64):
        fisher = make_fisher("dplr")
        for error, grad in steps:
            fisher.update(error.to(dtype), grad.to(dtype))
        fisher.loss(randn(8, a, seed=1, scale=1e-2, dtype=dtype))
        values.append(float(fisher.loss(randn(8, a, seed=2, scale=5e-3, dtype=dtype))))
    assert values[0] == pytest.approx(values[1], rel=1e-5)  # float32 sums over 37,824 elements


def test_registry() -> None:
    assert list(FISHER) == ["mse", "brecq", "diagonal", "rank-one", "low-rank", "dplr"]
    assert [FISHER[name].needs_probes for name in FISHER] == [0, 1, None, 1, None, None]
    assert all(type(make_fisher(name)) is cls for name, cls in FISHER.items())


def test_errors_say_what_to_do() -> None:
    with pytest.raises(UsageError, match="'fisher_lr' is unknown: wanted one of mse, brecq"):
        make_fisher("fisher_lr")
    for p1, p2 in [(-1.0, 1.0), (0.0, 0.0), (math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0), (1.0, math.inf)]:
        with pytest.raises(UsageError, match="finite numbers >= 0"):
            make_fisher("dplr", p1=p1, p2=p2)
    for name in FISHER:
        if name != "mse":
            with pytest.raises(RuntimeError, match=r"call update\(error, grad\)"):
                make_fisher(name).loss(torch.ones(B, A))


@pytest.mark.parametrize("name", FISHER)
def test_bad_probes_are_refused(name: str) -> None:
    good = torch.ones(N, A)
    for bad in (math.nan, math.inf):
        holed = good.clone()
        holed[2, 3] = bad
        with pytest.raises(FimaqError, match="gradient has NaN or infinite"):
            make_fisher(name).update(good, holed)
        with pytest.raises(FimaqError, match="error has NaN or infinite"):
            make_fisher(name).update(holed, good)
    with pytest.raises(ValueError, match="at least one of each"):
        make_fisher(name).update(good[:0], good[:0])
    fisher = make_fisher(name)
    fisher.update(good, good)
    with pytest.raises(ValueError, match="Use one FisherApproximation per block"):
        fisher.update(good[:, :5], good[:, :5])


@pytest.fixture
def unchecked_shapes():
    """What a user runs: without the shape checks that the test session adds to signatures."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked_shapes")
def test_shapes_are_refused_without_type_checking_too() -> None:
    good = torch.ones(N, A)
    for name in FISHER:
        with pytest.raises(ValueError, match=r"error \(7, 12\) and gradient \(7, 11\).*Flatten"):
            make_fisher(name).update(good, good[:, 1:])
        with pytest.raises(ValueError, match=r"7 images but index \(3,\)"):
            make_fisher(name).update(good, good, torch.arange(3))
    fisher = make_fisher("brecq")
    fisher.update(good, good)
    with pytest.raises(ValueError, match=r"batch has 4 images but index \(1,\)"):
        fisher.loss(torch.ones(B, A), torch.tensor([0]))


def test_brecq_refuses_ambiguous_image_numbers() -> None:
    good = torch.ones(2, A)
    for numbers in ([1, 1], [-1, 0]):
        with pytest.raises(ValueError, match="each image once"):
            make_fisher("brecq").update(good, good, torch.tensor(numbers))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_kl_divergence_is_the_definition(temperature: float, scale: float) -> None:
    p, q = randn(5, 9, seed=1, scale=scale).numpy(), randn(5, 9, seed=2, scale=scale).numpy()
    wanted = []
    for x, y in zip(p / temperature, q / temperature, strict=True):
        log_x, log_y = (v - v.max() - math.log(sum(math.exp(u - v.max()) for u in v)) for v in (x, y))
        wanted.append(sum(math.exp(u) * (u - w) for u, w in zip(log_x, log_y, strict=True)))
    got = kl_divergence(torch.tensor(p), torch.tensor(q), temperature)
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-9, atol=1e-15)  # cancellation at the smallest scale


def test_kl_divergence_gradient_is_q_minus_p_over_t_even_when_tiny() -> None:
    p = randn(3, 1000, seed=1, dtype=torch.float32)
    q = (p + randn(3, 1000, seed=2, scale=1e-5, dtype=torch.float32)).requires_grad_()
    (grad,) = torch.autograd.grad(kl_divergence(p, q, 20.0).sum(), q)
    soft = [np.exp(x.detach().double().numpy() / 20.0) for x in (p, q)]
    soft = [x / x.sum(1, keepdims=True) for x in soft]
    wanted = (soft[1] - soft[0]) / 20.0
    assert np.abs(grad.numpy() - wanted).max() < 1e-6 * np.abs(wanted).max()
    assert kl_divergence(p, p, 20.0).dtype == torch.float32
    assert not kl_divergence(p, p, 20.0).any()
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="finite number above 0"):
            kl_divergence(p, p, bad)
