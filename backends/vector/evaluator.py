"""The Evaluator on residues that are doubles."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from olac.backends.base import Array, Evaluator, R, Slots, T
from olac.backends.places import Places
from olac.backends.session import PlaintextCache
from olac.backends.vector.buffers import Buffer, Part, buffers_for
from olac.backends.vector.ciphertext import Encoded, Products, Residues
from olac.backends.vector.conversion import convert
from olac.backends.vector.elementwise import (
    add_constant,
    add_encoded,
    add_limbs,
    sum_of_products,
    tensor,
    times_constant,
)
from olac.backends.vector.encoding import coefficients, repeats
from olac.backends.vector.packed import PackedKey
from olac.backends.vector.ring import Conversion, ring
from olac.backends.vector.switching import add_permuted, divide_limbs, inner, inverse_limbs
from olac.backends.vector.switching import finish_limbs as finish_transforms
from olac.backends.vector.team import Team
from olac.ckks.parameters import Parameters
from olac.ckks.primes import FIXED
from olac.ckks.sizes import MOST_PRODUCTS
from olac.errors import MissingKeyError
from olac.ir.types import CipherState
from olac.system.arrays import Index, Order

if TYPE_CHECKING:
    from olac.backends.vector.bootstrap.circuit import Bootstrap

NO_ORDER: Order = np.zeros(1, dtype=np.int32)


class KeyRing(Protocol):
    """Where an evaluator finds its keys."""

    def rotation(self, step: int) -> PackedKey:
        """The key from s to s(X^(1/g)), for the automorphism g of a step; raises `MissingKeyError` if there is none."""

    def relinearisation(self) -> PackedKey:
        """The key from s^2 to s."""

    def bootstraps(self, team: Team) -> Bootstrap:
        """Bootstraps with these keys; at the first call the team makes their plaintexts."""


class Digits:
    """A polynomial c, decomposed into digits, each lifted to the other primes of the chain and to special primes.

    It is lifted when a key asks for that, and to no more special primes than keys have.

    Attributes:
        source, at: the polynomial, limb after limb.
        limbs: of it.
        y: its coefficients, times what the conversions ask for.
        data: the lifted digits: those of the chain's limbs, without a limb's own digit, and those of special primes.
        specials: to which it is lifted; -1 if it is not lifted yet.
    """

    def __init__(self, source: Residues, at: int, limbs: int) -> None:
        self.source, self.at, self.limbs = source, at, limbs
        self.y: Buffer | None = None
        self.data: Buffer | None = None
        self.specials = -1


class VectorEvaluator(Evaluator[Any, Any]):
    """Args:
    parameters: of the chain.
    keys: evaluation keys.
    rotations: steps that there are keys for.
    cache: keeps plaintexts between runs, each of which begins with `restart`; None encodes anew every time.
    team: threads that share the work; None for the caller's alone.
    mark: of the key pair in this process.
    """

    def __init__(
        self,
        parameters: Parameters,
        keys: KeyRing,
        rotations: Iterable[int] | None = None,
        cache: PlaintextCache | None = None,
        team: Team | None = None,
        mark: str = "",
    ) -> None:
        super().__init__(parameters, rotations)
        self.ring = ring(parameters)
        self.buffers = buffers_for(parameters)
        self.team = team or Team(1)
        self.keys = keys
        self._cache = cache
        self._mark = mark
        self._places = Places()
        self._most_repeats = (self.ring.C // 8).bit_length() - 1
        self._most_products, self._product_starts = self.ring.product_starts(MOST_PRODUCTS)
        self._local = threading.local()

    def restart(self) -> None:
        self._places.restart()

    def each(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        # Kernels use all threads, so items come one after the other. Places count as on other engines.
        work = self._places.next()
        for index, item in enumerate(items):
            with self._places.within((*work, index)):
                found = function(item)
            yield found

    # Kernels ---------------------------------------------------------------------------------------------------------

    @property
    def _scratch(self) -> Array:
        """Room for what a kernel computes in between, for each thread of the team: the calling thread's own."""
        found: Array | None = getattr(self._local, "scratch", None)
        if found is None:
            r = self.ring
            found = self._local.scratch = np.empty((self.team.threads, 8 * r.R * (2 * len(r.primes) + 2) + r.N))
        return found

    def _run(self, kernel: Callable[..., object], count: int, *args: object) -> None:
        self.team.run(kernel, count, *args, size=count * self.ring.N)

    def make(self, parts: int, limbs: int, degree: int, scale: float, specials: int = 0) -> Residues:
        """Room for a result."""
        count = limbs + specials
        buffer = self.buffers.take(parts * count * self.ring.N)
        return Residues(buffer, parts, limbs, specials, count, degree, scale, self._mark)

    def ids_of(self, a: Residues) -> Index:
        """The prime of each limb of all polynomials."""
        return np.tile(self.ring.ids(a.limbs, a.specials), a.parts)

    def inverse(self, source: Array, at: Index, out: Array, outat: Index, ids: Index, factors: Array) -> None:
        """Values to coefficients, see `switching.inverse_limbs`."""
        r = self.ring
        tables = self._scratch, r.R, r.C, r.i0, r.i1, r.p, r.pinv, r.tight
        self._run(inverse_limbs, len(ids), source, at, out, outat, ids, factors, *tables)

    def convert(
        self, y: Array, at: int, terms: int, constants: Conversion, out: Array, outat: Index, exact: bool = False
    ) -> None:
        """A conversion and the first halves of transforms, see `conversion.convert`."""
        r = self.ring
        self.team.run(
            convert,
            r.C // 8,
            y,
            at,
            terms,
            constants.group,
            constants.ids,
            constants.c,
            terms + 1,
            constants.starts,
            constants.quotients,
            exact,
            self._scratch,
            out,
            outat,
            r.R,
            r.C,
            r.w0,
            r.p,
            r.pinv,
            r.tight,
            size=r.N * len(constants.ids),
        )

    def finish(self, out: Array, at: Index, ids: Index) -> None:
        """The second halves of transforms."""
        r = self.ring
        self._run(finish_transforms, len(ids), out, at, ids, r.R, r.C, r.w1, r.p, r.pinv, r.tight)

    # Plaintexts ------------------------------------------------------------------------------------------------------

    def _encode(self, values: Callable[[], Slots], level: int, scale: float) -> Encoded:
        def make() -> Encoded:
            slots = values()
            # A product with zero would be no encryption and could not be sent. So zero is encoded as the smallest
            # plaintext, the integer 1, which is far less than the noise of any product.
            given = slots if np.any(slots) else np.full(self.slots, 1.0 / scale)
            repeat = repeats(given, self._most_repeats)
            return self.encoded(coefficients(given[: len(given) >> repeat], scale), level + 1, repeat)

        if self._cache is None:
            return make()
        size = 8 * (level + 1) * self.ring.N
        found: Encoded = self._cache.get(self._places.next(), size, make)
        return found

    def encoded(self, polynomial: Array, limbs: int, repeat: int = 0) -> Encoded:
        """A plaintext of integer coefficients, exact doubles in their natural order; for `repeat` see `Ring.values`."""
        size = limbs * self.ring.N >> repeat
        buffer = self.buffers.take(size)
        self.ring.values(polynomial, self.ring.ids(limbs), self.team, repeat, buffer.data[:size])
        return Encoded(buffer, limbs, repeat)

    # Sums ------------------------------------------------------------------------------------------------------------

    def _add(self, a: Residues | Products, b: Residues | Products, state: CipherState) -> Residues | Products:
        known = [one.computed or one if isinstance(one, Products) else one for one in (a, b)]
        terms = [term for one in known if isinstance(one, Products) for term in one.terms]
        bases = [one.base if isinstance(one, Products) else one for one in known]
        sums = [base for base in bases if base is not None]
        base = self._plus(*sums) if len(sums) == 2 else sums[0] if sums else None
        if not terms:
            assert base is not None
            return base
        both = Products(tuple(terms), base, 0.0)
        return both if len(terms) < self._most_products else self.summed(both)

    def _plus(self, a: Residues, b: Residues) -> Residues:
        """a + b, modulo Q P if one of them is."""
        if a.specials == b.specials:
            return self.sum_of(a, b)
        if not a.specials or not b.specials:
            low, high = (a, b) if b.specials else (b, a)
            return self.lifted(low, self.copied(high))
        specials = max(a.specials, b.specials)
        return self.sum_of(self.raised(a, specials), self.raised(b, specials))

    def summed(self, a: Products) -> Residues:
        """The sum; modulo Q P if the base is."""
        if a.computed is None:
            a.computed = self._summed(a.terms, a.base, a.scale)
            a.terms, a.base = (), None
        return a.computed

    def _summed(self, terms: Sequence[tuple[Residues, Encoded]], base: Residues | None, scale: float) -> Residues:
        r, n = self.ring, self.ring.N
        apart = base is not None and base.specials > 0
        first = terms[0][0]
        limbs = first.limbs
        for at in range(0, len(terms), self._most_products):
            some = terms[at : at + self._most_products]
            out = self.make(2, limbs, 2, scale)
            added = None if apart else base
            self.team.run(
                sum_of_products,
                limbs,
                np.array(
                    [[x.data.ctypes.data, x.room * n, y.data.ctypes.data, y.repeat] for x, y in some], dtype=np.int64
                ),
                (added or out).data,
                (added or out).room * n,
                added is not None,
                self._product_starts,
                out.data,
                out.room * n,
                r.R,
                r.C,
                r.p,
                r.pinv,
                size=limbs * n * len(some),
            )
            if apart:
                assert base is not None
                base = self.lifted(out, self.copied(base))
            else:
                base = out
        assert base is not None
        return base

    def copied(self, a: Residues) -> Residues:
        """A copy, in memory of its own."""
        n = self.ring.N
        out = self.make(a.parts, a.limbs, a.degree, a.scale, a.specials)
        for part in range(a.parts):
            x, y, size = part * a.room * n, part * out.room * n, a.count * n
            out.data[y : y + size] = a.data[x : x + size]
        return out

    def sum_of(self, a: Residues, b: Residues, into: Residues | None = None) -> Residues:
        """a + b, of ciphertexts with the same primes; products that are not relinearised go first."""
        if a.parts < b.parts:
            a, b = b, a
        r, n = self.ring, self.ring.N
        out = into or self.make(a.parts, a.limbs, a.degree, a.scale, a.specials)
        shared = b.parts * a.count
        at, ids = a.offsets(n), self.ids_of(a)
        outat = out.offsets(n)
        self._run(add_limbs, shared, a.data, at, b.data, b.offsets(n), out.data, outat, ids, False, n, r.p, r.pinv)
        for place in range(shared, 0 if out is a else a.parts * a.count):
            out.data[outat[place] : outat[place] + n] = a.data[at[place] : at[place] + n]
        return out

    def _add_plain(self, a: Residues, p: Encoded, state: CipherState) -> Residues:
        r, n = self.ring, self.ring.N
        out = self.make(a.parts, a.limbs, a.degree, a.scale)
        at, outat, ids = a.offsets(n), out.offsets(n), self.ids_of(a)
        self._run(add_encoded, a.limbs, a.data, at, p.data, p.repeat, out.data, outat, ids, r.R, r.C, r.p, r.pinv)
        self._copy_rest(a, out)
        return out

    def _copy_rest(self, a: Residues, out: Residues) -> None:
        """All polynomials but the first."""
        n = self.ring.N
        for part in range(1, a.parts):
            x, y = part * a.room * n, part * out.room * n
            out.data[y : y + a.limbs * n] = a.data[x : x + a.limbs * n]

    def _add_scalar(self, a: Residues, value: float, state: CipherState) -> Residues:
        return self.plus_constant(a, round(value * state.scale))

    def plus_constant(self, a: Residues, value: int) -> Residues:
        """a plus an integer in every value of its first polynomial."""
        r, n = self.ring, self.ring.N
        out = self.make(a.parts, a.limbs, a.degree, a.scale)
        ids = r.ids(a.limbs)
        constants = r.residues(value, ids)
        at, outat = a.offsets(n), out.offsets(n)
        self._run(add_constant, a.limbs, a.data, at, constants, out.data, outat, ids, n, r.p, r.pinv)
        self._copy_rest(a, out)
        return out

    # Products --------------------------------------------------------------------------------------------------------

    def _multiply_plain(self, a: Residues, p: Encoded, state: CipherState) -> Products:
        return Products(((a, p),), None, 0.0)

    def _multiply_unit(self, a: Residues, p: Encoded, state: CipherState) -> Residues:
        out = self._summed(((a, p),), None, a.scale)
        return Residues(out.buffer, 2, out.limbs, 0, out.room, a.degree, a.scale, a.mark)

    def times_integer(self, a: Residues, value: int, limbs: int) -> Residues:
        """a times an integer, modulo the first `limbs` primes."""
        r, n = self.ring, self.ring.N
        given = self.truncated(a, limbs)
        out = self.make(a.parts, limbs, a.degree, a.scale)
        ids = self.ids_of(given)
        constants = r.residues(value, ids)
        self._run(
            times_constant,
            len(ids),
            a.data,
            given.offsets(n),
            constants,
            out.data,
            out.offsets(n),
            ids,
            False,
            n,
            r.p,
            r.pinv,
        )
        return out

    @staticmethod
    def truncated(a: Residues, limbs: int) -> Residues:
        """The same ciphertext modulo fewer primes; nothing is copied."""
        return Residues(a.buffer, a.parts, limbs, 0, a.room, a.degree, a.scale, a.mark)

    def part(self, a: Residues, part: int) -> Residues:
        """One polynomial of a; nothing is copied."""
        n = self.ring.N
        piece = Part(a.buffer, part * a.room * n, a.count * n)
        return Residues(piece, 1, a.limbs, a.specials, a.room, a.degree, a.scale, a.mark)

    def _multiply(self, a: Residues, b: Residues, state: CipherState) -> Residues:
        return self._relinearize(self._multiply_no_relin(a, b, state), state)

    def _multiply_no_relin(self, a: Residues, b: Residues, state: CipherState) -> Residues:
        r, n = self.ring, self.ring.N
        out = self.make(3, a.limbs, 2, 0.0)
        self._run(
            tensor,
            a.limbs,
            a.data,
            0,
            a.room * n,
            b.data,
            0,
            b.room * n,
            out.data,
            0,
            out.room * n,
            False,
            n,
            r.p,
            r.pinv,
        )
        return out

    def _relinearize(self, a: Residues, state: CipherState) -> Residues:
        key = self.keys.relinearisation()
        digits = self.decompose(a, 2)
        # The division by P waits, as a rescale usually follows, which divides by P and a prime at once.
        return self.lifted(a, self.key_product(digits, key))

    def _rescale(self, a: Residues | Products, state: CipherState) -> Residues:
        if isinstance(a, Products):
            a = self.summed(a)
        scale = state.scale / self.parameters.primes[a.limbs - 1]
        if not a.specials:
            return self.rescaled(a, scale)
        out = self.divided(a, None, 0, NO_ORDER, last=True)
        return Residues(out.buffer, 2, out.limbs, 0, out.room, 1, scale, a.mark)

    def rescaled(self, a: Residues, scale: float) -> Residues:
        """a divided by its last prime, of degree 1."""
        r, n, last = self.ring, self.ring.N, a.limbs - 1
        constants = r.conversion((last,), tuple(range(last)))
        y = self.buffers.take(a.parts * n)
        at = np.array([part * a.room + last for part in range(a.parts)], dtype=np.int64) * n
        yat = np.arange(a.parts) * n
        factors = np.tile(constants.factors, (a.parts, 1))
        self.inverse(a.data, at, y.data, yat, np.full(a.parts, last), factors)
        rest = self.buffers.take(a.parts * last * n)
        restat = np.arange(a.parts * last) * n
        for part in range(a.parts):
            self.convert(y.data, part * n, 1, constants, rest.data, restat[part * last : (part + 1) * last])
        out = self.make(a.parts, last, 1, scale)
        kept = self.truncated(a, last)
        none = np.full(a.parts * last, -1)
        inverses = r.residues_of_inverse(self.parameters.primes[last], last)
        self._divide(kept, rest, restat, out.data, none, out, np.tile(inverses, a.parts), NO_ORDER)
        return out

    def _divide(
        self,
        source: Residues,
        rest: Buffer,
        restat: Index,
        extra: Array,
        extraat: Index,
        out: Residues,
        inverses: Array,
        order: Order,
    ) -> None:
        r, n = self.ring, self.ring.N
        first = np.arange(out.parts)[:, None] * source.room + np.arange(out.limbs)
        self._run(
            divide_limbs,
            out.parts * out.limbs,
            source.data,
            (first * n).reshape(-1),
            rest.data,
            restat,
            extra,
            extraat,
            out.data,
            out.offsets(n),
            self.ids_of(out),
            inverses,
            order,
            order is not NO_ORDER,
            r.R,
            r.C,
            r.w1,
            r.p,
            r.pinv,
            r.tight,
        )

    def _level_reduce(self, a: Residues, state: CipherState, level: int) -> Residues:
        parameters = self.parameters
        if parameters.technique == FIXED:
            return self.truncated(a, level + 1)
        # The scale of the level is another one. So a is multiplied by the ratio, one level above, and rescaled.
        ratio = parameters.scale(level) * parameters.primes[level + 1] / state.scale
        return self.rescaled(self.times_integer(a, round(ratio), level + 2), parameters.scale(level))

    # Key switching ---------------------------------------------------------------------------------------------------

    def decompose(self, a: Residues, part: int) -> Digits:
        """The digits of a polynomial of a."""
        return Digits(a, part * a.room * self.ring.N, a.limbs)

    def lift(self, digits: Digits, specials: int) -> None:
        """Lift the digits to the other primes of the chain and to so many special primes, unless that is done."""
        r, n, limbs = self.ring, self.ring.N, digits.limbs
        have = digits.specials
        if have >= specials:
            return
        groups = self._groups(limbs)
        count, fresh = len(groups), have < 0
        chain = (count - 1) * limbs
        if digits.data is None or digits.y is None:
            digits.y = self.buffers.take(limbs * n)
            digits.data = self.buffers.take((chain + count * r.specials) * n)
            factors = np.concatenate([r.conversion(group, self._others(group, limbs)).factors for group in groups])
            whole = np.arange(limbs) * n
            self.inverse(digits.source.data, digits.at + whole, digits.y.data, whole, r.ids(limbs), factors)
        new = range(max(have, 0), specials)
        halves: list[Index] = []
        ids: list[Index] = []
        for g, group in enumerate(groups):
            others = self._others(group, limbs) if fresh else ()
            target = (*others, *(r.limbs + i for i in new))
            places = [(g if g < e // self.parameters.digit_limbs else g - 1) * limbs + e for e in others]
            places += [chain + g * r.specials + i for i in new]
            at = np.array(places, dtype=np.int64) * n
            constants = r.conversion(group, target)
            self.convert(digits.y.data, group[0] * n, len(group), constants, digits.data.data, at)
            halves.append(at)
            ids.append(constants.ids)
        self.finish(digits.data.data, np.concatenate(halves), np.concatenate(ids))
        digits.specials = specials

    def _groups(self, limbs: int) -> list[tuple[int, ...]]:
        """The limbs of each digit."""
        alpha = self.parameters.digit_limbs
        return [tuple(range(lo, min(limbs, lo + alpha))) for lo in range(0, limbs, alpha)]

    @staticmethod
    def _others(group: Sequence[int], limbs: int) -> tuple[int, ...]:
        return tuple(e for e in range(limbs) if e not in group)

    def key_product(self, digits: Digits, key: PackedKey) -> Residues:
        """The sum over digits of digit times key: two polynomials modulo Q P."""
        r, n, limbs = self.ring, self.ring.N, digits.limbs
        shape = key.shape
        if shape.limbs < limbs:
            raise MissingKeyError(f"a key for level {shape.limbs - 1} and below is used at level {limbs - 1}")
        self.lift(digits, shape.specials)
        assert digits.data is not None
        count = len(self._groups(limbs))
        chain = (count - 1) * limbs
        out = self.make(2, limbs, 0, 0.0, shape.specials)
        at = np.concatenate([np.arange(limbs), chain + np.arange(shape.specials)]) * n
        strides = np.repeat([limbs * n, r.specials * n], [limbs, shape.specials])
        keyids = np.concatenate([np.arange(limbs), shape.limbs + np.arange(shape.specials)])
        ids = r.ids(limbs, shape.specials)
        self._run(
            inner,
            len(ids),
            digits.source.data,
            digits.at,
            digits.data.data,
            at,
            strides,
            count,
            self.parameters.digit_limbs,
            key.low,
            key.high8,
            key.high16,
            shape.primes,
            key.place,
            key.small,
            key.count8,
            key.count16,
            keyids,
            ids,
            r.inner_starts(count)[ids],
            out.data,
            0,
            limbs,
            n,
            r.p,
            r.pinv,
        )
        return out

    def divided(self, a: Residues, extra: Residues | None, parts: int, order: Order, last: bool = False) -> Residues:
        """a modulo Q P, divided by P, plus the first polynomials of `extra`, with their values put in another order.

        Args:
            extra: its first `parts` polynomials are added to as many of a; None adds nothing.
            last: divide by the last prime of Q as well.
        """
        r, n, specials = self.ring, self.ring.N, a.specials
        limbs = a.limbs - last
        source = (*((limbs,) if last else ()), *(r.limbs + i for i in range(specials)))
        terms = len(source)
        constants = r.conversion(source, tuple(range(limbs)))
        y = self.buffers.take(a.parts * terms * n)
        first = np.arange(a.parts)[:, None] * a.room + limbs + np.arange(terms)
        yat = np.arange(a.parts * terms) * n
        ids = np.tile(np.array(source), a.parts)
        self.inverse(a.data, (first * n).reshape(-1), y.data, yat, ids, np.tile(constants.factors, (a.parts, 1)))
        rest = self.buffers.take(a.parts * limbs * n)
        restat = np.arange(a.parts * limbs) * n
        for part in range(a.parts):
            at = restat[part * limbs : (part + 1) * limbs]
            self.convert(y.data, part * terms * n, terms, constants, rest.data, at, exact=terms > 1)
        degree, scale = (1, 0.0) if extra is None else (extra.degree, extra.scale)
        out = self.make(a.parts, limbs, degree, scale)
        extraat = np.full((a.parts, limbs), -1)
        if extra is not None:
            extraat[:parts] = (np.arange(parts)[:, None] * extra.room + np.arange(limbs)) * n
        data = a.data if extra is None else extra.data
        divisor = math.prod(r.primes[j] for j in source)
        inverses = np.tile(r.residues_of_inverse(divisor, limbs), a.parts)
        self._divide(a, rest, restat, data, extraat.reshape(-1), out, inverses, order)
        return out

    def settled(self, a: Residues | Products) -> Residues:
        """a modulo Q, if it is a sum of products that was not computed or not divided by P yet."""
        if isinstance(a, Products):
            a = self.summed(a)
        if not a.specials:
            return a
        out = self.divided(a, None, 0, NO_ORDER)
        return Residues(out.buffer, 2, out.limbs, 0, out.room, a.degree, a.scale, a.mark)

    def lifted(self, a: Residues, into: Residues) -> Residues:
        """P a + into, where `into` is modulo Q P and a modulo Q. The first two polynomials count; it is in place."""
        r, n = self.ring, self.ring.N
        ids = np.tile(r.ids(a.limbs), 2)
        constants = np.tile(r.special_product(into.specials, a.limbs), 2)
        at = (np.arange(2)[:, None] * a.room + np.arange(a.limbs)).reshape(-1) * n
        outat = (np.arange(2)[:, None] * into.room + np.arange(a.limbs)).reshape(-1) * n
        self._run(times_constant, len(ids), a.data, at, constants, into.data, outat, ids, True, n, r.p, r.pinv)
        return Residues(into.buffer, 2, into.limbs, into.specials, into.room, a.degree, a.scale, a.mark)

    # Rotations -------------------------------------------------------------------------------------------------------

    def _rotate(self, a: Residues | Products, step: int, state: CipherState) -> Residues:
        return self._hoisted_rotate(a, self._hoist(a, state), step, state)

    def _hoist(self, a: Residues | Products, state: CipherState) -> Digits:
        return self.decompose(self.settled(a), 1)

    def _hoisted_rotate(self, a: Residues | Products, digits: Digits, step: int, state: CipherState) -> Residues:
        switched = self.key_product(digits, self.keys.rotation(step))
        return self.divided(switched, digits.source, 1, self.ring.automorphism(self.ring.exponent(step)))

    def _extended_rotate(self, a: Residues | Products, digits: Digits, step: int, state: CipherState) -> Residues:
        source = digits.source
        switched = self.key_product(digits, self.keys.rotation(step))
        out = self.make(2, source.limbs, source.degree, source.scale, switched.specials)
        self.add_automorphism(switched, source, step, out, False)
        return out

    def add_automorphism(self, a: Residues, c0: Residues | None, step: int, out: Residues, add: bool) -> None:
        """out = out + the rotation of a + (P c0, 0), all modulo Q P; without `add` it is set.

        out has the special primes of a: see `raised` for more of them.
        """
        r, n = self.ring, self.ring.N
        ids = r.ids(a.limbs, a.specials)
        special = r.special_product(a.specials, a.limbs)
        order = r.automorphism(r.exponent(step)) if step else NO_ORDER
        self._run(
            add_permuted,
            2 * len(ids),
            a.data,
            0,
            ids,
            (c0 or a).data,
            0,
            c0 is not None,
            special,
            out.data,
            0,
            add,
            order,
            bool(step),
            a.limbs,
            np.arange(len(ids)),
            self._scratch,
            n,
            r.p,
            r.pinv,
        )

    def _extended_add(self, a: Residues, b: Residues, state: CipherState) -> Residues:
        if a.specials != b.specials:
            specials = max(a.specials, b.specials)
            a, b = self.raised(a, specials), self.raised(b, specials)
        return self.sum_of(a, b, into=a)

    def raised(self, a: Residues, specials: int) -> Residues:
        """a modulo Q P, times the quotient of a larger P and its own, modulo Q and the larger P."""
        r, n = self.ring, self.ring.N
        if specials == a.specials:
            return a
        own = r.ids(a.limbs, a.specials)
        out = self.make(a.parts, a.limbs, a.degree, a.scale, specials)
        factor = r.special_between(a.specials, specials)
        constants = np.tile(r.residues(factor, own), a.parts)
        first = (np.arange(a.parts)[:, None] * out.room + np.arange(len(own))) * n
        ids = np.tile(own, a.parts)
        self._run(
            times_constant,
            len(ids),
            a.data,
            a.offsets(n),
            constants,
            out.data,
            first.reshape(-1),
            ids,
            False,
            n,
            r.p,
            r.pinv,
        )
        for part in range(a.parts):
            out.data[(part * out.room + len(own)) * n : (part + 1) * out.room * n] = 0.0
        return out

    def _key_switch_down(self, a: Residues, state: CipherState) -> Residues:
        return a if state.noise_degree == 2 else self.settled(a)  # a rescale follows, as after products

    # Bootstraps ------------------------------------------------------------------------------------------------------

    def _bootstrap(self, a: Residues, state: CipherState) -> Residues:
        return self.keys.bootstraps(self.team).run(self, self.settled(a), state)

    def _bootstrap_two(self, a: Residues, b: Residues, state: CipherState) -> tuple[Residues, Residues]:
        return self.keys.bootstraps(self.team).run_two(self, self.settled(a), self.settled(b), state)
