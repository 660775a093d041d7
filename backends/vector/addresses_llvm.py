"""The intrinsics of `olac.backends.vector.addresses`, as llvmlite builds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic

from olac.backends.vector.lanes_llvm import LANES, gathered, lanes

_VECTOR = ir.VectorType(ir.DoubleType(), LANES)
Gen = Callable[[Any, Any, Any, Any], Any]


def _ints(bits: int) -> ir.VectorType:
    return ir.VectorType(ir.IntType(bits), LANES)


def _load(builder: Any, address: Any, index: Any, bits: int) -> Any:
    """Eight integers of so many bits, beginning with the one of an index."""
    base = builder.inttoptr(address, ir.IntType(bits).as_pointer())
    pointer = builder.bitcast(builder.gep(base, [index]), _ints(bits).as_pointer())
    return builder.load(pointer, align=bits // 8)


def _loader(bits: int) -> Any:
    @intrinsic
    def load_ints_at(context: Any, address: Any, index: Any) -> tuple[Any, Gen]:
        def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            found = _load(builder, arguments[0], arguments[1], bits)
            if bits < 32:
                found = builder.sext(found, _ints(32))
            return builder.sitofp(found, _VECTOR)

        return lanes(types.int64, types.int64), generate

    return load_ints_at


load8, load16, load32 = _loader(8), _loader(16), _loader(32)


@intrinsic
def load64(context: Any, address: Any, index: Any) -> tuple[Any, Gen]:
    """Eight doubles at an address."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        base = builder.inttoptr(arguments[0], ir.DoubleType().as_pointer())
        pointer = builder.bitcast(builder.gep(base, [arguments[1]]), _VECTOR.as_pointer())
        return builder.load(pointer, align=8)

    return lanes(types.int64, types.int64), generate


@intrinsic
def int_at(context: Any, address: Any, index: Any) -> tuple[Any, Gen]:
    """One int32 at an address, as int64."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, index = arguments
        base = builder.inttoptr(address, ir.IntType(32).as_pointer())
        return builder.sext(builder.load(builder.gep(base, [index]), align=4), ir.IntType(64))

    return types.int64(types.int64, types.int64), generate


@intrinsic
def gather(context: Any, array: Any, at: Any, address: Any, index: Any) -> tuple[Any, Gen]:
    """Elements at + order[index], ... at + order[index + 7] of an array of float64, for int32 at an address."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, at, address, index = arguments
        data = target.make_array(signature.args[0])(target, builder, values).data
        return gathered(builder, builder.gep(data, [at]), _load(builder, address, index, 32))

    return lanes(array, types.int64, types.int64, types.int64), generate
