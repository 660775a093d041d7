"""The rules of levels, noise degrees and scales, for the pass that assigns them and for all that check them.

They are derived node by node from a graph and its parameters, whatever chose the levels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from olac.ckks.parameters import Parameters
from olac.ckks.primes import FIXED
from olac.ir.graph import Graph, Node
from olac.ir.ops import Bootstrap, Units
from olac.ir.types import CipherState, ValueType

WIDEST = 1.0 + 1e-9
"""Largest calibrated magnitude of a slot at a bootstrap."""
SAME_SCALE = 1e-9
"""Scales that differ by less, relative to their size, are the same."""


def highest_level(
    graph: Graph, node: Node, operands: Sequence[CipherState], parameters: Parameters | None
) -> int | None:
    """The highest level that a node's value can have, from the states of its operands.

    None if it depends on parameters that are not given, or that have no bootstraps.
    """
    if isinstance(node.op, Bootstrap):
        setup = None if parameters is None else parameters.bootstrapping
        return None if setup is None else setup.output_level
    if not operands:
        return None if parameters is None else parameters.depth
    levels = [state.level for state in operands]
    if parameters is not None:  # an operand above the chain is said of that operand
        levels.append(parameters.depth)
    return min(levels) - node.levels(graph.constants)


def scale_at(node: Node, operands: Sequence[CipherState], level: int, parameters: Parameters) -> float:
    """The scale of a node's value at a level from 0 to `highest_level`.

    It is the canonical scale of the level, but for two cases: with fixed scaling, a product has the scale that its
    rescale leaves; and a node whose result is the ciphertexts of its operand has the scale of the operand. Only with
    fixed scaling is that the scale at a lower level as well.
    """
    if node.op.same_ciphertexts and (parameters.technique == FIXED or level == operands[0].level):
        return operands[0].scale
    if node.op.units is Units.PRODUCT and parameters.technique == FIXED:
        return operands[0].scale * operands[-1].scale / parameters.primes[level + 1]
    return parameters.scale(level)


def bootstrap_fault(kind: ValueType, log_slots: int | None) -> str | None:
    """Why a value can't be bootstrapped, or None: its slots must stay within [-1, 1] and repeat after 2^log_slots."""
    if kind.bound is not None and not kind.bound.magnitude <= kind.unit * WIDEST:
        return f"bootstraps values up to {kind.bound.magnitude / kind.unit:.3g}, beyond [-1, 1]"
    if log_slots is not None and kind.layout is not None and kind.layout.ciphertext_repeats_after > 1 << log_slots:
        return f"bootstraps a value that does not repeat after 2^{log_slots} slots"
    return None


def state_problems(graph: Graph, parameters: Parameters | None) -> Iterator[tuple[Node, str]]:
    """Every rule that the levels, noise degrees and scales of a graph break.

    Without parameters, only the rules that hold under any parameters are checked: levels do not rise without a
    bootstrap, nodes take the levels that they say, noise degrees are 1.
    """
    for node in graph.nodes:
        state = node.type.state
        operands = [found for name in node.inputs if (found := graph[name].type.state) is not None]
        if state is None:
            yield node, "the value has no level"
            continue
        if len(operands) < len(node.inputs):
            continue  # the missing state of the operand is a problem of its own
        if state.noise_degree != 1:
            yield node, f"the value has noise degree {state.noise_degree}, expected 1"
        if isinstance(node.op, Bootstrap) and parameters is not None:
            operand = graph[node.inputs[0]].type
            yield from ((node, fault) for fault in _of_bootstrap(node, node.op, operand, operands[0].level, parameters))
        top = highest_level(graph, node, operands, parameters)
        if state.level < 0 or (top is not None and state.level > top):
            highest = "" if top is None else f" ... {top}"
            yield node, f"level {state.level} is outside 0{highest}{_why(graph, node, state, operands)}"
        elif parameters is not None and top is not None:
            scale = scale_at(node, operands, state.level, parameters)
            if not math.isclose(state.scale, scale, rel_tol=SAME_SCALE):
                yield node, f"the scale at level {state.level} is {state.scale:.17g}, expected {scale:.17g}"


def _why(graph: Graph, node: Node, state: CipherState, operands: Sequence[CipherState]) -> str:
    """Why a level is wrong, for the message."""
    if state.level < 0 or not operands or isinstance(node.op, Bootstrap):
        return ""
    if state.level > min(operand.level for operand in operands):
        return ": it rises without a bootstrap"
    taken = node.levels(graph.constants)
    return f": {node.op.name} takes {'a level' if taken == 1 else f'{taken} levels'}"


def _of_bootstrap(node: Node, op: Bootstrap, operand: ValueType, level: int, parameters: Parameters) -> Iterator[str]:
    setup = parameters.bootstrapping
    if setup is None:
        yield "bootstraps, but the parameters are without bootstrapping"
        return
    if level < setup.input_level:
        yield f"bootstraps at level {level}, below the least one, {setup.input_level}"
    if op.correction != setup.correction:
        yield f"bootstraps with a correction factor of {op.correction}, not {setup.correction}"
    for one in (operand, node.type):
        fault = bootstrap_fault(one, setup.log_slots)
        if fault is not None:
            yield fault
            return
