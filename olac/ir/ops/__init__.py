"""Every op of the IR, one small frozen dataclass each (`olac.ir.ops.base`)."""

from olac.ir.ops.base import OPS, Array, Constants, LinearMap, LinearOp, Op, Shape, ShapeError, register
from olac.ir.ops.linear import Affine, AveragePool, Conv2d, Linear, Pad, Slice, SparseLinear
from olac.ir.ops.nonlinear import (
    Activation,
    Add,
    AtClient,
    Bootstrap,
    Input,
    MaxPool2d,
    Multiply,
    Polynomial,
    PolynomialProduct,
    Reshape,
    Square,
    bent,
)

__all__ = [
    "OPS",
    "Activation",
    "Add",
    "Affine",
    "Array",
    "AtClient",
    "AveragePool",
    "Bootstrap",
    "Constants",
    "Conv2d",
    "Input",
    "Linear",
    "LinearMap",
    "LinearOp",
    "MaxPool2d",
    "Multiply",
    "Op",
    "Pad",
    "Polynomial",
    "PolynomialProduct",
    "Reshape",
    "Shape",
    "ShapeError",
    "Slice",
    "SparseLinear",
    "Square",
    "bent",
    "register",
]
