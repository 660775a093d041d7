"""Linear ops as sums of generalised diagonals, with baby steps, giant steps and hoisting: one level.

z[i] = sum_d diagonal_d[i] * x[i + d] (Halevi and Shoup, "Algorithms in HElib", CRYPTO 2014). The diagonals d = g + j
share baby steps j, which come from one hoisted decomposition of x, and giant steps g, which rotate sums of products:

    z = sum_g rotate(sum_j rotate(diagonal_{g+j}, -g) * rotate(x, j), g)

If an operand repeats with a period, diagonals are counted modulo the period. If the result is smaller than the operand,
they may be counted modulo a still smaller number, and log2 rotations (folds) sum the partial sums.

If the copies of the operand are shifted, one product serves a diagonal for each distinct copy: in copy c, x rotated by
j is diagonal j + c * step. An entry of diagonal d belongs to the product d - c * step and lies where copy c is read,
where c is the digit of d at `step`; products whose diagonals differ only in that digit are one. Folds then sum over the
copies, too.

Complex halving: slots are complex and operands are real, so x + i * rotate(x, s) takes no more room than x. The real
part of its product with a - i b is a * x + b * rotate(x, s): two diagonals for one product and one encoding. Adding the
conjugate of the sum of all products leaves twice the real part, once for the whole op.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from olac.backends.base import Array, Ciphertext, Evaluator, Slots
from olac.ir.layout import TensorLayout
from olac.ir.lowerings import Diagonals
from olac.ir.ops import LinearMap
from olac.kernels.base import Kernel, Value, add_slots, fold, sum_of_products
from olac.system.arrays import Index

Distinct = tuple[Index, Index, Index]
"""For each diagonal that is not zero: its target, its source and its number."""

MOST_REPEATS = 16

TOGETHER = 4
"""Products that one thread sums: so few that two threads end at nearly the same time, whatever the plan."""

ENTRIES = 1 << 20
"""Entries of a map that are processed together."""


@dataclass(frozen=True)
class PlacedEntries:
    """Entries of a linear map as slots: value * x[source][(position + diagonal)] is added to z[target][position].

    `width` is the period of positions. If copies are shifted, or imaginary parts are used, `diagonal` is the number of
    the product; with imaginary parts, values are those of a diagonal times 1/2 or -i/2.
    """

    target: Index
    source: Index
    diagonal: Index
    position: Index
    value: Slots
    width: int


def distinct_diagonals(linear: LinearMap, operand: TensorLayout, result: TensorLayout) -> Distinct:
    """Nonzero diagonals of plain copies modulo the operand's period, with results in one copy only.

    `counted_modulo` computes the diagonals for other moduli from them.
    """
    slots = operand.slots
    # All of these are powers of two, and divisions would take most of the time.
    bits, mask = slots.bit_length() - 1, slots - 1
    pairs = operand.ciphertexts * result.ciphertexts
    found = np.zeros((pairs, slots), dtype=bool)
    for first in range(0, len(linear.rows), ENTRIES):
        part = slice(first, first + ENTRIES)
        a, b = operand.addresses[linear.columns[part]], result.addresses[linear.rows[part]]
        pair = (b >> bits) * operand.ciphertexts + (a >> bits)
        found[pair, ((a & mask) - (b & mask)) & mask] = True
    pair, diagonal = np.divmod(np.flatnonzero(found), slots)
    target, source = np.divmod(pair, operand.ciphertexts)
    # Each image of a batch lies one stride further, in the operand and in the result.
    shifts = np.arange(operand.batch) * (operand.image_stride - result.image_stride)
    return _as_distinct(
        np.tile(target, len(shifts)),
        np.tile(source, len(shifts)),
        (diagonal[None, :] + shifts[:, None]).reshape(-1),
        operand.period,
    )


def counted_modulo(found: Distinct, result: TensorLayout, modulus: int) -> Distinct:
    """Distinct diagonals modulo a divisor of the operand's period, computed from those modulo the period.

    If the modulus is larger than the result's period, the result is repeated to fill it.
    """
    target, source, diagonal = found
    repeats = max(1, modulus // result.period)
    shifts = np.arange(repeats) * result.period
    return _as_distinct(
        np.tile(target, repeats),
        np.tile(source, repeats),
        (diagonal[None, :] - shifts[:, None]).reshape(-1),
        modulus,
    )


def _as_distinct(target: Index, source: Index, diagonal: Index, modulus: int) -> Distinct:
    """Distinct diagonals without duplicates, in the order of targets, sources and diagonals."""
    sources = int(source.max(initial=0)) + 1
    keys = np.unique((target * sources + source) * modulus + (diagonal & (modulus - 1)))
    pair, diagonal = np.divmod(keys, modulus)
    target, source = np.divmod(pair, sources)
    return target, source, diagonal


def place(
    linear: LinearMap, operand: TensorLayout, result: TensorLayout, modulus: int, imaginary: int = 0
) -> PlacedEntries:
    """Entries of `linear` between two layouts, with diagonals counted modulo `modulus` (see `Diagonals`)."""
    if imaginary and (imaginary & (imaginary - 1) or imaginary >= modulus):
        raise ValueError(f"imaginary {imaginary} is not a power of two below the modulus {modulus}")
    slots, period_in, period_out = operand.slots, operand.period, result.period
    images = np.arange(operand.batch)[:, None]
    a: Index = (operand.addresses[linear.columns][None, :] + images * operand.image_stride).reshape(-1)
    b: Index = (result.addresses[linear.rows][None, :] + images * result.image_stride).reshape(-1)
    value: Array = np.tile(linear.values, operand.batch)
    # All of these are powers of two, and divisions would take most of the time.
    bits, mask = slots.bit_length() - 1, slots - 1
    source, a = a >> bits, a & mask
    target, b = b >> bits, b & mask
    repeats = max(1, modulus // period_out)
    if repeats > 1:
        # The result has to repeat with its own period, which is shorter than that of the partial sums.
        shift = np.repeat(np.arange(repeats) * period_out, len(b))
        a, b, value = np.tile(a, repeats), np.tile(b, repeats) + shift, np.tile(value, repeats)
        source, target = np.tile(source, repeats), np.tile(target, repeats)
    diagonal = (a - b) & (modulus - 1)
    if operand.step:
        if result.ciphertexts > 1 or not period_out <= modulus <= period_in:
            raise ValueError(f"no diagonals modulo {modulus} from shifted copies ({operand}) to {result}")
        copies = operand.distinct_copies
        copy = shift_of(diagonal, modulus, operand)
        diagonal -= copy * operand.step
        read = copy * period_in + ((a - copy * operand.step) & (period_in - 1))
        width = copies * period_in
        position = (read - diagonal) & (width - 1)
    else:
        width = max(period_in, period_out)
        position = b if period_out >= period_in else (a - diagonal) & (period_in - 1)
    if not imaginary:
        return PlacedEntries(target, source, diagonal, position, value, width)
    riding = (diagonal & imaginary) != 0
    return PlacedEntries(target, source, diagonal & ~imaginary, position, np.where(riding, -0.5j, 0.5) * value, width)


def shift_of(diagonal: Index, modulus: int, operand: TensorLayout) -> Index:
    """The copy of an operand with shifted copies that serves each diagonal."""
    if modulus <= operand.step:
        return np.zeros_like(diagonal)
    return (diagonal // operand.step) % min(operand.distinct_copies, modulus // operand.step)


def can_shift(operand: TensorLayout, result: TensorLayout) -> bool:
    """Whether a linear op between these layouts can read shifted copies of its operand."""
    single = operand.batch == 1 and operand.ciphertexts == result.ciphertexts == 1
    return single and 2 * operand.period <= operand.slots and result.period <= operand.period


def fold_steps(operand: TensorLayout, modulus: int) -> list[int]:
    """Rotations that sum the partial sums of diagonals modulo `modulus`, after the products."""
    return halvings(operand.distinct_copies * operand.period, modulus)


def halvings(power: int, least: int) -> list[int]:
    """Halves, quarters, ... of a power of two, down to `least`."""
    return [part for k in range(1, power.bit_length()) if (part := power >> k) >= least]


def modulus_choices(operand: TensorLayout, result: TensorLayout) -> list[int]:
    """Moduli for diagonals: the operand's period, and if the result is smaller, the powers of two down to its period.

    Moduli far above the result's period only repeat the same entries and are left out.
    """
    choices = [operand.period]
    if operand.batch == 1 and result.ciphertexts == 1:
        while choices[-1] > max(1, result.period):
            choices.append(choices[-1] // 2)
    return [modulus for modulus in choices if modulus <= MOST_REPEATS * result.period] or choices[-1:]


def baby_choices(operand: TensorLayout, modulus: int) -> list[int]:
    """Sizes of the baby step worth trying: powers of two, planes, rows."""
    choices = {1 << k for k in range(modulus.bit_length())}
    choices |= {operand.plane, operand.padded[1], operand.gap * operand.padded[1]}
    return sorted(c for c in choices if 1 <= c <= modulus)


@dataclass(frozen=True)
class StepCounts:
    """The cost of a choice of modulus and baby step."""

    products: int
    babies: int
    giants: int
    folds: int
    sources: int
    steps: frozenset[int]
    """Rotation steps, without those of the folds."""


def count(target: Index, source: Index, d: Index, baby: int, folds: int) -> StepCounts:
    """Products, rotations and sources of distinct diagonals d, each with its target and source, for a baby step."""
    giant, j = np.divmod(d, baby)
    babies = len(np.unique((source * baby + j)[j != 0]))
    giants = len(np.unique((target * (giant.max(initial=0) + 1) + giant)[giant != 0]))
    steps = frozenset({*np.unique(j).tolist(), *(np.unique(giant) * baby).tolist()} - {0})
    return StepCounts(len(d), babies, giants, folds, len(np.unique(source)), steps)


@dataclass(frozen=True)
class _Product:
    """One diagonal: its baby step and its entries, already rotated back by the giant step."""

    source: int
    baby: int
    positions: npt.NDArray[np.unsignedinteger[Any]]
    values: Slots


class DiagonalKernel(Kernel):
    """A linear map between two layouts by diagonals."""

    depth = 1

    def __init__(self, linear: LinearMap, operand: TensorLayout, result: TensorLayout, lowering: Diagonals) -> None:
        self._operand = operand
        self._imaginary = lowering.imaginary
        entries = place(linear, operand, result, lowering.modulus, lowering.imaginary)
        self._width = entries.width
        self._folds = fold_steps(operand, lowering.modulus)
        self._plan = _group(entries, lowering.baby, result.ciphertexts)
        products = (product for page in self._plan for giants in page.values() for product in giants)
        self._table_bytes = sum(product.positions.nbytes + product.values.nbytes for product in products)
        self._bias = result.expand(linear.bias.reshape(result.shape)) if np.any(linear.bias) else None

    def weightless(self) -> DiagonalKernel:
        """The same kernel without weights, for runs on no data."""
        made = copy.copy(self)
        nothing = np.zeros(0, np.uint8)
        made._plan = [
            {
                giant: [replace(product, positions=nothing, values=np.zeros(0)) for product in products]
                for giant, products in page.items()
            }
            for page in self._plan
        ]
        return made

    @property
    def table_bytes(self) -> int:
        return self._table_bytes

    @property
    def held(self) -> int:
        """Rotations of the operand, and sums to rotate."""
        babies = {(p.source, p.baby) for page in self._plan for giants in page.values() for p in giants}
        return len(babies) + max(len(page) for page in self._plan)

    def run(self, evaluator: Evaluator[Any, Any], operands: Sequence[Value]) -> Value:
        (x,) = operands
        state = x[0].state
        scale_out = evaluator.parameters.scale(state.level - 1) if state.level else 0.0
        # The plaintext's scale makes the result's scale exactly the canonical one after the rescale.
        scale = scale_out * evaluator.parameters.primes[state.level] / state.scale
        steps: dict[int, set[int]] = {}
        for giants in self._plan:
            for products in giants.values():
                for product in products:
                    steps.setdefault(product.source, set()).add(product.baby)
        babies = {s: evaluator.rotate_hoisted(self._source(evaluator, x[s]), sorted(steps[s])) for s in steps}
        return tuple(self._one(evaluator, page, babies, x[0], scale) for page in range(len(self._plan)))

    def _source(self, evaluator: Evaluator[Any, Any], x: Ciphertext[Any]) -> Ciphertext[Any]:
        if not self._imaginary:
            return x
        return evaluator.add(x, evaluator.multiply_i(evaluator.rotate(x, self._imaginary)))

    def _one(
        self,
        evaluator: Evaluator[Any, Any],
        page: int,
        babies: dict[int, Any],
        like: Ciphertext[Any],
        scale: float,
    ) -> Ciphertext[Any]:
        level = like.state.level

        def partial(products: Sequence[_Product]) -> Ciphertext[Any]:
            terms = (
                (
                    babies[product.source][product.baby % self._operand.slots],
                    evaluator.encode(self._slots(product), level, scale),
                )
                for product in products
            )
            return sum_of_products(evaluator, terms)

        chunks = [
            (giant, products[first : first + TOGETHER])
            for giant, products in self._plan[page].items()
            for first in range(0, len(products), TOGETHER)
        ]
        sums: dict[int, Ciphertext[Any]] = {}
        for (giant, _), part in zip(chunks, evaluator.each(lambda chunk: partial(chunk[1]), chunks), strict=True):
            sums[giant] = evaluator.add(sums[giant], part) if giant in sums else part
        terms = [(inner, giant) for giant, inner in sums.items()]
        if not terms:  # a page of zeros
            zero = evaluator.encode(lambda: np.zeros(evaluator.slots), level, scale)
            terms = [(evaluator.multiply_plain(like, zero), 0)]
        # Folding at noise degree 2: the noise of these key switches vanishes in the rescale.
        total = fold(evaluator, evaluator.rotate_sum(terms), self._folds)
        if self._imaginary:
            total = evaluator.add_conjugate(total)
        result = evaluator.rescale(total)
        return result if self._bias is None else add_slots(evaluator, result, self._bias[page])

    def _slots(self, product: _Product) -> Callable[[], Slots]:
        def make() -> Slots:
            diagonal = np.zeros(self._width, dtype=product.values.dtype)
            diagonal[product.positions] = product.values
            return np.tile(diagonal, self._operand.slots // self._width)

        return make


def _group(entries: PlacedEntries, baby: int, pages: int) -> list[dict[int, list[_Product]]]:
    """For each ciphertext of the result: products by giant step."""
    giant, j = np.divmod(entries.diagonal, baby)
    position = (entries.position + giant * baby) % entries.width
    # One number for target, giant step, source, baby step and position, in this order of significance.
    sources, giants = int(entries.source.max(initial=0)) + 1, int(giant.max(initial=0)) + 1
    keys = (((entries.target * giants + giant) * sources + entries.source) * baby + j) * entries.width + position
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], entries.value[order]
    # Entries of the same slot of the same diagonal are added.
    fresh = np.ones(len(values), dtype=bool)
    fresh[1:] = keys[1:] != keys[:-1]
    values = np.add.reduceat(values, np.flatnonzero(fresh)) if len(values) else values
    products, positions = np.divmod(keys[fresh], entries.width)
    # A program has millions of these: the smallest type that holds a slot's number.
    positions = positions.astype(np.min_scalar_type(entries.width - 1))
    starts = np.ones(len(values), dtype=bool)
    starts[1:] = products[1:] != products[:-1]
    bounds = [*np.flatnonzero(starts).tolist(), len(values)]
    plan: list[dict[int, list[_Product]]] = [{} for _ in range(pages)]
    for start, end in itertools.pairwise(bounds):
        rest, step = divmod(int(products[start]), baby)
        rest, source = divmod(rest, sources)
        target, block = divmod(rest, giants)
        product = _Product(source, step, positions[start:end], values[start:end])
        plan[target].setdefault(block * baby, []).append(product)
    return plan
