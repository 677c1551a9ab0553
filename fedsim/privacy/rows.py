"""A parameter's gradient for each row of a batch: kept whole, or as the factors whose product it is.

Clipping asks two things of it: each row's squared norm, and the sum of rows under factors. For the weight of a dense
layer neither needs the gradients themselves (Goodfellow, "Efficient Per-Example Gradient Computations", 2015): row i's
is the sum over places t of b_t a_t^T, with a_t [I] what the layer saw there and b_t [O] the loss' gradient at its
output. Its squared norm is the Gram form, sum over t and s of <a_t, a_s> <b_t, b_s> (Li et al., "Large Language Models
Can Be Strong Differentially Private Learners", ICLR 2022, section 4), which for a single place is |a|^2 |b|^2; for
several, sum |a_t|^2 |b_t|^2 would leave out how places reinforce and cancel each other.

A norm is never below that of what the row adds to the sum: of gradients that are kept it is measured in float64, of
factors it is rounded up by a bound on the rounding of their product.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

_ROUNDING = 2.0**-53  # of one operation in float64
_GRAM_COST = 20  # time that a value of a row's gradient takes, over a multiplication in a Gram form; measured


class RowGradients(Protocol):
    """The gradient of one parameter of d values, for each of B rows."""

    def __len__(self) -> int:
        """B."""
        ...

    def norms(self) -> Tensor:
        """[B] norms in float64, not below that of what `weighted` gives for a row, by more than its last rounding."""
        ...

    def weighted(self, factors: Tensor, out: Tensor) -> None:
        """Write to `out` [d] the sum of rows times `factors` [B], which are of the parameter's type."""
        ...

    def each(self) -> Tensor:
        """[B, d] the gradients themselves."""
        ...

    def means(self, owners: Tensor) -> "RowGradients":
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

    def norms(self) -> Tensor:
        """See `RowGradients`."""
        return self._norms

    @cached_property
    def _norms(self) -> Tensor:
        return _norms(self.sample)

    def weighted(self, factors: Tensor, out: Tensor) -> None:
        """See `RowGradients`."""
        torch.mv(self.sample.t(), factors, out=out)

    def each(self) -> Tensor:
        """See `RowGradients`."""
        return self.sample

    def means(self, owners: Tensor) -> "Whole":
        """See `RowGradients`."""
        counts = owners.bincount()
        sums = self.sample.new_zeros(len(counts), self.sample.shape[1]).index_add_(0, owners, self.sample)
        return Whole(sums / counts[:, None])

    def some(self, rows: Tensor) -> "Whole":
        """See `RowGradients`."""
        return Whole(self.sample[rows])


@dataclass(frozen=True)
class Product:
    """The weight [O, I] of a dense layer at a single place: `inputs` [B, I] and `outputs` [B, O], as for its bias."""

    inputs: Tensor
    outputs: Whole

    def __len__(self) -> int:
        return len(self.inputs)

    def norms(self) -> Tensor:
        """See `RowGradients`; `weighted` rounds twice."""
        return _norms(self.inputs).mul_(self.outputs.norms()).mul_(1 + 3 * _rounding(self.inputs))

    def weighted(self, factors: Tensor, out: Tensor) -> None:
        """See `RowGradients`."""
        scaled = self.outputs.sample * factors[:, None]
        torch.mm(scaled.t(), self.inputs, out=out.view(scaled.shape[1], -1))

    def each(self) -> Tensor:
        """See `RowGradients`."""
        return (self.outputs.sample[:, :, None] * self.inputs[:, None]).flatten(1)

    def means(self, owners: Tensor) -> Whole:
        """See `RowGradients`."""
        return _means(owners, self.some, self.inputs, self.outputs.sample.shape[1] * self.inputs.shape[1])

    def some(self, rows: Tensor) -> "Product":
        """See `RowGradients`."""
        return Product(self.inputs[rows], self.outputs.some(rows))


@dataclass(frozen=True)
class Products:
    """The weight [O, I] of a dense layer: `inputs` [B, T, I] and `outputs` [B, T, O], its output's gradient."""

    inputs: Tensor
    outputs: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def norms(self) -> Tensor:
        """See `RowGradients`.

        With M = sum over t of |a_t| |b_t|, at least the norm |g|, and u the rounding of one operation, `weighted` is
        off for a row by at most (T + 1) u M: one rounding of b_t under the factor, T of products and sums.
        """
        square, most = _gram(self.inputs, self.outputs)
        return square.sqrt() + (self.inputs.shape[1] + 2) * _rounding(self.outputs) * most

    def weighted(self, factors: Tensor, out: Tensor) -> None:
        """See `RowGradients`."""
        scaled = self.outputs * factors[:, None, None]
        shape = self.outputs.shape[2], self.inputs.shape[2]
        torch.mm(scaled.flatten(0, 1).T, self.inputs.flatten(0, 1), out=out.view(shape))

    def each(self) -> Tensor:
        """See `RowGradients`."""
        return torch.bmm(self.outputs.mT, self.inputs).flatten(1)

    def means(self, owners: Tensor) -> Whole:
        """See `RowGradients`."""
        return _means(owners, self.some, self.outputs, self.outputs.shape[2] * self.inputs.shape[2])

    def some(self, rows: Tensor) -> "Products":
        """See `RowGradients`."""
        return Products(self.inputs[rows], self.outputs[rows])


