"""OpenFHE contexts from olac's parameters."""

from __future__ import annotations

import json
import weakref
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from olac.backends.openfhe.key_maps import KEY_MAPS
from olac.backends.openfhe.library import load
from olac.ckks.parameters import OPENFHE_RECIPE, Bootstrapping, Parameters
from olac.errors import BackendError, SecurityError, VerificationError
from olac.system.forks import begin_use


def make_context(parameters: Parameters, complex_slots: bool = False) -> Any:
    """A CryptoContext with exactly these parameters; OpenFHE's own security check stays on.

    Args:
        parameters: of the context.
        complex_slots: whether it encodes complex slots. A context for real slots drops imaginary parts and bootstraps
            faster. Plaintexts of either fit the other's ciphertexts, as the chain is the same.

    Raises:
        SecurityError: log2(QP) is too large for the security asked for.
        VerificationError: OpenFHE made another modulus chain than olac compiled for.
    """
    parameters.check_security(earlier=True)  # programs of earlier versions run
    fhe = load()
    context = _generated(parameters, parameters.depth, parameters.digits, complex_slots)
    setup = parameters.bootstrapping
    if setup is not None and setup.recipe == OPENFHE_RECIPE:  # clients of other engines encrypt with OpenFHE
        taken = fhe.CryptoContext.GetBootstrapDepth(list(setup.budget), fhe.SPARSE_ENCAPSULATED)
        if setup.rest + taken != parameters.depth:
            raise VerificationError(
                f"OpenFHE's bootstrap takes {taken} levels, olac compiled for {parameters.describe()}"
            )
    primes = chain_of(context)
    if primes != parameters.primes:
        raise VerificationError(f"OpenFHE chose the primes {primes}, olac compiled for {parameters.primes}")
    return context


def make_small_context(parameters: Parameters) -> Any:
    """A context of the same ring, secrets and sizes of primes, but without levels, to make templates in.

    Its keys are small and quickly made. Its one prime is nearly always the q_0 of the parameters; callers check that.
    """
    return _generated(parameters, 0, 1)


def _generated(parameters: Parameters, depth: int, digits: int, complex_slots: bool = False) -> Any:
    """OpenFHE's context of the parameters, but of this depth and these digits; its chain is not checked."""
    begin_use()  # OpenFHE uses its random numbers to find roots of unity
    fhe = load()
    wanted = fhe.CCParamsCKKSRNS()
    # The sparse key exists within bootstraps alone; without bootstraps the secret is uniform.
    wanted.SetSecretKeyDist(fhe.UNIFORM_TERNARY if parameters.bootstrapping is None else fhe.SPARSE_ENCAPSULATED)
    security = f"HEStd_{parameters.security}_classic" if parameters.security else "HEStd_NotSet"
    wanted.SetSecurityLevel(getattr(fhe, security))
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
        context = fhe.GenCryptoContext(wanted)
    except RuntimeError as error:
        raise SecurityError(f"OpenFHE refuses {parameters.describe()}: {error}") from error
    features = [fhe.PKE, fhe.KEYSWITCH, fhe.LEVELEDSHE]
    for feature in features if parameters.bootstrapping is None else [*features, fhe.ADVANCEDSHE, fhe.FHE]:
        context.Enable(feature)
    return context


@dataclass
class _SetUp:
    """What a modulus chain of this process bootstraps with.

    Attributes:
        bootstrapping: the levels, slots and factors of the set-up.
        owners: the number of `Prepared` objects; if there is none, another set-up may replace this one.
    """

    bootstrapping: Bootstrapping
    owners: int = 0


_SET_UPS: dict[Parameters, _SetUp] = {}
"""By parameters that decide the chain: OpenFHE has one context for equal chains, and a new set-up replaces the last."""


def _chain(parameters: Parameters) -> Parameters:
    return replace(parameters, bootstrapping=None, security=0)


class Prepared:
    """Keeps the plaintexts and tables of a context's bootstraps until this object is deleted.

    All objects for one chain share them; they are computed when the first object is made.

    Raises:
        BackendError: the process bootstraps on the same chain with another set-up.
    """

    def __init__(self, context: Any, parameters: Parameters) -> None:
        with KEY_MAPS.changing():
            first = _set_up_of(parameters).owners == 0
            if first:
                set_up_bootstrapping(context, parameters, precompute=True)
            _set_up_of(parameters).owners += 1
        weakref.finalize(self, KEY_MAPS.do_later, partial(_release, context, _chain(parameters))).atexit = False


def _release(context: Any, chain: Parameters) -> None:
    """One owner less; only while `KEY_MAPS.changing()`."""
    _SET_UPS[chain].owners -= 1
    if not _SET_UPS[chain].owners:
        del _SET_UPS[chain]
        context.ClearBootstrapPrecom()


def _set_up_of(parameters: Parameters) -> _SetUp:
    wanted = parameters.bootstrapping
    assert wanted is not None
    held = _SET_UPS.setdefault(_chain(parameters), _SetUp(wanted))
    if held.bootstrapping != wanted:
        if held.owners:
            raise BackendError(
                f"this process bootstraps with {held.bootstrapping} already, and OpenFHE keeps one set-up for a "
                f"modulus chain: close the servers of that program, or use another process for {wanted}"
            )
        held.bootstrapping = wanted
    return held


def set_up_bootstrapping(
    context: Any,
    parameters: Parameters,
    precompute: bool,
    slots: int | None = None,
    budget: tuple[int, int] | None = None,
) -> None:
    """Prepare a context for bootstraps, with `precompute` also their plaintexts; only while `KEY_MAPS.changing()`.

    Args:
        slots: the slots that bootstraps work on; None for those of the parameters. A context has one set-up for each
            number of slots.
        budget: levels of both transforms, for set-ups that no bootstrap uses; None for those of the parameters.
    """
    setup = _set_up_of(parameters).bootstrapping
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
