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
import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from olac.backends.base import Array, Ciphertext, Evaluator, Slots
from olac.errors import VerificationError
from olac.ir.layout import TensorLayout
from olac.ir.lowerings import Diagonals
from olac.ir.ops import ComputedMap, LinearMap, Tap
from olac.kernels.base import Kernel, Value, fold, sum_of_products
from olac.system.arrays import Index

Distinct = tuple[Index, Index, Index]
"""For each diagonal that is not zero: its target, its source and its number."""

MOST_REPEATS = 16

TOGETHER = 4
"""Products that one thread sums: so few that two threads end at nearly the same time, whatever the plan."""

ENTRIES = 1 << 20
"""Entries of a map that are processed together."""

FLAGS_FOR_EACH = 256
"""Numbers are sorted if there are fewer: a flag for each possible number takes less time otherwise."""

PATTERN_BYTES = 1 << 26
"""Bytes of a table of diagonals."""


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


def distinct_diagonals(
    entries: Iterable[tuple[Index, Index, Array]], operand: TensorLayout, result: TensorLayout
) -> Distinct:
    """Nonzero diagonals of plain copies modulo the operand's period, with results in one copy only.

    `counted_modulo` computes the diagonals for other moduli from them.

    Args:
        entries: rows, columns and values of a linear map, in parts.
        operand, result: where its elements lie.
    """
    slots = operand.slots
    # All of these are powers of two, and divisions would take most of the time.
    bits, mask = slots.bit_length() - 1, slots - 1
    found = np.zeros((operand.ciphertexts * result.ciphertexts, slots), dtype=bool)
    for rows, columns, _ in entries:
        for first in range(0, len(rows), ENTRIES):
            part = slice(first, first + ENTRIES)
            a, b = operand.addresses[columns[part]], result.addresses[rows[part]]
            pair = (b >> bits) * operand.ciphertexts + (a >> bits)
            found[pair, ((a & mask) - (b & mask)) & mask] = True
    return _distinct(np.flatnonzero(found), operand)


def _distinct(places: Index, operand: TensorLayout) -> Distinct:
    """Distinct diagonals from their places: (target * sources + source) * slots + diagonal."""
    pair, diagonal = np.divmod(places, operand.slots)
    target, source = np.divmod(pair, operand.ciphertexts)
    return _as_distinct(target, source, diagonal, operand.period)


