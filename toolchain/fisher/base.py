"""What every Fisher approximation is: probes in, a normalised loss on the block's output error out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError
from .rows import widen


class FisherApproximation(ABC):
    """An approximation of F in ``L_KL ~ 1/2 dz^T F dz`` (Theorem 3.2, Eq. 39), learned from probes.

    A concrete class implements ``_learn`` (one probe), ``terms`` (its quadratic forms) and ``units``;
    ``update`` and ``loss`` are the same for all and are not overridden.

    Letters: n images of a probe, b images of a batch, a flattened block output, k probes so far.
    """

    needs_probes: ClassVar[int | None]
    """Probes wanted by the reconstructor: a number, or None for the recipe's rank k."""

    def __init__(self, coefficients: tuple[float, ...] = (1.0,)) -> None:
        """Keep one coefficient per term; the loss starts at their sum after every probe."""
        self._coefficients = coefficients
        self._first: list[float | None] = [None] * len(coefficients)
        self._width: int | None = None
        self.fallback: str | None = None
        """Why the last ``update`` had to use something else than the class's formula, for the log."""

    @final
    def update(
        self,
        error: Float[Tensor, "n a"],
        grad: Float[Tensor, "n a"],
        index: Int[Tensor, "n"] | None = None,
    ) -> None:
        """Take one probe and restart the normalisation (section 3 of the method).

        Args:
            error: ``e_n = z_q - z`` per image.
            grad: ``g_n = dKL/dz_q`` per image; any common scale factor cancels.
            index: numbers of the images, the ones ``loss`` will be given; None means ``0 .. n-1``.

        Raises:
            ValueError: shapes that do not match each other or the earlier probes, or no image.
            InputError: NaN or infinity in the probe.
        """
        if error.shape != grad.shape or error.ndim != 2 or 0 in error.shape:
            raise ValueError(
                f"probe has error {tuple(error.shape)} and gradient {tuple(grad.shape)}: "
                "wanted the same [images, elements] for both, at least one of each. Flatten the block output."
            )
        if self._width not in (None, error.shape[1]):
            raise ValueError(
                f"probe has {error.shape[1]} elements an image, earlier ones had {self._width}. "
                "Use one FisherApproximation per block."
            )
        if index is not None and index.shape != error.shape[:1]:
            raise ValueError(
                f"probe has {error.shape[0]} images but index {tuple(index.shape)}: wanted one number each."
            )
        for name, values in (("error", error), ("gradient", grad)):
            if not all(math.isfinite(float(end)) for end in torch.aminmax(values.detach())):
                raise InputError(
                    f"the Fisher probe's {name} has NaN or infinite values: wanted finite ones. "
                    "Lower the recipe's learning rates, or check the float model's logits on the calibration images."
                )
        with torch.no_grad():
            self.fallback = self._learn(error, grad, index)
        self._width = error.shape[1]
        self._first = [None] * len(self._coefficients)

    @final
    def loss(self, error: Float[Tensor, "b a"], index: Int[Tensor, "b"] | None = None) -> Float[Tensor, ""]:
        """Sum over terms of ``coefficient * term / term_0``; >= 0, zero (gradient too) at zero error.

        ``term_0`` is the detached value at the first evaluation after the last ``update``, as published.
        Differently from the authors' code a ``term_0`` that is zero or not finite is not kept (it would
        turn all later losses into NaN): the next usable evaluation sets it. Reading it is the only
        host-device synchronisation, once per probe. Half precision and autocast are computed in float32.

        Raises:
            RuntimeError: no probe yet, for an approximation that needs one.
        """
        if self._width is None and self.needs_probes != 0:
            raise RuntimeError(f"{type(self).__name__}.loss needs a probe first: call update(error, grad).")
        with torch.autocast(error.device.type, enabled=False):
            terms = self.terms(widen(error), index)
        total = torch.zeros_like(terms[0])
        for i, (coefficient, term) in enumerate(zip(self._coefficients, terms, strict=True)):
            if self._first[i] is None:
                value = float(term.detach())
                if math.isfinite(value) and value >= torch.finfo(term.dtype).tiny:
                    self._first[i] = value
            total = total + coefficient * (term / (self._first[i] or 1.0))
        return total

    @property
    @final
    def settled(self) -> bool:
        """Whether every term has the value it is relative to; else the next ``loss`` may set it."""
        return None not in self._first

    @abstractmethod
    def terms(self, error: Float[Tensor, "b a"], index: Int[Tensor, "b"] | None = None) -> tuple[Tensor, ...]:
        """Quadratic forms before normalisation, scalars; times ``units`` they are the equations' values."""

    @property
    @abstractmethod
    def units(self) -> tuple[float, ...]:
        """What was taken out of each term to keep it in float32's range."""

    @abstractmethod
    def _learn(
        self,
        error: Float[Tensor, "n a"],
        grad: Float[Tensor, "n a"],
        index: Int[Tensor, "n"] | None,
    ) -> str | None:
        """Take in a checked probe; return why a fallback was needed, or None."""
