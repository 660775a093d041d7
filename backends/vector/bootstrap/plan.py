"""What a bootstrap computes: its levels, scales and rotation steps, before any key is known.

The levels are those of `Bootstrapping`. By OpenFHE's recipe the sine leaves some of its levels. These are not raised to
in the first place, so that everything is computed with fewer limbs. By the engine's own recipe there are none to leave.

The sum over all periods of slots is taken after the transform to slots. The transform's matrices are the same in every
period, so the sum may come before or after it. There it takes fewer limbs, and what was raised goes to the first level
as it is. Only the plaintexts of the last level account for the sum: until then values are that much larger, so that
noise of those levels is not.

Both transforms leave their results rotated by -1 (see `transforms`). A rotation by 2 between them, at level 0 where it
costs least, makes the second one end where the first began.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from olac.backends.vector.bootstrap.sine import RANGE, SinePlan, half_width, plan_sine
from olac.backends.vector.bootstrap.transforms import LinearLevel, transform
from olac.ckks.bootstrap_failure import MOST_FAILURE_BITS, failure_bits
from olac.ckks.bootstrapping import trace_steps
from olac.ckks.parameters import ENCAPSULATION_WEIGHT, Parameters
from olac.errors import VerificationError


@dataclass(frozen=True, eq=False)
class Placed:
    """A level of a transform.

    Attributes:
        linear: its matrix.
        level: of its operand.
        scale: of its plaintexts.
        raised: whether its operand is under the sparser secret, from which each baby step has a key of its own.
    """

    linear: LinearLevel
    level: int
    scale: float
    raised: bool = False

    @property
    def steps(self) -> frozenset[int]:
        """Rotation steps of ciphertexts under the usual secret."""
        return self.linear.giant_steps if self.raised else self.linear.steps


@dataclass(frozen=True, eq=False)
class BootstrapPlan:
    """The parts of a bootstrap.

    Attributes:
        to_coefficients, to_slots: the levels of both transforms, in the order in which they are applied.
        between: the rotation step between them; 0 for none.
        trace: rotation steps of each partial sum over the periods.
        conjugation: the step that stands for conjugation.
        top: the level that is raised to.
        sine: the plan of the modular reduction.
        failure_bits: log2 of a bound of the probability that a bootstrap fails.
    """

    to_coefficients: tuple[Placed, ...]
    to_slots: tuple[Placed, ...]
    between: int
    trace: tuple[tuple[int, ...], ...]
    conjugation: int
    top: int
    sine: SinePlan
    failure_bits: float

    def rotation_levels(self) -> dict[int, int]:
        """Each step that rotates under the usual secret, and its highest level."""
        found: dict[int, int] = {}
        uses = [(step, one.level) for one in (*self.to_coefficients, *self.to_slots) for step in one.steps]
        for step, level in (*uses, *self.single_rotations.items()):
            found[step] = max(level, found.get(step, 0))
        return found

    @property
    def single_rotations(self) -> dict[int, int]:
        """The steps that are no part of a transform, and their levels."""
        found = {step: self.summing_level for steps in (*self.trace, (self.conjugation,)) for step in steps}
        return found | ({self.between: 0} if self.between else {})

    @property
    def summing_level(self) -> int:
        """The level at which a bootstrap sums up periods and conjugates: before the rescale that ends the transform."""
        return self.sine.level + 1


@lru_cache(maxsize=4)
def plan_bootstrap(parameters: Parameters) -> BootstrapPlan:
    """The plan for these parameters; VerificationError if its bootstraps could fail too often."""
    setup = parameters.bootstrapping
    assert setup is not None
    failure = failure_bits(ENCAPSULATION_WEIGHT, RANGE, parameters.ring_dimension)
    if failure > MOST_FAILURE_BITS:
        raise VerificationError(
            f"a sine for {RANGE} periods fails in one of 2^{-failure:.1f} bootstraps, one of 2^{-MOST_FAILURE_BITS} at "
            "most is allowed"
        )
    log_slots, primes = parameters.log_bootstrap_slots, parameters.primes
    sine = plan_sine(parameters)
    top, start = sine.level + setup.budget[0], setup.budget[1]
    down, rotated = transform(log_slots, setup.budget[1], True)
    up, after = transform(log_slots, setup.budget[0], False, 1)
    assert after == 0
    # Each transform has one constant, which its levels share. Entries of the matrices to coefficients have size 1.
    # Those to slots are means over 2^stages, so plaintexts of more stages get a larger scale.
    ratio = primes[0] / 2.0**setup.correction / parameters.scale(start)
    share = ratio ** (1 / len(down))
    lower = tuple(Placed(one, start - i, share * primes[start - i]) for i, one in enumerate(down))
    periods = parameters.slots >> log_slots
    ratio = parameters.scale(sine.level) / (2.0 * primes[0] * half_width())
    share = (ratio / 2.0**log_slots) ** (1 / len(up))
    sizes = _stages(up, 1 << log_slots)
    upper = tuple(
        Placed(one, top - i, share * size * primes[top - i] / (periods if i == len(up) - 1 else 1), not i)
        for i, (one, size) in enumerate(zip(up, sizes, strict=True))
    )
    between = (1 - rotated) % (1 << log_slots)
    trace, conjugation = trace_steps(parameters), parameters.conjugation_step
    return BootstrapPlan(lower, upper, between, trace, conjugation, top, sine, failure)


def _stages(levels: Sequence[LinearLevel], period: int) -> list[int]:
    """2^stages of each level, from the largest strides to the smallest."""
    above = [period, *(one.stride for one in levels[:-1])]
    return [reach // one.stride for reach, one in zip(above, levels, strict=True)]
