"""The intrinsics of `olac.backends.vector.bootstrap.addresses`, as llvmlite builds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from olac.backends.vector.lanes_llvm import LANES, lanes

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
            found = _load(builder, *arguments, bits)
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
def store64(context: Any, address: Any, index: Any, value: Any) -> tuple[Any, Gen]:
    """Write a vector to elements index ... index + 7 of an array of float64."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        base = builder.inttoptr(arguments[0], ir.DoubleType().as_pointer())
        pointer = builder.bitcast(builder.gep(base, [arguments[1]]), _VECTOR.as_pointer())
        builder.store(arguments[2], pointer, align=8)
        return target.get_dummy_value()

    return types.none(types.int64, types.int64, lanes), generate


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
    """Elements at + order[index], ... at + order[index + 7] of an array of float64, for an order of int32 at an address."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, at, address, index = arguments
        data = target.make_array(signature.args[0])(target, builder, values).data
        base = builder.ptrtoint(builder.gep(data, [at]), ir.IntType(64))
        empty = ir.Constant(_ints(64), ir.Undefined)
        first = builder.insert_element(empty, base, ir.Constant(ir.IntType(32), 0))
        places = builder.sext(_load(builder, address, index, 32), _ints(64))
        bytes_in = builder.shl(places, ir.Constant(_ints(64), [3] * LANES))
        all_first = builder.shuffle_vector(first, empty, ir.Constant(_ints(32), [0] * LANES))
        addresses = builder.add(all_first, bytes_in)
        pointers = builder.inttoptr(addresses, ir.VectorType(ir.DoubleType().as_pointer(), LANES))
        mask = ir.Constant(ir.VectorType(ir.IntType(1), LANES), [1] * LANES)
        kind = ir.FunctionType(_VECTOR, [pointers.type, ir.IntType(32), mask.type, _VECTOR])
        name = f"llvm.masked.gather.v{LANES}f64.v{LANES}p0f64"
        function = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
        return builder.call(function, [pointers, ir.Constant(ir.IntType(32), 8), mask, ir.Constant(_VECTOR, None)])

    return lanes(array, types.int64, types.int64, types.int64), generate
