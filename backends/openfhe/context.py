"""OpenFHE contexts from olac's parameters."""

from __future__ import annotations

import json
from typing import Any

from olac.backends.openfhe.library import load
from olac.errors import SecurityError, VerificationError
from olac.parameters import Parameters


def make_context(parameters: Parameters) -> Any:
    """A CryptoContext with exactly these parameters; OpenFHE's own security check stays on.

    Raises:
        SecurityError: log2(QP) is too large for the security asked for.
        VerificationError: OpenFHE made another modulus chain than olac compiled for.
    """
    parameters.check_security()
    fhe = load()
    wanted = fhe.CCParamsCKKSRNS()
    wanted.SetSecretKeyDist(fhe.UNIFORM_TERNARY)
    levels = {
        0: fhe.HEStd_NotSet,
        128: fhe.HEStd_128_classic,
        192: fhe.HEStd_192_classic,
        256: fhe.HEStd_256_classic,
    }
    wanted.SetSecurityLevel(levels[parameters.security])
    wanted.SetRingDim(parameters.ring_dimension)
    wanted.SetMultiplicativeDepth(parameters.depth)
    wanted.SetScalingModSize(parameters.scale_bits)
    wanted.SetFirstModSize(parameters.first_bits)
    wanted.SetScalingTechnique(getattr(fhe, parameters.technique))
    wanted.SetKeySwitchTechnique(fhe.HYBRID)
    wanted.SetNumLargeDigits(parameters.digits)
    wanted.SetBatchSize(parameters.slots)
    try:
        context = fhe.GenCryptoContext(wanted)
    except RuntimeError as error:
        raise SecurityError(f"OpenFHE refuses {parameters.describe()}: {error}") from error
    for feature in (fhe.PKE, fhe.KEYSWITCH, fhe.LEVELEDSHE):
        context.Enable(feature)
    primes = chain_of(context)
    if primes != parameters.primes:
        raise VerificationError(f"OpenFHE chose the primes {primes}, olac compiled for {parameters.primes}")
    return context


def chain_of(context: Any) -> tuple[int, ...]:
    """The primes q_0 ... q_depth of a context, read from its own serialisation."""
    fhe = load()
    tree = json.loads(fhe.Serialize(context, fhe.JSON))

    def inner(node: Any) -> Any:
        return node["ptr_wrapper"]["data"]

    crypto = inner(inner(tree["value0"])["cc"])
    element = inner(crypto["value0"]["value0"]["value0"]["elp"])
    return tuple(int(inner(prime)["value0"]["cm"]["v"]) for prime in element["p"])
