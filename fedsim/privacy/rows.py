"""A parameter's gradient for each row of a batch: kept whole, or as the factors whose product it is.

Clipping asks two things of it: each row's squared norm, and the sum of rows under factors. For the weight of a dense
layer neither needs the gradients themselves (Goodfellow, "Efficient Per-Example Gradient Computations", 2015): row i's
is the sum over places t of b_t a_t^T, with a_t [I] what the layer saw there and b_t [O] the loss' gradient at its
output. Its squared norm is the Gram form, sum over t and s of <a_t, a_s> <b_t, b_s> (Li et al., "Large Language Models
Can Be Strong Differentially Private Learners", ICLR 2022, section 4); sum |a_t|^2 |b_t|^2 would leave out how places
reinforce and cancel each other. An embedding's weight is such a layer's, with one-hot a_t.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_ROUNDING = 2.0**-53  # of one operation in float64


class RowGradients(Protocol):
    """The gradient of one parameter of d values, for each of B rows."""

    def __len__(self) -> int:
        """B."""
        ...

    def squares(self) -> Tensor:
        """[B] squared norms in float64, not below what `weighted` gives for a row, by more than its last rounding."""
        ...

    def weighted(self, factors: Tensor) -> Tensor:
        """[d] the sum of rows times `factors` [B], which are of the parameter's type."""
        ...

    def means(self, owners: Tensor) -> "Whole":
        """Each unit's mean over its rows, given every row's unit [B] from 0 to U - 1, each with a row at least."""
        ...

    def some(self, rows: Tensor) -> "RowGradients":
        """Those of the rows that a mask [B] names."""
        ...


@dataclass(frozen=True)
class Whole:
    """Gradients as they are: `sample` [B, d]."""

    sample: Tensor

    def __len__(self) -> int:
        return len(self.sample)

    def squares(self) -> Tensor:
        """See `RowGradients`."""
        norms: Tensor = torch.linalg.vector_norm(self.sample, dim=1, dtype=torch.float64)
        return norms.square()

    def weighted(self, factors: Tensor) -> Tensor:
        """See `RowGradients`."""
        return factors @ self.sample

    def means(self, owners: Tensor) -> "Whole":
        """See `RowGradients`."""
        counts = owners.bincount()
        sums = self.sample.new_zeros(len(counts), self.sample.shape[1]).index_add_(0, owners, self.sample)
        return Whole(sums / counts[:, None])

    def some(self, rows: Tensor) -> "Whole":
        """See `RowGradients`."""
        return Whole(self.sample[rows])


@dataclass(frozen=True)
class Products:
    """The weight [O, I] of a dense layer: `inputs` [B, T, I] and `outputs` [B, T, O], its output's gradient."""

    inputs: Tensor
    outputs: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def squares(self) -> Tensor:
        """See `RowGradients`."""
        inputs = self.inputs.double()
        return _gram(inputs @ inputs.mT, self.outputs.double(), inputs.shape[2])

    def weighted(self, factors: Tensor) -> Tensor:
        """See `RowGradients`."""
        scaled = self.outputs.double() * factors.double()[:, None, None]
        return (scaled.flatten(0, 1).T @ self.inputs.double().flatten(0, 1)).flatten().to(factors.dtype)

    def means(self, owners: Tensor) -> Whole:
        """See `RowGradients`."""
        return _means(owners, self.some, self.outputs.dtype)

    def some(self, rows: Tensor) -> "Products":
        """See `RowGradients`."""
        return Products(self.inputs[rows], self.outputs[rows])


@dataclass(frozen=True)
class Lookups:
    """The weight [V, d] of an embedding: `tokens` [B, T] and `outputs` [B, T, d], its output's gradient."""

    tokens: Tensor
    outputs: Tensor
    vocabulary: int

    def __len__(self) -> int:
        return len(self.tokens)

    def squares(self) -> Tensor:
        """See `RowGradients`."""
        same = (self.tokens[:, :, None] == self.tokens[:, None, :]).double()
        return _gram(same, self.outputs.double(), 1)

    def weighted(self, factors: Tensor) -> Tensor:
        """See `RowGradients`."""
        scaled = self.outputs.double() * factors.double()[:, None, None]
        total = scaled.new_zeros(self.vocabulary, scaled.shape[2])
        return total.index_add_(0, self.tokens.flatten(), scaled.flatten(0, 1)).flatten().to(factors.dtype)

    def means(self, owners: Tensor) -> Whole:
        """See `RowGradients`."""
        return _means(owners, self.some, self.outputs.dtype)

    def some(self, rows: Tensor) -> "Lookups":
        """See `RowGradients`."""
        return Lookups(self.tokens[rows], self.outputs[rows], self.vocabulary)


def _means(owners: Tensor, some: Callable[[Tensor], RowGradients], kind: torch.dtype) -> Whole:
    """Each unit's mean, made from the factors of its own rows alone."""
    counts = owners.bincount().tolist()
    parts = (some(owners == unit).weighted(torch.full((n,), 1 / n, dtype=kind)) for unit, n in enumerate(counts))
    return Whole(torch.stack(list(parts)))


def _gram(inner: Tensor, outputs: Tensor, width: int) -> Tensor:
    """[B] sum over t, s of inner_ts <b_t, b_s>, rounded up so that no clipped norm exceeds its bound.

    With M = sum over t of |a_t| |b_t|, at least the norm |g|, and n the operations of the longest chain, rounding moves
    the sum by at most n u M^2, and what `weighted` gives for the row by at most n u M: (|g| + n u M)^2 is below
    |g|^2 + 3 n u M^2. So 4 n u M^2 more than what was summed covers both.

    Args:
        inner: [B, T, T] <a_t, a_s>.
        outputs: [B, T, O] b_t.
        width: I, terms of each <a_t, a_s>.
    """
    products = inner * (outputs @ outputs.mT)
    lengths = products.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt().sum(1)
    operations = width + outputs.shape[2] + inner.shape[1] ** 2 + 2
    return products.sum((1, 2)).clamp(min=0) + 4 * operations * _ROUNDING * lengths.square()


def costs_less(places: int, values: int) -> bool:
    """Whether the two [T, T] matrices of a Gram form are smaller than a row's gradient of `values` values."""
    return 2 * places**2 < values
