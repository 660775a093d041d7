"""The Evaluator on OpenFHE ciphertexts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from olac.backends.base import Array, Ciphertext, Evaluator, R, Slots, T
from olac.backends.openfhe.context import make_context
from olac.backends.openfhe.library import load
from olac.backends.openfhe.rounding import EXACT_PRODUCTS, Rounding
from olac.backends.session import Place, PlaintextCache
from olac.ckks.parameters import Parameters
from olac.ckks.primes import FIXED
from olac.ckks.sizes import kept_plaintext_bytes
from olac.errors import VerificationError
from olac.ir.types import CipherState
from olac.system.threads import Workers, helpers, usable_threads


class _Places(threading.local):
    """Where a thread is in a run: the piece of work, which may be part of another, and a number within it."""

    def __init__(self) -> None:
        self.work: Place = ()
        self.count = 0

    def next(self) -> Place:
        self.count += 1
        return (*self.work, self.count)

    @contextmanager
    def within(self, work: Place) -> Iterator[None]:
        """Within a piece of work, counted from its beginning."""
        before = self.work, self.count
        self.work, self.count = work, 0
        try:
            yield
        finally:
            self.work, self.count = before


class KeyTags(Protocol):
    """Finds rotation keys that are not held under the tag of the ciphertexts."""

    def tag(self, step: int) -> str | None:
        """The tag under which OpenFHE holds the key of a step until the next call; None for the ciphertext's."""


