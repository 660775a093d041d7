"""The whole bootstrap: slots to coefficients, the raise, coefficients to slots, and the sine.

With F periods of slots in a ciphertext, D = q_0 / 2^correction, and z the slots:

    slots to coefficients   coefficients D z modulo q_0, at level 0
    raise                   t = D z + q_0 I with a small I, modulo the primes of the chain
    trace                   F t in the powers of X that slots with this period have, 0 in all others
    coefficients to slots   u = (t / q_0 - 1/4) / (K + 1/4) in the slots, at its canonical scale
    sine                    2^correction / (2 pi) sin(2 pi t / q_0)

Raising is done under a sparser secret, so that I is small (Bossuat, Troncoso-Pastoriza and Hubaux, "Bootstrapping for
Approximate Homomorphic Encryption with Negligible Failure-Probability by Using Sparse-Secret Encapsulation", ACNS
2022). The raised polynomial c_1 is less than q_0 in size. So each of its digits is itself, and the key back needs no
decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from olac.backends.vector.bootstrap.kernels import combine
from olac.backends.vector.bootstrap.linear import EncodedLevel, combination_start
from olac.backends.vector.bootstrap.plan import Placed, plan_bootstrap
from olac.backends.vector.bootstrap.sine import Combination, half_width
from olac.backends.vector.ciphertext import Residues
from olac.backends.vector.elementwise import add_constant
from olac.backends.vector.evaluator import NO_ORDER, VectorEvaluator
from olac.backends.vector.packed import PackedKey
from olac.backends.vector.ring import ring
from olac.backends.vector.switching import inner
from olac.backends.vector.team import Team
from olac.ckks.parameters import Parameters
from olac.errors import MissingKeyError
from olac.ir.types import CipherState
from olac.system.arrays import Array, Index


class BootstrapKeys(Protocol):
    """Where the keys of bootstraps are. They are held for as long as bootstraps are."""

    into_sparse: PackedKey | None
    from_sparse: PackedKey | None

    def rotation(self, step: int) -> PackedKey:
        """The key of a rotation step or of conjugation."""

    def relinearisation(self) -> PackedKey:
        """The relinearisation key."""


class Bootstrap:
    """Bootstraps with the keys of one key pair, for any evaluator of these.

    Args:
        parameters: with bootstrapping.
        keys: those that `plan_bootstrap` names, conjugation, relinearisation, and both of the sparser secret.
        team: makes the plaintexts of the transforms.

    Attributes:
        parameters, plan: of the bootstraps.
    """

    def __init__(self, parameters: Parameters, keys: BootstrapKeys, team: Team | None = None) -> None:
        self.parameters = parameters
        self.plan = plan_bootstrap(parameters)
        if keys.into_sparse is None or keys.from_sparse is None:
            raise MissingKeyError("there are no keys of the sparser secret")
        self._keys = {step: keys.rotation(step) for step in (*self.plan.rotation_levels(), parameters.conjugation_step)}
        self._relinearise = keys.relinearisation()
        self._into, self._from = keys.into_sparse, keys.from_sparse
        own = ring(parameters)

        def encode(levels: tuple[Placed, ...]) -> list[EncodedLevel]:
            return [EncodedLevel(own, one.linear, one.level + 1, one.scale, self._keys, team) for one in levels]

        self.lower, self.upper = encode(self.plan.to_coefficients), encode(self.plan.to_slots)
        self._combine_starts = [combination_start(prime) for prime in parameters.primes]

    @property
    def nbytes(self) -> int:
        """Bytes of the plaintexts."""
        return sum(one.plaintexts.nbytes for one in (*self.lower, *self.upper))

    def run(self, evaluator: VectorEvaluator, a: Residues, state: CipherState) -> Residues:
        """A ciphertext of degree 1 and the canonical scale of its level, at the output level."""
        raised = self.raised(evaluator, self.to_coefficients(evaluator, a, state))
        return self.reduced(evaluator, self.to_slots(evaluator, raised))

    # Parts, in the order in which they are run -----------------------------------------------------------------------

    def to_coefficients(self, evaluator: VectorEvaluator, a: Residues, state: CipherState) -> Residues:
        """A ciphertext at level 0 whose coefficients are the slots of a, at a scale of q_0 / 2^correction.

        It is rotated by what the transform to slots needs, at the level where that costs least.
        """
        level = self.plan.to_coefficients[0].level
        if state.level > level:
            a = evaluator._level_reduce(a, state, level)
        for one in self.lower:
            a = evaluator.divided(one.apply(evaluator, a), None, 0, NO_ORDER, last=True)
        return self._rotated(evaluator, a, self.plan.between) if self.plan.between else a

    def raised(self, evaluator: VectorEvaluator, a: Residues) -> Residues:
        """The ciphertext modulo the primes of the chain up to the top level, all periods summed."""
        a = self._back(evaluator, self._into_sparse(evaluator, a))
        for steps in self.plan.trace:
            digits = evaluator.decompose(a, 1)
            specials = max(self._keys[step].shape.specials for step in steps)
            total = evaluator.make(2, a.limbs, 1, 1.0, specials)
            for place, step in enumerate(steps):
                switched = evaluator.raised(evaluator.key_product(digits, self._keys[step]), specials)
                evaluator.add_automorphism(switched, a, step, total, place > 0)
            a = evaluator.sum_of(a, evaluator.divided(total, None, 0, NO_ORDER))
        return a

    def to_slots(self, evaluator: VectorEvaluator, a: Residues) -> Residues:
        """u in the slots, at its canonical scale."""
        for one in self.upper[:-1]:
            a = evaluator.divided(one.apply(evaluator, a), None, 0, NO_ORDER, last=True)
        a = evaluator.divided(self.upper[-1].apply(evaluator, a), None, 0, NO_ORDER)
        # Both parts of a slot are coefficients; the real one is wanted. The conjugate is added before the rescale, as
        # the noise of a key switch vanishes in it.
        a = evaluator.sum_of(a, self._rotated(evaluator, a, self.parameters.conjugation_step))
        scale = self.parameters.scale(self.plan.sine.level)
        a = evaluator.plus_constant(a, round(-0.25 / half_width() * scale * self.parameters.primes[a.limbs - 1]))
        return evaluator.rescaled(a, scale)

    def reduced(self, evaluator: VectorEvaluator, a: Residues) -> Residues:
        """The sine."""
        found = self.plan.sine.run(a, lambda one, values: self._combined(evaluator, one, values))
        scale = self.parameters.scale(found.limbs - 1)
        return Residues(found.buffer, 2, found.limbs, 0, found.room, 1, scale, found.mark)

    # Steps -----------------------------------------------------------------------------------------------------------

    def _rotated(self, evaluator: VectorEvaluator, a: Residues, step: int) -> Residues:
        """a rotated or conjugated."""
        switched = evaluator.key_product(evaluator.decompose(a, 1), self._keys[step])
        return evaluator.divided(switched, a, 1, evaluator.ring.automorphism(evaluator.ring.exponent(step)))

    def _combined(self, evaluator: VectorEvaluator, one: Combination, values: Mapping[int, Residues]) -> Residues:
        """One value of the sine."""
        r, n, limbs = evaluator.ring, evaluator.ring.N, one.level + 2
        ids = r.ids(limbs)
        pairs = np.array(
            [
                [a.data.ctypes.data, b.data.ctypes.data, a.room * n, b.room * n]
                for a, b in ((values[x], values[y]) for x, y in one.products)
            ],
            dtype=np.int64,
        ).reshape(-1, 4)
        terms = np.array(
            [[a.data.ctypes.data, a.room * n] for a in (values[x] for x, _ in one.terms)], dtype=np.int64
        ).reshape(-1, 2)
        multipliers = np.array([r.residues(factor, ids) for _, factor in one.terms]).reshape(-1, limbs)
        parts = 3 if one.products else 2
        total = evaluator.make(parts, limbs, 2, 0.0)
        evaluator._run(
            combine,
            limbs,
            pairs,
            float(one.factor),
            terms,
            multipliers,
            r.residues(one.constant, ids),
            np.array(self._combine_starts[:limbs]),
            total.data,
            total.room * n,
            n,
            r.p,
            r.pinv,
            r.tight,
        )
        if parts == 2:
            return evaluator.rescaled(total, one.scale)
        switched = evaluator.key_product(evaluator.decompose(total, 2), self._relinearise)
        return evaluator.divided(evaluator.lifted(total, switched), None, 0, NO_ORDER, last=True)

    def _into_sparse(self, evaluator: VectorEvaluator, a: Residues) -> Residues:
        """A ciphertext at level 0 under the sparser secret."""
        r, n, ids = evaluator.ring, evaluator.ring.N, evaluator.ring.sparse_ids
        up, down = r.conversion((0,), tuple(ids[1:])), r.conversion(tuple(ids[1:]), (0,))
        y, lifted, rest = evaluator.buffers.take(4 * n), evaluator.buffers.take(2 * n), evaluator.buffers.take(2 * n)
        at = np.arange(2) * n
        evaluator.inverse(a.data, np.array([a.room * n]), y.data, at[:1], ids[:1], up.factors)
        evaluator.convert(y.data, 0, 1, up, lifted.data, at)
        evaluator.finish(lifted.data, at, ids[1:])
        places = np.array([0, 0, n])
        switched = self._switch(evaluator, a, a.room * n, lifted.data, places, self._into, ids, np.arange(3))
        first = np.array([1, 2, 4, 5]) * n
        factors = np.tile(down.factors, (2, 1))
        evaluator.inverse(switched.data, first, y.data, np.arange(4) * n, np.tile(ids[1:], 2), factors)
        for part in range(2):
            evaluator.convert(y.data, 2 * part * n, 2, down, rest.data, at[part : part + 1], exact=True)
        out = evaluator.make(2, 1, 1, 1.0)
        divisor = math.prod(self.parameters.encapsulation_primes[1:])
        inverses = np.tile(r.residues_of_inverse(divisor, 1), 2)
        source = Residues(switched.buffer, 2, 1, 0, 3, 1, 1.0, a.mark)
        evaluator._divide(source, rest, at, a.data, np.array([0, -1]), out, inverses, NO_ORDER)
        return out

    def _back(self, evaluator: VectorEvaluator, a: Residues) -> Residues:
        """A ciphertext at level 0 under the sparser secret, modulo the whole chain and under the usual secret."""
        r, n, limbs, shape = evaluator.ring, evaluator.ring.N, self.plan.top + 1, self._from.shape
        y = evaluator.buffers.take(2 * n)
        at, zero = np.arange(2) * n, np.zeros(2, dtype=np.int64)
        factors = np.tile(r.conversion((0,), (0,)).factors, (2, 1))
        evaluator.inverse(a.data, np.array([0, a.room * n]), y.data, at, zero, factors)
        # I is bounded for coefficients of least size. Adding 0 reduces them.
        evaluator._run(add_constant, 2, y.data, at, np.zeros(2), y.data, at, zero, n, r.p, r.pinv)
        raised = []
        for part, specials in ((0, 0), (1, shape.specials)):
            ids = r.ids(limbs, specials)
            out, places = evaluator.make(1, limbs, 1, 1.0, specials), np.arange(len(ids)) * n
            evaluator.convert(y.data, part * n, 1, r.conversion((0,), tuple(ids)), out.data, places)
            evaluator.finish(out.data, places, ids)
            raised.append(out)
        keyids = np.concatenate([np.arange(limbs), shape.limbs + np.arange(shape.specials)])
        switched = self._switch(evaluator, raised[1], 0, raised[1].data, places, self._from, ids, keyids)
        return evaluator.divided(switched, raised[0], 1, NO_ORDER)

    def _switch(
        self,
        evaluator: VectorEvaluator,
        own: Residues,
        ownat: int,
        digits: Array,
        places: Index,
        key: PackedKey,
        ids: Index,
        keyids: Index,
    ) -> Residues:
        """The sum over digits of a polynomial times the key, if all digits are the polynomial itself.

        Args:
            own, ownat: where the limbs of the chain are.
            digits, places: where the limbs of special primes are, and those of digits that are not a limb's own.
            ids, keyids: the primes, and the place of each in the key.
        """
        r, n, specials = evaluator.ring, evaluator.ring.N, key.shape.specials
        limbs = len(ids) - specials
        count = -(-limbs // self.parameters.digit_limbs)
        out = evaluator.make(2, limbs, 1, 1.0, specials)
        evaluator._run(
            inner,
            len(ids),
            own.data,
            ownat,
            digits,
            places,
            np.zeros(len(ids), dtype=np.int64),
            count,
            self.parameters.digit_limbs,
            key.low,
            key.high8,
            key.high16,
            key.shape.primes,
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
