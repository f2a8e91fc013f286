"""The theorems behind the losses, on small softmax models in float64.

The oracle is the definition ``F = E_{y~p}[grad_z log p(y) grad_z log p(y)^T]`` by autograd of ``log_softmax``;
nothing here uses the package's forms on both sides.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

from fimaq.toolchain.fisher import kl_divergence
from fimaq.toolchain.fisher.low_rank import LowRankFisher
from fimaq.toolchain.fisher.rank_one import RankOneFisher

Z, HIDDEN, CLASSES = 5, 8, 4
Logits = Callable[[Tensor], Tensor]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(classes: int = CLASSES) -> Logits:
    weight, bias = randn(classes, Z, seed=1), randn(classes, seed=2)
    return lambda z: weight @ z + bias


def mlp() -> Logits:
    first, second, bias = randn(HIDDEN, Z, seed=3), randn(CLASSES, HIDDEN, seed=4), randn(HIDDEN, seed=5)
    return lambda z: second @ torch.tanh(first @ z + bias)


MODELS = {"linear": linear(), "mlp": mlp()}


def divergence(logits: Logits, z: Tensor, temperature: float) -> Callable[[Tensor], Tensor]:
    """L_KL as a function of dz."""
    p = logits(z)
    return lambda dz: kl_divergence(p[None], logits(z + dz)[None], temperature)[0]


def expected_fisher(logits: Logits, z: Tensor, temperature: float) -> Tensor:
    """The definition of F at z, for p = softmax(logits / T)."""

    def log_p(at: Tensor) -> Tensor:
        return torch.log_softmax(logits(at) / temperature, 0)

    scores = jacobian(log_p, z)  # [classes, z]
    return torch.einsum("y,yi,yj->ij", log_p(z).exp(), scores, scores)


@pytest.fixture(params=MODELS)
def logits(request: pytest.FixtureRequest) -> Logits:
    return MODELS[request.param]


@pytest.fixture(params=[1.0, 20.0])
def temperature(request: pytest.FixtureRequest) -> float:
    return float(request.param)


def test_first_order_term_vanishes(logits: Logits, temperature: float) -> None:
    """S1 = 0 (Eq. 34)."""
    slope = jacobian(divergence(logits, randn(Z, seed=6), temperature), torch.zeros(Z, dtype=torch.float64))
    assert slope.abs().max() < 1e-14


def test_hessian_of_the_divergence_is_the_expected_fisher(logits: Logits, temperature: float) -> None:
    """S2 = -F (Eq. 38), Theorem 3.1."""
    z = randn(Z, seed=6)
    got = hessian(divergence(logits, z, temperature), torch.zeros(Z, dtype=torch.float64))
    torch.testing.assert_close(got, expected_fisher(logits, z, temperature), rtol=1e-9, atol=1e-14)


def test_fisher_carries_one_over_t_squared() -> None:
    """J^T (diag p - p p^T) J / T^2 with p at temperature T, J the logits' Jacobian."""
    z, temperature = randn(Z, seed=6), 20.0
    jac = jacobian(MODELS["mlp"], z)
    p = torch.softmax(MODELS["mlp"](z) / temperature, 0)
    wanted = jac.T @ (torch.diag(p) - torch.outer(p, p)) @ jac / 400.0
    got = hessian(divergence(MODELS["mlp"], z, temperature), torch.zeros(Z, dtype=torch.float64))
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-14)


def test_divergence_is_the_quadratic_form_to_third_order(logits: Logits, temperature: float) -> None:
    """Theorem 3.2, Eq. 39: halving dz divides what is left by 8."""
    z, direction = randn(Z, seed=6), randn(Z, seed=7)
    fisher, loss = expected_fisher(logits, z, temperature), divergence(logits, z, temperature)
    left = []
    for size in (4e-3, 2e-3, 1e-3):
        dz = size * direction
        quadratic = 0.5 * dz @ fisher @ dz
        left.append(float(loss(dz) - quadratic))
        assert abs(left[-1]) < 0.05 * float(quadratic)
    assert left[0] / left[1] == pytest.approx(8.0, rel=0.05)
    assert left[1] / left[2] == pytest.approx(8.0, rel=0.05)


def test_gradient_is_linear_in_f_to_second_order(logits: Logits, temperature: float) -> None:
    """g = F dz + O(dz^2): F is linear in the gradient. Halving dz divides what is left by 4."""
    z, direction = randn(Z, seed=6), randn(Z, seed=7)
    fisher, loss = expected_fisher(logits, z, temperature), divergence(logits, z, temperature)
    left = []
    for size in (4e-3, 2e-3, 1e-3):
        dz = size * direction
        left.append((jacobian(loss, dz) - fisher @ dz).norm())
        assert left[-1] < 0.05 * (fisher @ dz).norm()
    assert float(left[0] / left[1]) == pytest.approx(4.0, rel=0.05)
    assert float(left[1] / left[2]) == pytest.approx(4.0, rel=0.05)


def test_rank_one_is_exact_where_f_has_rank_one(temperature: float) -> None:
    """Eq. 15, 40-45: two classes and linear logits give a rank-one F, and one probe finds it."""
    logits, z, dz = linear(classes=2), randn(Z, seed=6), randn(Z, seed=7)
    fisher = expected_fisher(logits, z, temperature)
    assert int(torch.linalg.matrix_rank(fisher)) == 1
    kl_grad = jacobian(divergence(logits, z, temperature), 1e-5 * dz)
    probes = [(dz, fisher @ dz, 1e-10), (1e-5 * dz, kl_grad, 1e-3)]  # g = F d exactly; the KL's own gradient
    for delta, grad, tolerance in probes:
        approximation = RankOneFisher(signed=True)
        approximation.update(delta[None], grad[None])
        assert approximation.fallback is None
        for seed in range(10, 15):
            e = randn(1, Z, seed=seed)
            got = float(approximation.terms(e)[0]) * approximation.units[0]
            assert got == pytest.approx(float(e[0] @ fisher @ e[0]), rel=tolerance)


def test_low_rank_with_probes_that_span_everything_is_the_gradients_norm() -> None:
    """With G = D F and k = a the projection is the identity: A M A^T = |F e|^2 (non-negative F, D, e)."""
    root = randn(Z, Z, seed=8).abs()
    fisher, deltas, e = root @ root.T, randn(Z, Z, seed=9).abs(), randn(1, Z, seed=10).abs()
    approximation = LowRankFisher()
    for delta in deltas:
        approximation.update(delta[None], (fisher @ delta)[None])
    got = float(approximation.terms(e)[0]) * approximation.units[0]
    assert got == pytest.approx(float((fisher @ e[0]).square().sum()), rel=1e-8)
