"""The Evaluator: the primitives that kernels are written against, and the rules that every backend keeps.

Kernels call the public methods. These check levels, noise degrees, exact scales and rotation keys, derive the state of
the result, and then call the hooks (`_add`, `_rotate`, ...) that a backend implements on its own payloads. So a program
that breaks a rule fails in the same way on every backend, before a library sees it. Hooks that many libraries lack have
defaults in terms of the others.
"""

from __future__ import annotations

import functools
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from olac.ckks.parameters import Parameters
from olac.ckks.primes import FIXED
from olac.ckks.rotations import MOST_STEPS, composition
from olac.errors import MissingKeyError, VerificationError
from olac.ir.types import CipherState
from olac.system.arrays import Array as Array

Slots = npt.NDArray[Any]
"""Of float64 or complex128."""
C = TypeVar("C")
P = TypeVar("P")
T = TypeVar("T")
R = TypeVar("R")

EARLIER_HOOKS = {"_normalize": "_rescale", "_drop": "_level_reduce"}
SCALE_TOLERANCE = 1e-9
"""Largest relative difference of two scales that may be added; far below the noise of any sensible scale."""


def without_negligible(slots: Slots, scale: float) -> Slots:
    """The slots, or zeros if encoding would round them away.

    The 2n coefficients of n encoded slots have the slots' root mean square times scale / sqrt(2n). If that is at most
    1/2, the size of a rounding error, nearly all of them round to zero. If all do, OpenFHE refuses to encode.
    """
    negligible = np.linalg.norm(slots) * scale <= 0.5 * math.sqrt(2.0) * len(slots)
    return np.zeros_like(slots) if negligible else slots


def fresh_slots(parameters: Parameters, slots: Array, level: int, scale: float) -> Array:
    """Slots of a fresh ciphertext, as every backend encrypts them; VerificationError if they are too large."""
    room = sum(math.log2(prime) for prime in parameters.primes[: level + 1]) - 1
    largest = float(np.max(np.abs(slots)))
    if not math.isfinite(largest) or (largest and math.log2(largest) + math.log2(scale) >= room):
        raise VerificationError(f"slots at a scale of 2^{math.log2(scale):.1f} do not fit in a level of {level}")
    return np.asarray(without_negligible(slots, scale))


@dataclass(frozen=True)
class Ciphertext(Generic[C]):
    """A backend's payload and its state."""

    payload: C
    state: CipherState


@dataclass(frozen=True)
class Plaintext(Generic[P]):
    """Encoded slots, made for ciphertexts of one level."""

    payload: P
    level: int
    scale: float