def diagonals_of_taps(taps: Iterable[Tap], operand: TensorLayout, result: TensorLayout) -> Distinct:
    """As `distinct_diagonals`, for taps and layouts of images: it takes a step for each tap and pair of channels.

    An address is the sum of those of its channel, row and column. So the diagonal of a tap's entries is the same at all
    rows and columns, or grows evenly with them, as long as they do not go on in another ciphertext. If they do, the
    rows are looked at one by one, and the elements of rows that are cut as well.
    """
    slots, sources, targets = operand.slots, operand.ciphertexts, result.ciphertexts
    bits = slots.bit_length() - 1
    boxes: list[tuple[Index, Index, _Axes]] = []
    channels = operand.channel_addresses, result.channel_addresses
    for tap in taps:
        spans = (tap.rows, tap.columns)
        b = channels[1][tap.outputs] + sum(n.first * step for n, step in zip(spans, result.steps, strict=True))
        a = channels[0][tap.inputs] + sum(n.source * step for n, step in zip(spans, operand.steps, strict=True))
        axes = tuple(
            (n.count, down, n.step * up) for n, up, down in zip(spans, operand.steps, result.steps, strict=True)
        )
        boxes.append((b, a, axes))
    together = max(1, PATTERN_BYTES // (sources * slots))
    found: list[Index] = []
    for first in range(0, targets, together):
        last = min(first + together, targets)
        tables: dict[tuple[tuple[int, int], ...], npt.NDArray[np.bool_]] = {}
        for b, a, axes in boxes:
            near = (b >> bits < last) & (b + _reach(axes, 1) >> bits >= first)
            _mark(tables, b[near], a[near], axes, (first, last, sources, bits))
        whole = np.zeros(((last - first) * sources, slots), dtype=bool)
        for uneven, table in tables.items():
            for count, step in uneven:
                table = _spread(table, count, step)
            whole |= table
        found.append(np.flatnonzero(whole) + first * sources * slots)
    return _distinct(np.concatenate(found), operand)


_Axes: TypeAlias = tuple[tuple[int, int, int], ...]
"""For each axis: the number of elements, and the distance of neighbours in the result and in the operand."""


def _reach(axes: _Axes, which: int) -> int:
    """Slots from the first element to the last, in the result (1) or in the operand (2)."""
    return sum((axis[0] - 1) * axis[which] for axis in axes)


def _mark(
    tables: dict[tuple[tuple[int, int], ...], npt.NDArray[np.bool_]],
    b: Index,
    a: Index,
    axes: _Axes,
    within: tuple[int, int, int, int],
) -> None:
    """Mark the first diagonal of boxes of elements that begin at b in the result and at a in the operand.

    Args:
        tables: for each way to go on along the axes, (number, step of the diagonal), the diagonals that begin there.
        within: the first target and the one after the last, the number of sources, log2 of the slots.
    """
    first, last, sources, bits = within
    target, source = b >> bits, a >> bits
    whole = (target == b + _reach(axes, 1) >> bits) & (source == a + _reach(axes, 2) >> bits)
    taken = whole & (target >= first) & (target < last)
    uneven = tuple((count, up - down) for count, down, up in axes if count > 1 and up != down)
    if uneven not in tables:
        tables[uneven] = np.zeros(((last - first) * sources, 1 << bits), dtype=bool)
    pair = (target[taken] - first) * sources + source[taken]
    tables[uneven][pair, (a[taken] - b[taken]) & ((1 << bits) - 1)] = True
    cut = np.flatnonzero(~whole)
    if len(cut):
        (count, down, up), *rest = axes
        steps, together = np.arange(count), max(1, ENTRIES // count)
        for start in range(0, len(cut), together):
            some = cut[start : start + together, None]
            _mark(tables, (b[some] + down * steps).reshape(-1), (a[some] + up * steps).reshape(-1), tuple(rest), within)


def _spread(table: npt.NDArray[np.bool_], count: int, step: int) -> npt.NDArray[np.bool_]:
    """The diagonals d + i * step for each diagonal d of a table and 0 <= i < count, modulo its width."""
    done = 1
    while done < count:
        more = min(done, count - done)
        table = table | np.roll(table, more * step, axis=1)
        done += more
    return table


def counted_modulo(found: Distinct, operand: TensorLayout, result: TensorLayout, modulus: int) -> Distinct:
    """Distinct diagonals modulo a divisor of the operand's period, computed from those modulo the period.

    If the modulus is larger than the result's period, the result is repeated to fill it.
    """
    target, source, diagonal = found
    repeats = max(1, modulus // result.period)
    if modulus == operand.period and repeats == 1:
        return found
    shifts = np.arange(repeats) * result.period
    return _as_distinct(
        np.tile(target, repeats),
        np.tile(source, repeats),
        (diagonal[None, :] - shifts[:, None]).reshape(-1),
        modulus,
    )


def distinct_numbers(numbers: Index) -> Index:
    """Distinct non-negative numbers, sorted."""
    bound = int(numbers.max(initial=-1)) + 1
    if bound > FLAGS_FOR_EACH * len(numbers):
        return np.unique(numbers)
    found = np.zeros(bound, dtype=bool)
    found[numbers] = True
    return np.flatnonzero(found)


def _as_distinct(target: Index, source: Index, diagonal: Index, modulus: int) -> Distinct:
    """Distinct diagonals without duplicates, in the order of targets, sources and diagonals."""
    sources = int(source.max(initial=0)) + 1
    keys = distinct_numbers((target * sources + source) * modulus + (diagonal & (modulus - 1)))
    pair, diagonal = np.divmod(keys, modulus)
    target, source = np.divmod(pair, sources)
    return target, source, diagonal


def products_of(found: Distinct, operand: TensorLayout, modulus: int, imaginary: int = 0) -> Distinct:
    """Target, source and number of each product, from the distinct diagonals of plain copies counted modulo `modulus`.

    Diagonals share a product if they differ only in the copy that serves them, or only in the step of imaginary parts.
    """
    target, source, diagonal = found
    if operand.step:
        diagonal = diagonal - operand.step * shift_of(diagonal, modulus, operand)
    if imaginary:
        diagonal = diagonal & ~imaginary
    return _as_distinct(target, source, diagonal, modulus) if operand.step or imaginary else found


def check_diagonals(operand: TensorLayout, result: TensorLayout, modulus: int, imaginary: int) -> None:
    """Raise `ValueError` if diagonals between two layouts can't be counted in this way."""
    if imaginary and (imaginary & (imaginary - 1) or imaginary >= modulus):
        raise ValueError(f"imaginary {imaginary} is not a power of two below the modulus {modulus}")
    if operand.step and (result.ciphertexts > 1 or not result.period <= modulus <= operand.period):
        raise ValueError(f"no diagonals modulo {modulus} from shifted copies ({operand}) to {result}")


def place(
    linear: LinearMap, operand: TensorLayout, result: TensorLayout, modulus: int, imaginary: int = 0
) -> PlacedEntries:
    """Entries of `linear` between two layouts, with diagonals counted modulo `modulus` (see `Diagonals`)."""
    check_diagonals(operand, result, modulus, imaginary)
    slots, period_in, period_out = operand.slots, operand.period, result.period
    a, b, value = operand.addresses[linear.columns], result.addresses[linear.rows], linear.values
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
    return (diagonal // operand.step) % _copies(operand, modulus)


def _copies(operand: TensorLayout, modulus: int) -> int:
    """Copies that serve diagonals of their own, if the modulus is larger than the step from copy to copy."""
    return min(operand.distinct_copies, modulus // operand.step)


def can_shift(operand: TensorLayout, result: TensorLayout) -> bool:
    """Whether a linear op between these layouts can read shifted copies of its operand."""
    single = operand.ciphertexts == result.ciphertexts == 1
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
    if result.ciphertexts == 1:
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
    babies = len(distinct_numbers((source * baby + j)[j != 0]))
    giants = len(distinct_numbers((target * (giant.max(initial=0) + 1) + giant)[giant != 0]))
    steps = frozenset({*distinct_numbers(j).tolist(), *(distinct_numbers(giant) * baby).tolist()} - {0})
    return StepCounts(len(d), babies, giants, folds, len(distinct_numbers(source)), steps)


@dataclass(frozen=True)
class Product:
    """One diagonal: its source and its baby step."""

    source: int
    baby: int


Plan = list[dict[int, list[Product]]]
"""For each ciphertext of the result: products by giant step."""


def plan_of(products: Distinct, baby: int, pages: int) -> Plan:
    """The plan for distinct products, each with its target, source and number."""
    target, source, diagonal = products
    giant, j = np.divmod(diagonal, baby)
    order = np.lexsort((j, source, giant, target))
    plan: Plan = [{} for _ in range(pages)]
    columns = (target[order].tolist(), (giant[order] * baby).tolist(), source[order].tolist(), j[order].tolist())
    for page, step, taken, baby_step in zip(*columns, strict=True):
        plan[page].setdefault(step, []).append(Product(taken, baby_step))
    return plan


class Weights(ABC):
    """What the plaintexts of a kernel are made from."""

    @property
    @abstractmethod
    def table_bytes(self) -> int:
        """Bytes of the numbers."""

    @property
    @abstractmethod
    def biased(self) -> bool:
        """Whether anything is added to the result."""

    @abstractmethod
    def slots(self, page: int, giant: int, product: Product) -> Slots:
        """The numbers that a product multiplies with, rotated back by the giant step."""

    @abstractmethod
    def bias(self, page: int) -> Slots:
        """What is added to a ciphertext of the result."""


class NoWeights(Weights):
    """For runs on no data, as large as others: its plaintexts are never asked for."""

    def __init__(self, others: Weights) -> None:
        self._table_bytes, self._biased = others.table_bytes, others.biased

    @property
    def table_bytes(self) -> int:
        return self._table_bytes

    @property
    def biased(self) -> bool:
        return self._biased

    def slots(self, page: int, giant: int, product: Product) -> Slots:
        raise VerificationError("a kernel without weights ran on data")

    def bias(self, page: int) -> Slots:
        raise VerificationError("a kernel without weights ran on data")


class ListedWeights(Weights):
    """Entries of a map by product and slot."""

    def __init__(self, linear: LinearMap, operand: TensorLayout, result: TensorLayout, lowering: Diagonals) -> None:
        entries = place(linear, operand, result, lowering.modulus, lowering.imaginary)
        self._width, self._slots = entries.width, operand.slots
        self._products = _group(entries, lowering.baby)
        self._bias = result.expand(linear.bias.reshape(result.shape)) if np.any(linear.bias) else None

    @property
    def biased(self) -> bool:
        return self._bias is not None

    def plan(self, pages: int) -> Plan:
        """The products in their order."""
        plan: Plan = [{} for _ in range(pages)]
        for page, giant, product in self._products:
            plan[page].setdefault(giant, []).append(product)
        return plan

    @property
    def table_bytes(self) -> int:
        return sum(positions.nbytes + values.nbytes for positions, values in self._products.values())

    def slots(self, page: int, giant: int, product: Product) -> Slots:
        positions, values = self._products[page, giant, product]
        diagonal = np.zeros(self._width, dtype=values.dtype)
        diagonal[positions] = values
        return np.tile(diagonal, self._slots // self._width)

    def bias(self, page: int) -> Slots:
        return np.zeros(self._slots) if self._bias is None else self._bias[page]


class ComputedWeights(Weights):
    """Plaintexts that are computed when they are encoded, one at a time, from a map that is never written down.

    It takes the moduli of `modulus_choices`, for which a slot of a plaintext has one entry at most.
    """

    @staticmethod
    def can_count(operand: TensorLayout, result: TensorLayout, modulus: int) -> bool:
        """Whether diagonals modulo this number can be computed."""
        return min(operand.period, result.period) <= modulus <= operand.period

    def __init__(self, linear: ComputedMap, operand: TensorLayout, result: TensorLayout, lowering: Diagonals) -> None:
        modulus, imaginary = lowering.modulus, lowering.imaginary
        check_diagonals(operand, result, modulus, imaginary)
        self._linear, self._operand, self._result = linear, operand, result
        self._modulus, self._imaginary = modulus, imaginary
        self._copies = 1 if not operand.step or modulus <= operand.step else _copies(operand, modulus)
        """Copies that serve diagonals of their own."""

    @property
    def table_bytes(self) -> int:
        layouts = (self._operand, self._result)
        return self._linear.bytes + sum(np.dtype(np.int32).itemsize * one.ciphertexts * one.period for one in layouts)

    @property
    def biased(self) -> bool:
        return self._linear.shifted

    def slots(self, page: int, giant: int, product: Product) -> Slots:
        number, imaginary = giant + product.baby, self._imaginary
        diagonal: Slots = self._diagonal(page, product.source, number)
        if imaginary:
            diagonal = 0.5 * diagonal.astype(np.complex128)
            if not imaginary & self._operand.step * (self._copies - 1):  # the digit of copies is not one of a product
                diagonal = diagonal - 0.5j * self._diagonal(page, product.source, number | imaginary)
        return np.tile(np.roll(diagonal, giant), self._operand.slots // len(diagonal))

    def bias(self, page: int) -> Slots:
        owners = self._result.owners[page]
        held, slots = owners >= 0, np.zeros(len(owners))
        slots[held] = self._linear.shifts(owners[held])
        return np.tile(slots, self._result.slots // len(slots))

    def _diagonal(self, target: int, source: int, number: int) -> Array:
        """The entries of a product by position, as `place` places them."""
        operand, result, modulus = self._operand, self._result, self._modulus
        period_in, period_out = operand.period, result.period
        if operand.step:
            read = (np.arange(operand.distinct_copies * period_in) + number) & (operand.distinct_copies * period_in - 1)
            copy = read // period_in
            a = (read + copy * operand.step) & (period_in - 1)
            b = (a - number - copy * operand.step) & (modulus - 1)
            return self._values(target, source, np.where(copy < self._copies, b & (period_out - 1), -1), a)
        if period_out >= period_in:
            b = np.arange(period_out)
            return self._values(target, source, b, (b + number) & (period_in - 1))
        a = (np.arange(period_in) + number) & (period_in - 1)
        return self._values(target, source, (a - number) & (modulus - 1) & (period_out - 1), a)

    def _values(self, target: int, source: int, b: Index, a: Index) -> Array:
        """The entries between slots of the result and slots of the operand; 0 where b is negative."""
        rows, columns = self._result.owners[target], self._operand.owners[source]
        rows, columns = np.where(b >= 0, rows[b], -1), columns[a]
        held = (rows >= 0) & (columns >= 0)
        rows, columns = rows[held], columns[held]
        found: Array = np.zeros(len(b))
        found[held] = self._linear.values(rows, columns)
        return found


class DiagonalKernel(Kernel):
    """A linear map between two layouts by diagonals.

    Args:
        operand: the layout of the operand.
        lowering: how diagonals are counted.
        plan: its products.
        weights: what their plaintexts are made from.
    """

    depth = 1

    def __init__(self, operand: TensorLayout, lowering: Diagonals, plan: Plan, weights: Weights) -> None:
        self._operand = operand
        self._imaginary = lowering.imaginary
        self._folds = fold_steps(operand, lowering.modulus)
        self._plan, self._weights = plan, weights
        babies = {(p.source, p.baby) for page in plan for giants in page.values() for p in giants}
        self._held = len(babies) + max(len(page) for page in plan)

    @staticmethod
    def listed(linear: LinearMap, operand: TensorLayout, result: TensorLayout, lowering: Diagonals) -> DiagonalKernel:
        """A kernel for the entries of a map."""
        weights = ListedWeights(linear, operand, result, lowering)
        return DiagonalKernel(operand, lowering, weights.plan(result.ciphertexts), weights)

    def weightless(self) -> DiagonalKernel:
        """The same kernel without weights, for runs on no data."""
        made = copy.copy(self)
        made._weights = NoWeights(self._weights)
        return made

    @property
    def table_bytes(self) -> int:
        return self._weights.table_bytes

    @property
    def held(self) -> int:
        """Rotations of the operand, and sums to rotate."""
        return self._held

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

        def partial(giant: int, products: Sequence[Product]) -> Ciphertext[Any]:
            terms = (
                (
                    babies[product.source][product.baby % self._operand.slots],
                    evaluator.encode(functools.partial(self._weights.slots, page, giant, product), level, scale),
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
        for (giant, _), part in zip(chunks, evaluator.each(lambda chunk: partial(*chunk), chunks), strict=True):
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
        if not self._weights.biased:
            return result
        bias = functools.partial(self._weights.bias, page)
        return evaluator.add_plain(result, evaluator.encode(bias, result.state.level, result.state.scale))


_Entries = tuple[npt.NDArray[np.unsignedinteger[Any]], Slots]
"""Positions and values."""


def _group(entries: PlacedEntries, baby: int) -> dict[tuple[int, int, Product], _Entries]:
    """By ciphertext of the result, giant step and product: its entries, already rotated back by the giant step."""
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
    found: dict[tuple[int, int, Product], _Entries] = {}
    for start, end in itertools.pairwise(bounds):
        rest, step = divmod(int(products[start]), baby)
        rest, source = divmod(rest, sources)
        target, block = divmod(rest, giants)
        found[target, block * baby, Product(source, step)] = positions[start:end], values[start:end]
    return found
