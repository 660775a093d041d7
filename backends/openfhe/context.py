"""OpenFHE contexts from olac's parameters."""

from __future__ import annotations

import json
import weakref
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from olac.backends.openfhe.key_maps import KEY_MAPS
from olac.backends.openfhe.library import load
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.errors import BackendError, SecurityError, VerificationError
from olac.system.forks import begin_use


def make_context(parameters: Parameters, complex_slots: bool = False) -> Any:
    """A CryptoContext with exactly these parameters; OpenFHE's own security check stays on.

    Args:
        parameters: of the context.
        complex_slots: of plaintexts that it encodes. A context without them drops imaginary parts, and bootstraps real
            slots faster than one with them. Plaintexts of either fit the other's ciphertexts, as the chain is the same.

    Raises:
        SecurityError: log2(QP) is too large for the security asked for.
        VerificationError: OpenFHE made another modulus chain than olac compiled for.
    """
    parameters.check_security(earlier=True)  # programs of earlier versions run
    fhe = load()
    setup = parameters.bootstrapping
    context = _generated(parameters, parameters.depth, parameters.digits, complex_slots)
    features = [fhe.PKE, fhe.KEYSWITCH, fhe.LEVELEDSHE]
    if setup is not None:
        features += [fhe.ADVANCEDSHE, fhe.FHE]
        taken = fhe.CryptoContext.GetBootstrapDepth(list(setup.budget), fhe.SPARSE_ENCAPSULATED)
        if setup.rest + taken != parameters.depth:
            raise VerificationError(
                f"OpenFHE's bootstrap takes {taken} levels, olac compiled for {parameters.describe()}"
            )
    for feature in features:
        context.Enable(feature)
    primes = chain_of(context)
    if primes != parameters.primes:
        raise VerificationError(f"OpenFHE chose the primes {primes}, olac compiled for {parameters.primes}")
    return context


def make_small_context(parameters: Parameters) -> Any:
    """A context of the same ring, secrets and sizes of primes, but without levels, to make templates in.

    Its keys are small and quickly made. Its one prime is the q_0 of the parameters in nearly all cases, which is the
    caller's to check.
    """
    fhe = load()
    context = _generated(parameters, 0, 1)
    for feature in (fhe.PKE, fhe.KEYSWITCH, fhe.LEVELEDSHE, fhe.ADVANCEDSHE, fhe.FHE):
        context.Enable(feature)
    return context


def _generated(parameters: Parameters, depth: int, digits: int, complex_slots: bool = False) -> Any:
    """OpenFHE's context with another depth and other digits, without features and unchecked."""
    begin_use()  # it looks for roots of unity at random
    fhe = load()
    wanted = fhe.CCParamsCKKSRNS()
    # The sparse key lives inside the bootstrap alone; without one the secret is uniform.
    wanted.SetSecretKeyDist(fhe.UNIFORM_TERNARY if parameters.bootstrapping is None else fhe.SPARSE_ENCAPSULATED)
    levels = {
        0: fhe.HEStd_NotSet,
        128: fhe.HEStd_128_classic,
        192: fhe.HEStd_192_classic,
        256: fhe.HEStd_256_classic,
    }
    wanted.SetSecurityLevel(levels[parameters.security])
    wanted.SetRingDim(parameters.ring_dimension)
    wanted.SetMultiplicativeDepth(depth)
    wanted.SetScalingModSize(parameters.scale_bits)
    wanted.SetFirstModSize(parameters.first_bits)
    wanted.SetScalingTechnique(getattr(fhe, parameters.technique))
    wanted.SetKeySwitchTechnique(fhe.HYBRID)
    wanted.SetNumLargeDigits(digits)
    wanted.SetBatchSize(parameters.slots)
    if complex_slots:
        wanted.SetCKKSDataType(fhe.COMPLEX)
    try:
        return fhe.GenCryptoContext(wanted)
    except RuntimeError as error:
        raise SecurityError(f"OpenFHE refuses {parameters.describe()}: {error}") from error


@dataclass
class _SetUp:
    """What a modulus chain of this process bootstraps with.

    Attributes:
        setup: the levels, slots and factors of the set-up.
        owners: how many `Prepared` there are; with none another set-up may take its place.
    """

    setup: Bootstrapping
    owners: int = 0


_SET_UPS: dict[Parameters, _SetUp] = {}
"""By what decides the chain: OpenFHE gives equal chains one context, and a later set-up would replace the first."""


def _chain(parameters: Parameters) -> Parameters:
    return replace(parameters, bootstrapping=None, security=0)


class Prepared:
    """Keeps what bootstraps of a context take, most of it plaintexts, for as long as this object is there.

    All objects for one chain share it. Made once when the first of them is, which takes most of the time.

    Raises:
        BackendError: the process bootstraps on the same chain in another way.
    """

    def __init__(self, context: Any, parameters: Parameters) -> None:
        with KEY_MAPS.changing():
            first = _set_up_of(parameters).owners == 0
            if first:
                set_up_bootstrapping(context, parameters, precompute=True)
            _set_up_of(parameters).owners += 1
        weakref.finalize(self, KEY_MAPS.do_later, partial(_let_go, context, _chain(parameters))).atexit = False


def _let_go(context: Any, chain: Parameters) -> None:
    """One owner less; only while `KEY_MAPS.changing()`."""
    _SET_UPS[chain].owners -= 1
    if not _SET_UPS[chain].owners:
        del _SET_UPS[chain]
        context.ClearBootstrapPrecom()


def _set_up_of(parameters: Parameters) -> _SetUp:
    setup = parameters.bootstrapping
    assert setup is not None
    held = _SET_UPS.setdefault(_chain(parameters), _SetUp(setup))
    if held.setup != setup:
        if held.owners:
            raise BackendError(
                f"this process bootstraps with {held.setup} already, and OpenFHE keeps one set-up for a modulus chain: "
                f"close the servers of that program, or use another process for {setup}"
            )
        held.setup = setup
    return held


def set_up_bootstrapping(
    context: Any,
    parameters: Parameters,
    precompute: bool,
    slots: int | None = None,
    budget: tuple[int, int] | None = None,
) -> None:
    """Prepare a context for bootstraps, with `precompute` also the plaintexts that they take.

    Only while `KEY_MAPS.changing()`.

    Args:
        slots: that bootstraps work on; None for those of the parameters. There is one set-up for each number of slots
            in a context.
        budget: levels of both transforms, where no bootstrap is to follow; None for that of the parameters.
    """
    setup = _set_up_of(parameters).setup
    context.EvalBootstrapSetup(
        list(budget or setup.budget),
        [0, 0],
        slots or 1 << parameters.log_bootstrap_slots,
        setup.correction,
        precompute,
        BTSlotsEncoding=True,
    )


def chain_of(context: Any) -> tuple[int, ...]:
    """The primes q_0 ... q_depth of a context, read from its own serialisation."""
    fhe = load()
    tree = json.loads(fhe.Serialize(context, fhe.JSON))

    def inner(node: Any) -> Any:
        return node["ptr_wrapper"]["data"]

    crypto = inner(inner(tree["value0"])["cc"])
    element = inner(crypto["value0"]["value0"]["value0"]["elp"])
    return tuple(int(inner(prime)["value0"]["cm"]["v"]) for prime in element["p"])