class Evaluator(ABC, Generic[C, P]):
    """CKKS primitives over ciphertexts of `parameters.slots` slots.

    Args:
        parameters: ring, chain and scaling technique.
        rotations: steps that keys exist for; None if any step may be used. A step of `parameters.slots` stands for
            conjugation (see `Parameters.conjugation_step`). Rotations by other steps are composed of these (see
            `olac.ckks.rotations.composition`).

    Attributes:
        parameters, slots: as given.
        rotation_steps: `rotations`.
    """

    def __init__(self, parameters: Parameters, rotations: Iterable[int] | None = None) -> None:
        self.parameters = parameters
        self.slots = parameters.slots
        self.rotation_steps = None if rotations is None else frozenset(rotations)
        self._held = frozenset(step % self.slots for step in self.rotation_steps or ()) - {0}
        self._paths: dict[int, tuple[int, ...]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Accept hooks under their earlier names, `_normalize` and `_drop`, and give them to classes that derive."""
        super().__init_subclass__(**kwargs)
        for earlier, name in EARLIER_HOOKS.items():
            if name in cls.__dict__:
                setattr(cls, earlier, cls.__dict__[name])
            elif earlier in cls.__dict__:
                warnings.warn(
                    f"{cls.__name__}.{earlier} is an earlier name: call it {name}", DeprecationWarning, stacklevel=2
                )
                setattr(cls, name, cls.__dict__[earlier])

    # Runs ------------------------------------------------------------------------------------------------------------

    def restart(self) -> None:
        """Begin a run, in this thread. For backends that keep something from one run to the next."""

    def each(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """`function` of each item, in order, as they are asked for. A backend may compute a few items ahead in threads.

        So calls of `function` may share only what was made before.
        """
        return map(function, items)

    # Plaintexts ------------------------------------------------------------------------------------------------------

    def encode(self, values: Callable[[], Slots], level: int, scale: float) -> Plaintext[P]:
        """Encode slots (a function that returns them, shape (slots,)) for ciphertexts of a level, at an exact scale.

        They may be complex; values that are decrypted or bootstrapped must be real. Slots so small that encoding rounds
        them away are zero on every backend. Slots that are too large for a ciphertext are taken modulo its modulus, and
        so is every sum with them.
        """
        if not 0 <= level <= self.parameters.depth:
            raise VerificationError(f"encode for level {level} of {self.parameters.depth}")
        return Plaintext(self._encode(lambda: without_negligible(values(), scale), level, scale), level, scale)

    def encode_unit(self, level: int) -> Plaintext[P]:
        """The imaginary unit in every slot, for ciphertexts of a level: the monomial X^(N/2), exact at scale 1."""
        return Plaintext(self._encode(lambda: np.full(self.slots, 1j), level, 1.0), level, 1.0)

    def _fresh(self, slots: Array, level: int, scale: float) -> Array:
        """Slots of a fresh ciphertext, as every backend encrypts them; VerificationError if they are too large."""
        return fresh_slots(self.parameters, slots, level, scale)

    # Sums ------------------------------------------------------------------------------------------------------------

    def add(self, a: Ciphertext[C], b: Ciphertext[C]) -> Ciphertext[C]:
        """a + b; levels, noise degrees and scales must agree."""
        self._same("add", a.state, b.state)
        return Ciphertext(self._add(a.payload, b.payload, a.state), a.state)

    def add_plain(self, a: Ciphertext[C], p: Plaintext[P]) -> Ciphertext[C]:
        """a + p for a of noise degree 1 and p encoded at a's level and scale."""
        self._degree_one("add_plain", a.state)
        self._same("add_plain", a.state, CipherState(p.level, 1, p.scale))
        return Ciphertext(self._add_plain(a.payload, p.payload, a.state), a.state)

    def add_scalar(self, a: Ciphertext[C], value: float) -> Ciphertext[C]:
        """a + value in every slot, for a of noise degree 1."""
        self._degree_one("add_scalar", a.state)
        return Ciphertext(self._add_scalar(a.payload, value, a.state), a.state)

    # Products --------------------------------------------------------------------------------------------------------

    def multiply_plain(self, a: Ciphertext[C], p: Plaintext[P]) -> Ciphertext[C]:
        """a * p, of noise degree 2; rescale after the products are summed."""
        self._degree_one("multiply_plain", a.state)
        if p.level != a.state.level:
            raise VerificationError(f"multiply_plain: plaintext for level {p.level}, ciphertext at {a.state.level}")
        state = CipherState(a.state.level, 2, a.state.scale * p.scale)
        return Ciphertext(self._multiply_plain(a.payload, p.payload, a.state), state)

    def multiply_i(self, a: Ciphertext[C]) -> Ciphertext[C]:
        """The imaginary unit times a, for a of noise degree 1: exact, at the same level, degree and scale."""
        self._degree_one("multiply_i", a.state)
        unit = self.encode_unit(a.state.level)
        return Ciphertext(self._multiply_unit(a.payload, unit.payload, a.state), a.state)

    def multiply(self, a: Ciphertext[C], b: Ciphertext[C]) -> Ciphertext[C]:
        """a * b, relinearised, of noise degree 2."""
        self._degree_one("multiply", a.state)
        self._degree_one("multiply", b.state)
        if a.state.level != b.state.level:
            raise VerificationError(f"multiply at levels {a.state.level} and {b.state.level}")
        state = CipherState(a.state.level, 2, a.state.scale * b.state.scale)
        return Ciphertext(self._multiply(a.payload, b.payload, a.state), state)

    def multiply_sum(self, pairs: Sequence[tuple[Ciphertext[C], Ciphertext[C]]]) -> Ciphertext[C]:
        """The sum of the products of pairs, of noise degree 2, relinearised once; the products' scales must agree."""
        if len(pairs) == 1:
            return self.multiply(*pairs[0])
        states = []
        for a, b in pairs:
            self._degree_one("multiply_sum", a.state)
            self._degree_one("multiply_sum", b.state)
            if a.state.level != b.state.level:
                raise VerificationError(f"multiply_sum at levels {a.state.level} and {b.state.level}")
            states.append(CipherState(a.state.level, 2, a.state.scale * b.state.scale))
            self._same("multiply_sum", states[0], states[-1])
        products = self.each(lambda ab: self._multiply_no_relin(ab[0].payload, ab[1].payload, ab[0].state), pairs)
        total = functools.reduce(lambda x, y: self._add(x, y, states[0]), products)
        return Ciphertext(self._relinearize(total, states[0]), states[0])

    def rescale(self, a: Ciphertext[C]) -> Ciphertext[C]:
        """From noise degree 2 to 1, one level down: a rescale, whatever the scaling technique calls it."""
        if a.state.noise_degree != 2:
            raise VerificationError(f"rescale of noise degree {a.state.noise_degree}")
        if a.state.level < 1:
            raise VerificationError("rescale at level 0: the program takes more levels than the chain has")
        state = CipherState(a.state.level - 1, 1, a.state.scale / self.parameters.primes[a.state.level])
        return Ciphertext(self._rescale(a.payload, a.state), state)

    def level_reduce(self, a: Ciphertext[C], level: int) -> Ciphertext[C]:
        """a at a lower level, with the same value."""
        if level == a.state.level:
            return a
        self._degree_one("level_reduce", a.state)
        if not 0 <= level < a.state.level:
            raise VerificationError(f"level_reduce from level {a.state.level} to {level}")
        scale = a.state.scale if self.parameters.technique == FIXED else self.parameters.scale(level)
        return Ciphertext(self._level_reduce(a.payload, a.state, level), CipherState(level, 1, scale))

    def normalize(self, a: Ciphertext[C]) -> Ciphertext[C]:
        """The earlier name of `rescale`."""
        warnings.warn("Evaluator.normalize is now called rescale", DeprecationWarning, stacklevel=2)
        return self.rescale(a)

    def drop(self, a: Ciphertext[C], level: int) -> Ciphertext[C]:
        """The earlier name of `level_reduce`."""
        warnings.warn("Evaluator.drop is now called level_reduce", DeprecationWarning, stacklevel=2)
        return self.level_reduce(a, level)

    def bootstrap(self, a: Ciphertext[C]) -> Ciphertext[C]:
        """a at the output level of a bootstrap, with less precision; its slots must be within [-1, 1].

        Inputs above the output level are refused, because OpenFHE would return them unchanged. Slots beyond 1 lose
        precision, which only simulation can notice.
        """
        state = self._bootstrapped("bootstrap", a.state)
        return Ciphertext(self._bootstrap(a.payload, a.state), state)

    def bootstrap_all(self, values: Sequence[Ciphertext[C]]) -> list[Ciphertext[C]]:
        """Each of some ciphertexts of the same state, as of `bootstrap`. A library may bootstrap two at a time."""
        made: list[C] = []
        for a, b in zip(values[::2], values[1::2], strict=False):
            self._same("bootstrap_all", values[0].state, a.state)
            self._same("bootstrap_all", values[0].state, b.state)
            self._bootstrapped("bootstrap_all", a.state)
            made += self._bootstrap_two(a.payload, b.payload, a.state)
        found = [Ciphertext(one, self._bootstrapped("bootstrap_all", values[0].state)) for one in made]
        return found + [self.bootstrap(one) for one in values[len(made) :]]

    def _bootstrapped(self, primitive: str, state: CipherState) -> CipherState:
        """The state after a bootstrap; `VerificationError` if there is none of this state."""
        setup = self.parameters.bootstrapping
        if setup is None:
            raise VerificationError(f"a {primitive} under parameters without bootstrapping")
        self._degree_one(primitive, state)
        if not setup.input_level <= state.level <= setup.output_level:
            raise VerificationError(
                f"a {primitive} at level {state.level}, outside {setup.input_level} ... {setup.output_level}"
            )
        self._same(primitive, state, CipherState(state.level, 1, self.parameters.scale(state.level)))
        return CipherState(setup.output_level, 1, self.parameters.scale(setup.output_level))

    # Rotations -------------------------------------------------------------------------------------------------------

    def rotate(self, a: Ciphertext[C], step: int) -> Ciphertext[C]:
        """Slot i of the result is slot i + step of a."""
        return self._along(a, self._path(step))

    def rotate_hoisted(self, a: Ciphertext[C], steps: Sequence[int]) -> Mapping[int, Ciphertext[C]]:
        """a rotated by each step, with one decomposition into digits for all (hoisting).

        Of a composed step the first part shares it. Steps that begin with the same part share the result of that part.
        """
        paths = {step: self._path(step) for step in sorted({step % self.slots for step in steps})}
        firsts = sorted({path[0] for path in paths.values() if path})
        out = {0: a} if 0 in paths else {}
        for first, moved in zip(firsts, self._moved(a, firsts), strict=True):
            for step, path in paths.items():
                if path[:1] == (first,):
                    out[step] = self._along(moved, path[1:])
        return out

    def rotate_sum(self, terms: Sequence[tuple[Ciphertext[C], int]]) -> Ciphertext[C]:
        """The sum of terms, each rotated by its step, with one division by P for all of them.

        Terms of noise degree 2 are best: the noise of key switching vanishes in the rescale that follows.
        """
        paths = [(a, self._path(step)) for a, step in terms]
        still = [a for a, path in paths if not path]
        moved = [(a, path) for a, path in paths if path]
        state = terms[0][0].state
        for a, _ in terms[1:]:
            self._same("rotate_sum", state, a.state)
        parts = [a.payload for a in still]
        if len(moved) == 1:
            parts.append(self._along(*moved[0]).payload)
        elif moved:
            extended = self.each(
                lambda term: self._extended_rotate(term[0], self._hoist(term[0], state), term[1], state),
                ((self._along(a, path[:-1]).payload, path[-1]) for a, path in moved),
            )
            summed = functools.reduce(lambda x, y: self._extended_add(x, y, state), extended)
            parts.append(self._key_switch_down(summed, state))
        return Ciphertext(functools.reduce(lambda x, y: self._add(x, y, state), parts), state)

    def add_conjugate(self, a: Ciphertext[C]) -> Ciphertext[C]:
        """a plus its complex conjugate: twice the real part, for one key switch."""
        free = self.rotation_steps is None or self.parameters.bootstrapping is not None
        if not free and self.parameters.conjugation_step not in (self.rotation_steps or ()):
            raise MissingKeyError("there is no key for conjugation")
        return Ciphertext(self._add_conjugate(a.payload, a.state), a.state)

    # Rules -----------------------------------------------------------------------------------------------------------

    def _path(self, step: int) -> tuple[int, ...]:
        """The steps with keys that a step is composed of; none for a step that moves nothing."""
        step %= self.slots
        if self.rotation_steps is None:
            return (step,) if step else ()
        if step not in self._paths:
            path = composition(step, self._held, self.slots)
            if path is None:
                raise MissingKeyError(
                    f"there is no rotation key for step {step}, and no {MOST_STEPS} steps with keys compose it"
                )
            self._paths[step] = path
        return self._paths[step]

    def _moved(self, a: Ciphertext[C], steps: Sequence[int]) -> Iterator[Ciphertext[C]]:
        """a rotated by each of some steps that have keys, hoisted if there are several."""
        if len(steps) <= 1:
            return iter([self._along(a, steps) for _ in steps])
        digits = self._hoist(a.payload, a.state)
        return self.each(
            lambda step: Ciphertext(self._hoisted_rotate(a.payload, digits, step, a.state), a.state), steps
        )

    def _along(self, a: Ciphertext[C], path: Sequence[int]) -> Ciphertext[C]:
        """a rotated by one step after the other; each has a key."""
        for step in path:
            a = Ciphertext(self._rotate(a.payload, step, a.state), a.state)
        return a

    @staticmethod
    def _degree_one(primitive: str, state: CipherState) -> None:
        if state.noise_degree != 1:
            raise VerificationError(
                f"{primitive} on a ciphertext of noise degree {state.noise_degree}: rescale it first"
            )

    @staticmethod
    def _same(primitive: str, a: CipherState, b: CipherState) -> None:
        if a.level != b.level or a.noise_degree != b.noise_degree:
            raise VerificationError(f"{primitive} of {a} and {b}")
        if not math.isclose(a.scale, b.scale, rel_tol=SCALE_TOLERANCE):
            raise VerificationError(f"{primitive} of different scales: {a} and {b}")

    # Hooks: `state` is the state of the (first) operand --------------------------------------------------------------

    @abstractmethod
    def _encode(self, values: Callable[[], Slots], level: int, scale: float) -> P: ...
    @abstractmethod
    def _add(self, a: C, b: C, state: CipherState) -> C: ...
    @abstractmethod
    def _add_plain(self, a: C, p: P, state: CipherState) -> C: ...
    @abstractmethod
    def _add_scalar(self, a: C, value: float, state: CipherState) -> C: ...
    @abstractmethod
    def _multiply_plain(self, a: C, p: P, state: CipherState) -> C: ...
    @abstractmethod
    def _multiply(self, a: C, b: C, state: CipherState) -> C: ...
    @abstractmethod
    def _rescale(self, a: C, state: CipherState) -> C: ...
    @abstractmethod
    def _level_reduce(self, a: C, state: CipherState, level: int) -> C: ...
    @abstractmethod
    def _bootstrap(self, a: C, state: CipherState) -> C: ...
    @abstractmethod
    def _rotate(self, a: C, step: int, state: CipherState) -> C: ...

    # Hooks with defaults. `_multiply_no_relin` and `_relinearize` belong together, and so do `_hoist` and those after
    # it: a backend has all of a group or none. No operand is changed, except the first of `_extended_add`, which is not
    # used again.

    def _multiply_unit(self, a: C, p: P, state: CipherState) -> C:
        """a * p for p of `encode_unit`, of a's degree and scale.

        The default costs nothing more. It is for libraries whose plaintexts know their scale, which is 1 here. A
        library that raises the degree with every product has to reset it.
        """
        return self._multiply_plain(a, p, state)

    def _add_conjugate(self, a: C, state: CipherState) -> C:
        """a plus its complex conjugate.

        The default costs nothing more. Its `_rotate` must conjugate for `parameters.conjugation_step`.
        """
        return self._add(a, self._rotate(a, self.parameters.conjugation_step, state), state)

    def _bootstrap_two(self, a: C, b: C, state: CipherState) -> tuple[C, C]:
        """Two ciphertexts of the same state, bootstrapped.

        The default bootstraps one after the other. A library may take them as the real and imaginary parts of one.
        """
        return self._bootstrap(a, state), self._bootstrap(b, state)

    def _multiply_no_relin(self, a: C, b: C, state: CipherState) -> C:
        """a * b, which need not be relinearised.

        The default relinearises every product: a key switch for each of a sum, in place of one.
        """
        return self._multiply(a, b, state)

    def _relinearize(self, a: C, state: CipherState) -> C:
        """A sum of `_multiply_no_relin`, relinearised."""
        return a

    def _hoist(self, a: C, state: CipherState) -> C:
        """The decomposition of a into digits, which rotations by several steps share.

        The default shares nothing: each rotation decomposes a anew, which is most of what it costs.
        """
        return a

    def _hoisted_rotate(self, a: C, digits: C, step: int, state: CipherState) -> C:
        """a rotated, with `digits` of `_hoist`."""
        return self._rotate(a, step, state)

    def _extended_rotate(self, a: C, digits: C, step: int, state: CipherState) -> C:
        """a rotated, with `digits` of `_hoist`; the result need not be divided by P.

        The default divides every term of a sum by P, and so adds a rounding error for each.
        """
        return self._hoisted_rotate(a, digits, step, state)

    def _extended_add(self, a: C, b: C, state: CipherState) -> C:
        """a + b of `_extended_rotate`; it may be computed in place of a."""
        return self._add(a, b, state)

    def _key_switch_down(self, a: C, state: CipherState) -> C:
        """A sum of `_extended_rotate`, divided by P."""
        return a
