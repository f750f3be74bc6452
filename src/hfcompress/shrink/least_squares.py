"""Linear least squares in closed form, from sums over tokens: pure functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hfcompress.models.tensors import float64_device

_TOKENS = 1024  # put into float64 at a time


@dataclass(frozen=True)
class Products:
    """Sums over tokens that determine how a change of a weight changes its outputs' squared error.

    Attributes:
        inputs: The Gram matrix of the inputs, X'X, of shape (inputs, inputs), float64.
        missing: X'D, of shape (inputs, outputs), float64; D is what the outputs lack of their targets.
        squares: The sum of the squares of D, float64, of shape ().
    """

    inputs: Tensor
    missing: Tensor
    squares: Tensor

    @classmethod
    def zeros(cls, inputs: int, outputs: int, device: torch.device) -> Products:
        """Return the sums over no tokens."""
        gram = torch.zeros(inputs, inputs, dtype=torch.float64, device=float64_device(device))
        return cls(gram, gram.new_zeros(inputs, outputs), gram.new_zeros(()))

    def add(self, inputs: Tensor, missing: Tensor) -> None:
        """Add tokens, in place: their inputs, of shape (tokens, inputs), and what their outputs lack."""
        for start in range(0, len(inputs), _TOKENS):
            x, d = (part[start : start + _TOKENS].to(self.inputs.device).double() for part in (inputs, missing))
            self.inputs.addmm_(x.T, x)
            self.missing.addmm_(x.T, d)
            self.squares.add_(d.square().sum())

    def without(self, weight: Tensor) -> Products:
        """Return those where D lacks what a weight of shape (inputs, outputs) makes of the inputs: D - XW."""
        product = self.inputs @ weight
        squares = self.squares - (weight * (2 * self.missing - product)).sum()
        return Products(self.inputs, self.missing - product, squares)

    def gain(self, change: Tensor) -> float:
        """Return by how much ||D - XC||² falls below ||D||² for a change C of shape (inputs, outputs)."""
        return float(2 * (change * self.missing).sum() - (change * (self.inputs @ change)).sum())


def solve(products: Products, penalty: float) -> Tensor:
    """Return the change C that minimizes ||D - XC||² + λ||C||² (ridge regression).

    Args:
        products: Sums over the tokens.
        penalty: λ, as a multiple of the mean diagonal of X'X.

    Returns:
        Shape (inputs, outputs), float64; 0 where there is no such change in finite numbers.
    """
    gram = products.inputs.clone()
    gram.diagonal().add_(penalty * products.inputs.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(gram)
    del gram
    change = torch.cholesky_solve(products.missing, factor)
    return torch.zeros_like(change) if failed or not change.isfinite().all() else change


def best_change(fit: Products, held_out: Products, penalties: Sequence[float]) -> Tensor:
    """Return the solution of that penalty which leaves the smallest error on held-out tokens; 0 if none lowers it."""
    best, most = torch.zeros_like(fit.missing), 0.0
    for penalty in penalties:
        change = solve(fit, penalty)
        gain = held_out.gain(change)
        if gain > most:
            best, most = change, gain
    return best