class OpenFHEEvaluator(Evaluator[Any, Any]):
    """Args:
    context: from `make_context(parameters)`, with the evaluation keys loaded.
    rotations: steps that there are keys for.
    cache: keeps plaintexts between runs, each of which begins with `restart`; None encodes anew every time.
    workers: threads of Python for work in any order; None for as many as OpenFHE's loops use, but none with `tags`,
        which needs one rotation after the other.
    tags: asked before every rotation for the tag of its key; None if all keys are held under that of the ciphertexts.
    """

    def __init__(
        self,
        context: Any,
        parameters: Parameters,
        rotations: Iterable[int] | None = None,
        cache: PlaintextCache | None = None,
        workers: Workers | None = None,
        tags: KeyTags | None = None,
    ) -> None:
        super().__init__(parameters, rotations)
        self._workers = workers or Workers(helpers(usable_threads()) if tags is None else 0)
        self._places = _Places()
        self._lock = threading.Lock()
        self._of_complex: Any = None
        self._warm = False
        self._context = context
        self._cache = cache
        self._tags = tags
        self._fixed = parameters.technique == FIXED
        self._order = 4 * parameters.slots
        self._rounding = Rounding(parameters)

    def restart(self) -> None:
        self._places.count = 0

    def each(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        work = self._places.next()

        def one(pair: tuple[int, T]) -> R:
            index, item = pair
            with self._places.within((*work, index)):
                return function(item)

        if not self._warm:  # one thread makes the tables of transforms that OpenFHE makes when it first encodes
            self._make(np.zeros(self.slots), 0, self.parameters.scale(0))
            self._warm = True
        return self._workers.each(one, enumerate(items))

    def _used_levels(self, level: int) -> int:
        """OpenFHE's level, which counts those used, of a ciphertext that has `level` left."""
        return self.parameters.depth - level

    def encrypt(self, key: Any, slots: Array, level: int) -> Ciphertext[Any]:
        """Encrypt with the secret key (100 times less noise than with the public one) or the public key."""
        scale = self.parameters.scale(level)
        plain = self._make(self._fresh(slots, level, scale), level, scale)
        return Ciphertext(self._context.Encrypt(key, plain), CipherState(level, 1, scale))

    def decrypt(self, key: Any, a: Ciphertext[Any]) -> Array:
        """The slots, shape (slots,). For clients only."""
        plain = self._context.Decrypt(key, a.payload)
        plain.SetLength(self.slots)
        values: Array = plain.GetRealPackedValueArray()
        return values[: self.slots] * (self.parameters.scale(a.state.level) / a.state.scale)

    def _complex_context(self) -> Any:
        """For encoding complex slots; ciphertexts and keys are of the other context, whose bootstraps are faster."""
        with self._lock:
            if self._of_complex is None:
                self._of_complex = make_context(self.parameters, complex_slots=True)
            return self._of_complex

    def _make(self, slots: Slots, level: int, scale: float) -> Any:
        # OpenFHE encodes at its nominal scale of the level. The values are multiplied by the exact scale over that.
        values = slots * (scale / self.parameters.scale(level))
        context = self._complex_context() if np.iscomplexobj(values) else self._context
        return context.MakeCKKSPackedPlaintext(values, 1, self._used_levels(level))

    def _encode(self, values: Callable[[], Slots], level: int, scale: float) -> Any:
        def make() -> Any:
            slots = values()
            # A product with zero would be no encryption and could not be sent. So zero is encoded as the smallest
            # plaintext, the integer 1, which is far less than the noise of any product.
            return self._make(slots if np.any(slots) else np.full(self.slots, 1.0 / scale), level, scale)

        if self._cache is None:
            return make()
        size = kept_plaintext_bytes(self.parameters.log_ring, level + 1)
        share = 1.0 / self._workers.threads if self._workers.inside else 1.0
        return self._cache.get(self._places.next(), size, make, share)

    def _add(self, a: Any, b: Any, state: CipherState) -> Any:
        return self._context.EvalAdd(a, b)

    def _add_plain(self, a: Any, p: Any, state: CipherState) -> Any:
        return self._context.EvalAdd(a, p)

    def _add_scalar(self, a: Any, value: float, state: CipherState) -> Any:
        return self._context.EvalAdd(a, value * state.scale / self.parameters.scale(state.level))

    def _multiply_plain(self, a: Any, p: Any, state: CipherState) -> Any:
        return self._context.EvalMult(a, p)

    def _multiply_unit(self, a: Any, p: Any, state: CipherState) -> Any:
        out = self._context.EvalMult(a, p)
        # OpenFHE assumes that the plaintext has the usual scale.
        out.SetNoiseScaleDeg(a.GetNoiseScaleDeg())
        out.SetScalingFactor(a.GetScalingFactor())
        return out

    def _multiply(self, a: Any, b: Any, state: CipherState) -> Any:
        return self._context.EvalSquare(a) if a is b else self._context.EvalMult(a, b)

    def _multiply_no_relin(self, a: Any, b: Any, state: CipherState) -> Any:
        return self._context.EvalMultNoRelin(a, b)

    def _relinearize(self, a: Any, state: CipherState) -> Any:
        return self._context.Relinearize(a)

    def _rescale(self, a: Any, state: CipherState) -> Any:
        # In FLEXIBLEAUTO Rescale does nothing. Compress rescales, and drops no limbs beyond the number it is given.
        out = self._context.Rescale(a) if self._fixed else self._context.Compress(a, state.level + 1)
        return self._at(out, state.level - 1, f"a rescale from {state}")

    def _at(self, out: Any, level: int, made_by: str) -> Any:
        if out.GetLevel() != self._used_levels(level) or out.GetNoiseScaleDeg() != 1:
            raise VerificationError(f"{made_by} gave OpenFHE level {out.GetLevel()}, degree {out.GetNoiseScaleDeg()}")
        return out

    def _level_reduce(self, a: Any, state: CipherState, level: int) -> Any:
        if self._fixed:
            return self._context.LevelReduce(a, None, state.level - level)
        # Compress alone would keep the old scale, and products would assume the new level's. So a is multiplied by the
        # ratio of the scales, truncated to one level above the target, and rescaled.
        parameters = self.parameters
        ratio = parameters.scale(level) * parameters.primes[level + 1] / (state.scale * a.GetScalingFactor())
        out = self._context.EvalMult(a, ratio)
        if state.level > level + 1:
            out = self._context.Compress(out, level + 2, 2)
        out = self._context.Compress(out, level + 1)
        out.SetScalingFactor(parameters.scale(level))
        return out

    def _bootstrap(self, a: Any, state: CipherState) -> Any:
        setup = self.parameters.bootstrapping
        assert setup is not None
        slots = 1 << self.parameters.log_bootstrap_slots
        operand = a
        if slots < self.slots:
            # OpenFHE chooses the set-up by the slots that are set in the operand. The copy costs next to nothing.
            operand = a.Clone()
            operand.SetSlots(slots)
        out = self._context.EvalBootstrap(operand)
        out.SetSlots(self.slots)
        if out.GetNoiseScaleDeg() == 2:
            out = self._context.Compress(out, setup.output_level + 1)
        return self._at(out, setup.output_level, f"a bootstrap from {state}")

    def _rotate(self, a: Any, step: int, state: CipherState) -> Any:
        if step == self.parameters.conjugation_step:
            keys = load().CryptoContext.GetEvalAutomorphismKeyMap(a.GetKeyTag())
            return self._rounded(self._context.EvalAutomorphism(a, self._order - 1, keys), state)
        return self._rounded(self._with_key(a, step, lambda: self._context.EvalRotate(a, step)), state)

    def _with_key(self, a: Any, step: int, rotate: Callable[[], Any]) -> Any:
        """The result of `rotate`, called while a has the tag of the step's key."""
        tag = None if self._tags is None else self._tags.tag(step)
        if tag is None:
            return rotate()
        own = a.GetKeyTag()
        a.SetKeyTag(tag)
        try:
            rotated = rotate()
        finally:
            a.SetKeyTag(own)
        rotated.SetKeyTag(own)
        return rotated

    def _hoist(self, a: Any, state: CipherState) -> Any:
        return self._context.EvalFastRotationPrecompute(a)

    def _hoisted_rotate(self, a: Any, digits: Any, step: int, state: CipherState) -> Any:
        rotated = self._with_key(a, step, lambda: self._context.EvalFastRotation(a, step, self._order, digits))
        return self._rounded(rotated, state)

    def _rounded(self, a: Any, state: CipherState) -> Any:
        """The result of a key switch without its bias, which vanishes in a rescale if the noise degree is 2."""
        if state.noise_degree == 1 and EXACT_PRODUCTS:
            self._context.EvalAddInPlaceNoCheck(a, self._rounding.half(state.level, a.GetKeyTag()))
        return a

    def _extended_rotate(self, a: Any, digits: Any, step: int, state: CipherState) -> Any:
        return self._with_key(a, step, lambda: self._context.EvalFastRotationExt(a, step, digits, True))

    def _extended_add(self, a: Any, b: Any, state: CipherState) -> Any:
        self._context.EvalAddInPlaceNoCheck(a, b)
        return a

    def _key_switch_down(self, a: Any, state: CipherState) -> Any:
        return self._context.KeySwitchDown(a)
