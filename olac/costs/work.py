"""The amounts of work that each primitive takes, which a cost table prices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from olac.ckks.sizes import ciphertext_bytes, rotation_key_bytes

TECHNIQUES = ("FIXEDMANUAL", "FLEXIBLEAUTO")

MILLION = 1e-6  # work is counted in millions, so that the factors have readable sizes


@dataclass(frozen=True)
class CiphertextShape:
    """What the price of a primitive depends on.

    `limbs` is what the operand holds before the primitive; for key generation, set-up and keys as bytes, it is the
    whole chain.
    """

    log_ring: int
    limbs: int
    digit_limbs: int
    special_limbs: int
    technique: str = "FIXEDMANUAL"

    def __post_init__(self) -> None:
        if min(self.log_ring, self.limbs, self.digit_limbs, self.special_limbs) < 1:
            sizes = ("log_ring", "limbs", "digit_limbs", "special_limbs")
            name = next(one for one in sizes if getattr(self, one) < 1)
            raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.technique not in TECHNIQUES:
            raise ValueError(f"unknown scaling technique {self.technique!r}; known: {', '.join(TECHNIQUES)}")

    @property
    def ring(self) -> int:
        return 1 << self.log_ring

    @property
    def digit_sizes(self) -> tuple[int, ...]:
        """Limbs in each digit that the operand still fills: all but the last are full."""
        full, rest = divmod(self.limbs, self.digit_limbs)
        return (self.digit_limbs,) * full + ((rest,) if rest else ())

    @property
    def digits(self) -> int:
        return len(self.digit_sizes)


@dataclass(frozen=True)
class _Counter:
    """Counts work for one shape; threads share a loop over limbs, so it takes as long as the largest share."""

    shape: CiphertextShape
    threads: int

    def share(self, limbs: int) -> float:
        return math.ceil(limbs / self.threads)

    def per_residue(self, limbs: float) -> float:
        return limbs * self.shape.ring * MILLION

    def transforms(self, limbs: float) -> float:
        return limbs * self.shape.ring * self.shape.log_ring * MILLION

    # Key switching, step by step.

    @property
    def lift_transforms(self) -> float:
        shape = self.shape
        all_limbs = shape.limbs + shape.special_limbs
        return self.transforms(
            self.share(shape.limbs) + sum(self.share(all_limbs - size) for size in shape.digit_sizes)
        )

    @property
    def lift_products(self) -> float:
        shape = self.shape
        all_limbs = shape.limbs + shape.special_limbs
        return self.per_residue(sum(size * (all_limbs - size) for size in shape.digit_sizes))

    @property
    def key_products(self) -> float:
        shape = self.shape
        return self.per_residue(2 * shape.digits * self.share(shape.limbs + shape.special_limbs))

    @property
    def lower_transforms(self) -> float:
        shape = self.shape
        return self.transforms(2 * (self.share(shape.special_limbs) + self.share(shape.limbs)))

    @property
    def lower_products(self) -> float:
        return self.per_residue(2 * self.shape.limbs * self.shape.special_limbs)


Work = tuple[float, ...]


def _pointwise(count: _Counter) -> Work:
    limbs = count.shape.limbs
    return (1.0, count.per_residue(limbs), count.per_residue(count.share(limbs)))


def _extended_pointwise(count: _Counter) -> Work:
    shape = count.shape
    return (
        1.0,
        count.per_residue(shape.limbs),
        count.per_residue(count.share(shape.limbs)),
        count.per_residue(shape.special_limbs),
    )


def _transform(count: _Counter) -> Work:
    limbs = count.shape.limbs
    return (1.0, count.transforms(count.share(limbs)), count.per_residue(limbs))


def _encode(count: _Counter) -> Work:
    limbs = count.shape.limbs
    return (1.0, count.transforms(1), count.transforms(count.share(limbs)), count.per_residue(limbs))


def _decrypt(count: _Counter) -> Work:
    limbs = count.shape.limbs
    return (
        1.0,
        count.transforms(1),
        count.per_residue(1.0 if limbs > 1 else 0.0),  # from two limbs on, coefficients are big integers
        count.transforms(count.share(limbs)),
        count.per_residue(limbs),
        count.per_residue(limbs * limbs),
    )


def _hoist(count: _Counter) -> Work:
    limbs = count.shape.digits * (count.shape.limbs + count.shape.special_limbs)
    return (1.0, count.lift_transforms, count.lift_products, count.per_residue(limbs))


def _extended_rotate(count: _Counter) -> Work:
    limbs = count.shape.limbs + count.shape.special_limbs
    return (1.0, count.key_products, count.per_residue(limbs))


def _lower(count: _Counter) -> Work:
    limbs = count.shape.limbs + count.shape.special_limbs
    return (1.0, count.lower_transforms, count.lower_products, count.per_residue(limbs))


def _lower_with_a_rescale(count: _Counter) -> Work:
    """What a division by P takes more if the rescale after it divides by both at once."""
    limbs = count.shape.limbs + count.shape.special_limbs
    transforms = count.transforms(2 * count.share(count.shape.special_limbs))
    return (1.0, transforms, count.lower_products, count.per_residue(limbs))


def _hoisted_rotate(count: _Counter) -> Work:
    return (*_lower(count), count.key_products)


def _key_switch(count: _Counter) -> Work:
    return (
        1.0,
        count.lift_transforms + count.lower_transforms,
        count.lift_products,
        count.lower_products,
        count.key_products,
        count.per_residue(count.shape.limbs),
    )


def _key_generation(count: _Counter) -> Work:
    shape = count.shape
    limbs = shape.limbs + shape.special_limbs
    return (
        1.0,
        count.transforms(shape.digits * count.share(limbs)),
        count.per_residue(shape.digits * limbs),
    )


def _setup(count: _Counter) -> Work:
    shape = count.shape
    limbs = shape.limbs + shape.special_limbs
    return (1.0, count.per_residue(limbs), limbs * limbs, shape.limbs * limbs * shape.digits)


def _key_as_bytes(count: _Counter) -> Work:
    shape = count.shape
    size = rotation_key_bytes(shape.log_ring, shape.limbs, shape.digits, shape.special_limbs)
    return (1.0, size * MILLION)


def _ciphertext_as_bytes(count: _Counter) -> Work:
    return (1.0, ciphertext_bytes(count.shape.log_ring, count.shape.limbs) * MILLION)


def _ciphertext_from_bytes(count: _Counter) -> Work:
    # OpenFHE reads the context that every ciphertext carries, and computes its special primes anew.
    return (*_ciphertext_as_bytes(count), count.per_residue(count.shape.special_limbs))


_WORK: Mapping[str, Callable[[_Counter], Work]] = {
    "encode": _encode,
    "encrypt": _transform,  # with the secret key
    "encrypt_public": _transform,
    "decrypt": _decrypt,  # and decode
    "add": _pointwise,
    "add_plain": _pointwise,
    "add_scalar": _pointwise,
    "multiply_plain": _pointwise,
    "multiply_scalar": _pointwise,
    "multiply": _key_switch,  # relinearised
    "square": _key_switch,  # relinearised
    "multiply_no_relin": _pointwise,
    "relinearize": _key_switch,
    "normalize": _transform,  # Rescale, or Compress to degree 1
    "drop": _transform,  # LevelReduce, or a product with the ratio of scales and a Compress
    "rotate": _key_switch,
    "hoist": _hoist,  # EvalFastRotationPrecompute
    "hoisted_rotate": _hoisted_rotate,  # EvalFastRotation, from digits
    "ext_rotate": _extended_rotate,  # EvalFastRotationExt, from digits
    "ext_lift": _extended_pointwise,  # KeySwitchExt
    "ext_add": _extended_pointwise,  # in place
    "key_switch_down": _lower,
    "rotation_keygen": _key_generation,  # one key
    "relin_keygen": _key_generation,
    "setup": _setup,  # GenCryptoContext
    "serialize_key": _key_as_bytes,  # one rotation key
    "deserialize_key": _key_as_bytes,
    "serialize_ciphertext": _ciphertext_as_bytes,
    "deserialize_ciphertext": _ciphertext_from_bytes,
}

PRIMITIVES = tuple(_WORK)

# The price of these differs between the scaling techniques; all others run the same code in both.
BY_TECHNIQUE = ("normalize", "drop")


_FUSED: Mapping[str, Callable[[_Counter], Work]] = {"key_switch_down": _lower_with_a_rescale}


def work(primitive: str, shape: CiphertextShape, threads: int, fused: bool = False) -> Work:
    """Amounts of work, one for each factor of the primitive's model; none falls if the number of limbs grows.

    Args:
        fused: whether the engine divides by P in the rescale that follows (`EngineModel.fused`).
    """
    if primitive not in _WORK:
        raise ValueError(f"unknown primitive {primitive!r}; known: {', '.join(PRIMITIVES)}")
    counted = _FUSED if fused and primitive in _FUSED else _WORK
    return counted[primitive](_Counter(shape, threads))
