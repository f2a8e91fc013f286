"""Fisher losses against the authors' published implementation (tests/data/reference.safetensors, keys ``loss.*``)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fimaq.toolchain.fisher import FisherApproximation, make_fisher
from fimaq.toolchain.fisher.low_rank import inverse_root

PREFIX = "loss."
REFERENCE: dict[str, Tensor] = {
    key.removeprefix(PREFIX): value
    for key, value in load_file(Path(__file__).parent / "data" / "reference.safetensors").items()
    if key.startswith(PREFIX)
}
INDEX = torch.arange(6)
RELATIVE = 1e-6  # both are float32; a handful of roundings of 6e-8

NAMES = {"mse": "mse", "diagonal": "fisher_diag", "dplr": "fisher_dplr", "brecq": "fisher_brecq"}


def error(key: str = "pred") -> Tensor:
    return (REFERENCE[key] - REFERENCE["target"]).flatten(1)


def probed(name: str) -> FisherApproximation:
    """Probe images whose mean absolute rows are the reference's D and G; brecq gets the per-image gradients."""
    fisher = make_fisher(name)
    if name == "brecq":
        fisher.update(error(), REFERENCE["grad_per_sample"].flatten(1))
    else:
        for delta, grad in zip(REFERENCE["delta_rows"], REFERENCE["grad_rows"], strict=True):
            spread = torch.tensor([[0.5], [-1.5]])  # two images, signs and sizes differ, mean of |.| is 1
            fisher.update(delta * spread, grad * spread.flip(0))
    return fisher


def test_inverse() -> None:
    root = inverse_root(REFERENCE["delta_rows"].double())
    # the reference inverted in float32 at condition 9
    torch.testing.assert_close((root @ root.T).float(), REFERENCE["inverse"], rtol=RELATIVE, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "key"), [("brecq", "brecq_raw"), ("diagonal", "diagonal_raw"), ("low-rank", "low_rank_raw")]
)
def test_value_before_normalisation(name: str, key: str) -> None:
    fisher = probed(name)
    got = float(fisher.terms(error(), INDEX)[0]) * fisher.units[0]
    assert got == pytest.approx(float(REFERENCE[key]), rel=RELATIVE)


@pytest.mark.parametrize("name", NAMES)
def test_normalised_loss(name: str) -> None:
    fisher = probed(name)
    for key, when in [("pred", "first"), ("pred2", "second")]:
        got = float(fisher.loss(error(key), INDEX))
        assert got == pytest.approx(float(REFERENCE[f"{NAMES[name]}.{when}"]), rel=RELATIVE)
