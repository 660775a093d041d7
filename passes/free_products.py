"""Insert affine identities after products whose readers can't take a product's unit, before any unit is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from olac.ir.graph import Graph
from olac.ir.types import Stage
from olac.passes.base import Pass, PassContext
from olac.passes.normalize_units import free_products


@dataclass(frozen=True)
class FreeProducts(Pass):
    """Given: %p = square(%x);  %s = add(%p, %y).
    Result: %p = square(%x);  %p_unit = affine(%p);  %s = add(%p_unit, %y).

    `NormalizeUnits` will add the same ops. With this pass their levels can be counted without a calibration.
    """

    name: ClassVar[str] = "free_products"
    requires: ClassVar[Stage] = Stage.POLYNOMIAL
    ensures: ClassVar[Stage] = Stage.POLYNOMIAL

    def run(self, graph: Graph, context: PassContext) -> Graph:
        return free_products(graph, {}, self.name)