@dataclass(frozen=True)
class Lookups:
    """The weight [V, d] of an embedding: for each of N pairs of a row and a token in it, the gradient that they add.

    Attributes:
        rows, tokens: [N] of each pair; no pair comes twice.
        sums: [N, d] over the places where the row has the token.
        count: B.
        vocabulary: V.
    """

    rows: Tensor
    tokens: Tensor
    sums: Tensor
    count: int
    vocabulary: int

    @classmethod
    def at(cls, tokens: Tensor, outputs: Tensor, vocabulary: int) -> "Lookups":
        """Of `tokens` [B, T] and `outputs` [B, T, d], the gradient at what was looked up."""
        count, places = tokens.shape
        rows = torch.arange(count, device=tokens.device).repeat_interleave(places)
        return _paired(rows, tokens.flatten().long(), outputs.flatten(0, 1), count, vocabulary)

    def __len__(self) -> int:
        return self.count

    def norms(self) -> Tensor:
        """See `RowGradients`."""
        squares = _norms(self.sums).square_()
        return squares.new_zeros(self.count).index_add_(0, self.rows, squares).sqrt_()

    def weighted(self, factors: Tensor, out: Tensor) -> None:
        """See `RowGradients`."""
        scaled = self.sums * factors[self.rows, None]
        out.zero_().view(self.vocabulary, -1).index_add_(0, self.tokens, scaled)

    def each(self) -> Tensor:
        """See `RowGradients`."""
        whole = self.sums.new_zeros(self.count, self.vocabulary, self.sums.shape[1])
        whole[self.rows, self.tokens] = self.sums
        return whole.flatten(1)

    def means(self, owners: Tensor) -> "Lookups":
        """See `RowGradients`."""
        counts, units = owners.bincount(), owners[self.rows]
        return _paired(units, self.tokens, self.sums / counts[units, None], len(counts), self.vocabulary)

    def some(self, rows: Tensor) -> "Lookups":
        """See `RowGradients`."""
        kept, numbers = rows[self.rows], rows.cumsum(0) - 1
        of_kept = numbers[self.rows[kept]]
        return Lookups(of_kept, self.tokens[kept], self.sums[kept], int(rows.sum()), self.vocabulary)


def dense(inputs: Tensor, outputs: Tensor) -> RowGradients:
    """A dense layer's weight in the form that takes the least time.

    Args:
        inputs: [B, T, I] what the layer saw.
        outputs: [B, T, O] the gradient at its output.
    """
    if inputs.shape[1] == 1:
        return Product(inputs[:, 0], Whole(outputs[:, 0]))
    products = Products(inputs, outputs)
    return products if as_factors(inputs.shape[1], inputs.shape[2], outputs.shape[2]) else Whole(products.each())


def as_factors(places: int, seen: int, given: int) -> bool:
    """Whether factors of T places, I and O values take less time than the gradients themselves."""
    return places == 1 or places**2 * (given + seen) < _GRAM_COST * given * seen


def _rounding(like: Tensor) -> float:
    """Of one operation."""
    return torch.finfo(like.dtype).eps / 2


def _norms(vectors: Tensor) -> Tensor:
    """[n] norms of vectors [n, d] in float64."""
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64)
    return norms


def _paired(rows: Tensor, tokens: Tensor, values: Tensor, count: int, vocabulary: int) -> Lookups:
    """Values [M, d] of places, added up for each pair of a row and a token."""
    pairs, place = torch.unique(rows * vocabulary + tokens, return_inverse=True)
    sums = values.new_zeros(len(pairs), values.shape[1]).index_add_(0, place, values)
    return Lookups(pairs // vocabulary, pairs % vocabulary, sums, count, vocabulary)


def _means(owners: Tensor, some: Callable[[Tensor], RowGradients], like: Tensor, size: int) -> Whole:
    """[U, size] each unit's mean, made from the factors of its own rows alone."""
    counts = owners.bincount().tolist()
    means = like.new_empty(len(counts), size)
    for unit, rows in enumerate(counts):
        some(owners == unit).weighted(like.new_full((rows,), 1 / rows), means[unit])
    return Whole(means)


def _gram(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """[B] sum over t, s of <a_t, a_s> <b_t, b_s>, rounded up, and M.

    With n the operations of the longest chain, rounding moves the sum by at most n u M^2, and M itself by less than
    half of it.
    """
    seen, given = inputs.double(), outputs.double()
    products = (seen @ seen.mT) * (given @ given.mT)
    most = products.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt().sum(1)
    operations = seen.shape[2] + given.shape[2] + seen.shape[1] ** 2 + 2
    return products.sum((1, 2)).clamp(min=0) + 2 * operations * _ROUNDING * most.square(), most
