"""The definition of the primitives: numpy slots, exact arithmetic, optional noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from olac.backends.base import Array, Ciphertext, Evaluator, Slots
from olac.ckks.parameters import Parameters
from olac.errors import VerificationError
from olac.ir.ops import scaled_sine
from olac.ir.types import CipherState

REPEATING = 1e-6
"""If periods of a ciphertext differ by more, they hold different values."""


class SimulatorEvaluator(Evaluator[Slots, Slots]):
    """Payloads are slots times their scale, as in a real ciphertext, so that a wrong scale gives a wrong value.

    Args:
        noise: standard deviation of the error that each rescale adds to a slot, in units of the encoded integer
            (2^11.4 is typical of ring 2^14); 0 for exact arithmetic.
        seed: of the noise.
        bootstrap_bits: the error of a bootstrap has a mean magnitude of 2^-bits in the slots; None for no error.
    """

    def __init__(
        self,
        parameters: Parameters,
        rotations: Iterable[int] | None = None,
        noise: float = 0.0,
        seed: int = 0,
        bootstrap_bits: float | None = None,
    ) -> None:
        super().__init__(parameters, rotations)
        self._noise = noise
        self._bootstrap_noise = 0.0 if bootstrap_bits is None else 2.0**-bootstrap_bits * math.sqrt(math.pi / 2)
        self._random = np.random.default_rng(seed)

    def encrypt(self, slots: Array, level: int) -> Ciphertext[Slots]:
        """A fresh ciphertext of shape (slots,) at a level."""
        scale = self.parameters.scale(level)
        return Ciphertext(self._fresh(np.asarray(slots), level, scale) * scale, CipherState(level, 1, scale))

    def decrypt(self, a: Ciphertext[Slots]) -> Array:
        """The slots, shape (slots,)."""
        return _real(a.payload) / a.state.scale

    def _encode(self, values: Callable[[], Slots], level: int, scale: float) -> Slots:
        return np.asarray(values()) * scale

    def _add(self, a: Slots, b: Slots, state: CipherState) -> Slots:
        return a + b

    def _add_plain(self, a: Slots, p: Slots, state: CipherState) -> Slots:
        return a + p

    def _add_scalar(self, a: Slots, value: float, state: CipherState) -> Slots:
        return a + value * state.scale

    def _multiply_plain(self, a: Slots, p: Slots, state: CipherState) -> Slots:
        return a * p

    def _multiply_unit(self, a: Slots, p: Slots, state: CipherState) -> Slots:
        return a * p

    def _multiply(self, a: Slots, b: Slots, state: CipherState) -> Slots:
        return a * b

    def _multiply_no_relin(self, a: Slots, b: Slots, state: CipherState) -> Slots:
        return a * b

    def _relinearize(self, a: Slots, state: CipherState) -> Slots:
        return a

    def _rescale(self, a: Slots, state: CipherState) -> Slots:
        result = a / self.parameters.primes[state.level]
        if self._noise:
            result = result + self._random.normal(0.0, self._noise, result.shape)
        return result

    def _level_reduce(self, a: Slots, state: CipherState, level: int) -> Slots:
        if self.parameters.technique == "FIXEDMANUAL":
            return a
        return a * (self.parameters.scale(level) / state.scale)

    def _bootstrap(self, a: Slots, state: CipherState) -> Slots:
        setup = self.parameters.bootstrapping
        assert setup is not None
        periods = (_real(a) / state.scale).reshape(-1, 1 << self.parameters.log_bootstrap_slots)
        mean = periods.mean(axis=0)  # noise makes them differ
        exact = not (self._noise or self._bootstrap_noise)
        if exact and not np.allclose(periods, mean, rtol=0.0, atol=REPEATING):
            raise VerificationError(f"a bootstrap of slots that do not repeat every {len(mean)} slots")
        slots = np.tile(scaled_sine(mean, setup.correction), len(periods))
        if self._bootstrap_noise:
            slots = slots + self._random.normal(0.0, self._bootstrap_noise, slots.shape)
        return slots * self.parameters.scale(setup.output_level)

    def _rotate(self, a: Slots, step: int, state: CipherState) -> Slots:
        return np.roll(a, -step)

    def _add_conjugate(self, a: Slots, state: CipherState) -> Slots:
        return 2.0 * a.real

    def _hoist(self, a: Slots, state: CipherState) -> Slots:
        return a

    def _hoisted_rotate(self, a: Slots, digits: Slots, step: int, state: CipherState) -> Slots:
        return np.roll(digits, -step)

    def _extended_rotate(self, a: Slots, digits: Slots, step: int, state: CipherState) -> Slots:
        return np.roll(digits, -step)

    def _extended_add(self, a: Slots, b: Slots, state: CipherState) -> Slots:
        return a + b

    def _key_switch_down(self, a: Slots, state: CipherState) -> Slots:
        return a


def _real(slots: Slots) -> Array:
    """Slots that must be real: OpenFHE would lose an imaginary part, or refuse to decode it."""
    if np.iscomplexobj(slots):
        raise VerificationError("complex slots are decrypted or bootstrapped")
    return np.asarray(slots, dtype=np.float64)
