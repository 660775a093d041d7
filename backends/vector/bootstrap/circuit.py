"""The whole bootstrap: slots to coefficients, the raise, coefficients to slots, and the sine.

With F periods of slots in a ciphertext, D = q_0 / 2^correction, and z the slots:

    slots to coefficients   coefficients D z modulo q_0, at level 0
    raise                   t = D z + q_0 I with a small I, modulo the primes of the chain
    coefficients to slots   u = (t / q_0 - 1/4) / (K + 1/4) in the slots, at its canonical scale, for the part of t in
                            the powers of X that slots with this period have: a sum over all periods leaves it
    sine                    2^correction / (2 pi) sin(2 pi t / q_0)

Raising is done under a sparser secret, so that I is small (Bossuat, Troncoso-Pastoriza and Hubaux, "Bootstrapping for
Approximate Homomorphic Encryption with Negligible Failure-Probability by Using Sparse-Secret Encapsulation", ACNS
2022). The raised polynomial c_1 is less than q_0 in size. So it is a digit by itself, and keys back from the sparser
secret need no decomposition and a small P. The first level to slots has such a key for each of its baby steps, which
rotates as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from olac.backends.vector.bootstrap.kernels import combine
from olac.backends.vector.bootstrap.linear import EncodedLevel, combination_start, with_rotations
from olac.backends.vector.bootstrap.plan import Placed, plan_bootstrap
from olac.backends.vector.bootstrap.short_keys import shortened
from olac.backends.vector.bootstrap.sine import Combination, half_width
from olac.backends.vector.ciphertext import Encoded, Residues
from olac.backends.vector.elementwise import add_constant
from olac.backends.vector.evaluator import NO_ORDER, KeyRing, VectorEvaluator
from olac.backends.vector.packed import PackedKey
from olac.backends.vector.ring import ring
from olac.backends.vector.switching import inner
from olac.backends.vector.team import Team
from olac.ckks.parameters import Parameters
from olac.ckks.special import KeyShape, key_shape
from olac.errors import MissingKeyError
from olac.ir.types import CipherState
from olac.system.arrays import Array


class BootstrapKeys(KeyRing, Protocol):
    """Where the keys of bootstraps are. They are held for as long as bootstraps are.

    Attributes:
        into_sparse, from_sparse: into the sparser secret, and back by rotation step.
    """

    into_sparse: PackedKey | None
    from_sparse: dict[int, PackedKey]


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
        if keys.into_sparse is None or not keys.from_sparse:
            raise MissingKeyError("there are no keys of the sparser secret")
        fitting = _FittingKeys(parameters, keys, VectorEvaluator(parameters, keys, (), team=team))
        self._keys = {step: fitting.at(step, level + 1) for step, level in self.plan.single_rotations.items()}
        self._relinearise = keys.relinearisation()
        self._into, self._from = keys.into_sparse, keys.from_sparse
        own = ring(parameters)

        def encode(one: Placed) -> EncodedLevel:
            linear, limbs = one.linear, one.level + 1
            babies = self._from if one.raised else {step: fitting.at(step, limbs) for step in linear.baby_steps[1:]}
            giant = next((fitting.at(step, limbs) for step in linear.giant_steps), None)
            return EncodedLevel(own, linear, limbs, one.scale, babies, giant, team)

        self.lower, self.upper = [
            [encode(one) for one in levels] for levels in (self.plan.to_coefficients, self.plan.to_slots)
        ]
        self._short_bytes = fitting.nbytes
        self._units: dict[int, Encoded] = {}
        """The imaginary unit in every slot, by limbs."""
        self._starts = {one: self._combination_starts(one) for one in self.plan.sine.combinations}

    @property
    def nbytes(self) -> int:
        """Bytes of the plaintexts and of short keys."""
        return self._short_bytes + sum(one.plaintexts.nbytes for one in (*self.lower, *self.upper))

    def run(self, evaluator: VectorEvaluator, a: Residues, state: CipherState) -> Residues:
        """A ciphertext of degree 1 and the canonical scale of its level, at the output level."""
        raised = self.raised(evaluator, self.to_coefficients(evaluator, a, state))
        return self.reduced(evaluator, self.to_slots(evaluator, raised))

    def run_two(
        self, evaluator: VectorEvaluator, a: Residues, b: Residues, state: CipherState
    ) -> tuple[Residues, Residues]:
        """Two ciphertexts as in `run`, as the real and the imaginary part of one until the sine.

        The transforms are linear over complex numbers, and both parts of a slot are coefficients of their own.
        """
        level = self.plan.to_coefficients[0].level
        if state.level > level:
            a, b = (evaluator._level_reduce(one, state, level) for one in (a, b))
        state = CipherState(level, 1, self.parameters.scale(level))
        both = evaluator.sum_of(a, self._times_i(evaluator, b, state))
        raised = self.raised(evaluator, self.to_coefficients(evaluator, both, state))
        real, imaginary = self.to_both_slots(evaluator, raised)
        return self.reduced(evaluator, real), self.reduced(evaluator, imaginary)

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
        """The ciphertext modulo the primes of the chain up to the top level, under the sparser secret.

        Its second polynomial is there modulo special primes, too.
        """
        return self._raise(evaluator, self._into_sparse(evaluator, a))

    def to_slots(self, evaluator: VectorEvaluator, a: Residues) -> Residues:
        """u in the slots, at its canonical scale, of a ciphertext under the sparser secret."""
        _, real = self._transformed(evaluator, a)
        return self._shifted(evaluator, evaluator.divided(real, None, 0, NO_ORDER, last=True))

    def to_both_slots(self, evaluator: VectorEvaluator, a: Residues) -> tuple[Residues, Residues]:
        """As `to_slots`, of the real and of the imaginary parts of slots."""
        whole, real = (evaluator.divided(one, None, 0, NO_ORDER, last=True) for one in self._transformed(evaluator, a))
        # A slot plus its conjugate, less twice the slot, is -2i times its imaginary part.
        rest = evaluator.sum_of(real, evaluator.times_integer(whole, -2, whole.limbs))
        state = CipherState(self.plan.sine.level, 1, self.parameters.scale(self.plan.sine.level))
        imaginary = self._times_i(evaluator, rest, state)
        return self._shifted(evaluator, real), self._shifted(evaluator, imaginary)

    def _transformed(self, evaluator: VectorEvaluator, a: Residues) -> tuple[Residues, Residues]:
        """The slots after the transform, and these plus their conjugates, before the last division and rescale."""
        for one in self.upper[:-1]:
            a = evaluator.divided(one.apply(evaluator, a), None, 0, NO_ORDER, last=True)
        a = self.upper[-1].apply(evaluator, a)
        # Sums come before the division by P and the rescale, as the noise of a key switch vanishes in these.
        for steps in self.plan.trace:
            a = with_rotations(evaluator, a, {step: self._keys[step] for step in steps}, evaluator.copied(a))
        # Both parts of a slot are coefficients.
        conjugation = {self.plan.conjugation: self._keys[self.plan.conjugation]}
        return a, with_rotations(evaluator, a, conjugation, evaluator.copied(a))

    def _shifted(self, evaluator: VectorEvaluator, a: Residues) -> Residues:
        """u from (K + 1/4) u + 1/4, as the sine takes it."""
        scale = self.parameters.scale(self.plan.sine.level)
        a = evaluator.plus_constant(a, round(-0.25 / half_width() * scale))
        return Residues(a.buffer, 2, a.limbs, 0, a.room, 1, scale, a.mark)

    def _times_i(self, evaluator: VectorEvaluator, a: Residues, state: CipherState) -> Residues:
        """The imaginary unit times a, which has degree 1; exact."""
        if a.limbs not in self._units:
            monomial = np.zeros(self.parameters.ring_dimension)
            monomial[self.parameters.ring_dimension // 2] = 1.0
            self._units[a.limbs] = evaluator.encoded(monomial, a.limbs)
        return evaluator._multiply_unit(a, self._units[a.limbs], state)

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

    def _combination_starts(self, one: Combination) -> Array:
        primes = self.parameters.primes[: one.level + 2]
        return np.array([combination_start(prime, len(one.products), one.factor, len(one.terms)) for prime in primes])

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
            self._starts[one],
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
        switched, key = evaluator.make(2, 1, 1, 1.0, 2), self._into
        evaluator._run(
            inner,
            len(ids),
            a.data,
            a.room * n,
            lifted.data,
            np.array([0, 0, n]),
            np.zeros(len(ids), dtype=np.int64),
            1,
            1,
            key.low,
            key.high8,
            key.high16,
            key.shape.primes,
            key.place,
            key.small,
            key.count8,
            key.count16,
            np.arange(3),
            ids,
            r.inner_starts(1)[ids],
            switched.data,
            0,
            1,
            n,
            r.p,
            r.pinv,
        )
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

    def _raise(self, evaluator: VectorEvaluator, a: Residues) -> Residues:
        """A ciphertext at level 0 modulo the chain up to the top level; its second polynomial modulo Q P."""
        r, n, limbs, specials = evaluator.ring, evaluator.ring.N, self.plan.top + 1, self._from[0].shape.specials
        y = evaluator.buffers.take(2 * n)
        at, zero = np.arange(2) * n, np.zeros(2, dtype=np.int64)
        factors = np.tile(r.conversion((0,), (0,)).factors, (2, 1))
        evaluator.inverse(a.data, np.array([0, a.room * n]), y.data, at, zero, factors)
        # I is bounded for coefficients of least size. Adding 0 reduces them.
        evaluator._run(add_constant, 2, y.data, at, np.zeros(2), y.data, at, zero, n, r.p, r.pinv)
        out, ids = evaluator.make(2, limbs, 1, 1.0, specials), r.ids(limbs, specials)
        for part, count in ((0, limbs), (1, limbs + specials)):
            places = (part * out.room + np.arange(count)) * n
            evaluator.convert(y.data, part * n, 1, r.conversion((0,), tuple(ids[:count])), out.data, places)
            evaluator.finish(out.data, places, ids[:count])
        return Residues(out.buffer, 2, limbs, 0, out.room, 1, 1.0, a.mark)


class _FittingKeys:
    """Keys with no more special primes than the limbs need that they are used for.

    Args:
        parameters: of the keys.
        keys: which reach further if kernels take their steps at higher levels, or bootstraps do.
        evaluator: of the same parameters, for its kernels.
    """

    def __init__(self, parameters: Parameters, keys: BootstrapKeys, evaluator: VectorEvaluator) -> None:
        self._parameters, self._keys, self._evaluator = parameters, keys, evaluator
        self._made: dict[tuple[int, KeyShape], PackedKey] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the keys that were shortened."""
        return sum(key.nbytes for key in self._made.values())

    def at(self, step: int, limbs: int) -> PackedKey:
        """The key of a rotation step or of conjugation for so many limbs, or one with as many special primes."""
        key, shape = self._keys.rotation(step), key_shape(self._parameters, limbs - 1)
        if key.shape.limbs < limbs or key.shape.specials == shape.specials:
            return key
        if (step, shape) not in self._made:
            self._made[step, shape] = shortened(self._evaluator, key, shape)
        return self._made[step, shape]
