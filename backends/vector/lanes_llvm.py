"""The intrinsics of `olac.backends.vector.lanes`, as llvmlite builds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 8
"""Doubles in a vector."""

_VECTOR = ir.VectorType(ir.DoubleType(), LANES)


def _ints(bits: int) -> ir.VectorType:
    return ir.VectorType(ir.IntType(bits), LANES)


class Lanes(types.Type):
    """The numba type of a vector."""

    def __init__(self) -> None:
        super().__init__(name="Lanes8")


lanes = Lanes()


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _VECTOR)  # type: ignore[no-untyped-call]


Gen = Callable[[Any, Any, Any, Any], Any]


@intrinsic
def vfma(context: Any, a: Any, b: Any, c: Any) -> tuple[Any, Gen]:
    """a b + c, rounded once."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        name = f"llvm.fma.v{LANES}f64"
        function = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
        return builder.call(function, arguments)

    return lanes(lanes, lanes, lanes), generate


@intrinsic
def vadd(context: Any, a: Any, b: Any) -> tuple[Any, Gen]:
    """a + b."""
    return lanes(lanes, lanes), lambda target, builder, signature, arguments: builder.fadd(*arguments)


@intrinsic
def vsub(context: Any, a: Any, b: Any) -> tuple[Any, Gen]:
    """a - b."""
    return lanes(lanes, lanes), lambda target, builder, signature, arguments: builder.fsub(*arguments)


@intrinsic
def vmul(context: Any, a: Any, b: Any) -> tuple[Any, Gen]:
    """a b, rounded."""
    return lanes(lanes, lanes), lambda target, builder, signature, arguments: builder.fmul(*arguments)


@intrinsic
def vneg(context: Any, a: Any) -> tuple[Any, Gen]:
    """-a."""
    return lanes(lanes), lambda target, builder, signature, arguments: builder.fneg(*arguments)


@intrinsic
def splat(context: Any, a: Any) -> tuple[Any, Gen]:
    """a in every lane."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        empty = ir.Constant(_VECTOR, ir.Undefined)
        one = builder.insert_element(empty, arguments[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(one, empty, ir.Constant(_ints(32), [0] * LANES))

    return lanes(types.float64), generate


def _pointer(target: Any, builder: Any, kind: Any, array: Any, index: Any, to: Any) -> Any:
    data = target.make_array(kind)(target, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), to.as_pointer())


@intrinsic
def load(context: Any, array: Any, index: Any) -> tuple[Any, Gen]:
    """Elements index ... index + 7 of an array of float64 whose last axis is contiguous."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(target, builder, signature.args[0], arguments[0], arguments[1], _VECTOR)
        return builder.load(pointer, align=8)

    return lanes(array, types.int64), generate


@intrinsic
def load_ints(context: Any, array: Any, index: Any) -> tuple[Any, Gen]:
    """As `load`, of an array of integers of 64, 32, 16 or 8 bits, below 2^63."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = signature.args[0].dtype.bitwidth
        found = builder.load(
            _pointer(target, builder, signature.args[0], arguments[0], arguments[1], _ints(bits)), align=bits // 8
        )
        if bits < 32:
            found = builder.sext(found, _ints(32))
        return builder.sitofp(found, _VECTOR)

    return lanes(array, types.int64), generate


@intrinsic
def store(context: Any, array: Any, index: Any, value: Any) -> tuple[Any, Gen]:
    """Write a vector to elements index ... index + 7."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(target, builder, signature.args[0], arguments[0], arguments[1], _VECTOR)
        builder.store(arguments[2], pointer, align=8)
        return target.get_dummy_value()

    return types.none(array, types.int64, lanes), generate


@intrinsic
def stream(context: Any, array: Any, index: Any, value: Any) -> tuple[Any, Gen]:
    """Write a vector past the caches; its address has to be a multiple of its size, see `streams`."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(target, builder, signature.args[0], arguments[0], arguments[1], _VECTOR)
        stored = builder.store(arguments[2], pointer, align=8 * LANES)
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return target.get_dummy_value()

    return types.none(array, types.int64, lanes), generate


@intrinsic
def streams(context: Any, array: Any, index: Any) -> tuple[Any, Gen]:
    """Whether the address of an element is a multiple of a vector's size."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(target, builder, signature.args[0], arguments[0], arguments[1], _VECTOR)
        address = builder.ptrtoint(pointer, ir.IntType(64))
        rest = builder.and_(address, ir.Constant(ir.IntType(64), 8 * LANES - 1))
        return builder.icmp_unsigned("==", rest, ir.Constant(ir.IntType(64), 0))

    return types.boolean(array, types.int64), generate


@intrinsic
def fence(context: Any) -> tuple[Any, Gen]:
    """All that was written so far is there for other threads before what comes next."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return target.get_dummy_value()

    return types.none(), generate


@intrinsic
def store_ints(context: Any, array: Any, index: Any, value: Any) -> tuple[Any, Gen]:
    """Write eight integers that are doubles to an array of int32, int16 or int8, which they have to fit."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = signature.args[0].dtype.bitwidth
        found = builder.fptosi(arguments[2], _ints(32))
        if bits < 32:
            found = builder.trunc(found, _ints(bits))
        pointer = _pointer(target, builder, signature.args[0], arguments[0], arguments[1], _ints(bits))
        builder.store(found, pointer, align=bits // 8)
        return target.get_dummy_value()

    return types.none(array, types.int64, lanes), generate


@intrinsic
def store_residues(context: Any, array: Any, index: Any, value: Any, prime: Any) -> tuple[Any, Gen]:
    """Write eight integers that are doubles to an array of 64-bit integers, the prime added to negative ones."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, index, value, prime = arguments
        found = builder.fptosi(value, _ints(64))
        negative = builder.ashr(found, ir.Constant(_ints(64), [63] * LANES))
        pointer = _pointer(target, builder, signature.args[0], array, index, _ints(64))
        more = builder.and_(negative, _everywhere(builder, prime))
        builder.store(builder.add(found, more), pointer, align=8)
        return target.get_dummy_value()

    return types.none(array, types.int64, lanes, types.int64), generate


@intrinsic
def load_word(context: Any, array: Any, index: Any) -> tuple[Any, Gen]:
    """Elements index ... index + 7 of an array of bytes, as an integer whose lowest byte comes first."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(target, builder, signature.args[0], arguments[0], arguments[1], ir.IntType(64))
        return builder.load(pointer, align=1)

    return types.uint64(array, types.int64), generate


@intrinsic
def store_word(context: Any, array: Any, index: Any, value: Any) -> tuple[Any, Gen]:
    """The inverse of `load_word`."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(target, builder, signature.args[0], arguments[0], arguments[1], ir.IntType(64))
        builder.store(arguments[2], pointer, align=1)
        return target.get_dummy_value()

    return types.none(array, types.int64, types.uint64), generate


@intrinsic
def gather(context: Any, array: Any, at: Any, order: Any, index: Any) -> tuple[Any, Gen]:
    """Elements at + order[index], ... at + order[index + 7] of an array of float64, for an array of int32."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, at, order, index = arguments
        base = _pointer(target, builder, signature.args[0], values, at, ir.DoubleType())
        places = builder.load(_pointer(target, builder, signature.args[2], order, index, _ints(32)), align=4)
        return gathered(builder, base, places)

    return lanes(array, types.int64, order, types.int64), generate


def _everywhere(builder: Any, value: Any) -> Any:
    """A 64-bit integer in every lane."""
    empty = ir.Constant(_ints(64), ir.Undefined)
    first = builder.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, empty, ir.Constant(_ints(32), [0] * LANES))


def gathered(builder: Any, base: Any, places: Any) -> Any:
    """In LLVM: the doubles at a pointer, plus each of eight int32."""
    all_first = _everywhere(builder, builder.ptrtoint(base, ir.IntType(64)))
    distances = builder.shl(builder.sext(places, _ints(64)), ir.Constant(_ints(64), [3] * LANES))
    pointers = builder.inttoptr(builder.add(all_first, distances), ir.VectorType(ir.DoubleType().as_pointer(), LANES))
    mask = ir.Constant(ir.VectorType(ir.IntType(1), LANES), [1] * LANES)
    kind = ir.FunctionType(_VECTOR, [pointers.type, ir.IntType(32), mask.type, _VECTOR])
    name = f"llvm.masked.gather.v{LANES}f64.v{LANES}p0f64"
    function = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
    return builder.call(function, [pointers, ir.Constant(ir.IntType(32), 8), mask, ir.Constant(_VECTOR, None)])


@intrinsic
def transposed(context: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> tuple[Any, Gen]:
    """The eight columns of the matrix whose rows are eight vectors."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows = list(arguments)
        for width in (4, 2, 1):  # swap the off-diagonal quarters of each block of 2 width
            low = [lane if not lane & width else LANES + lane - width for lane in range(LANES)]
            high = [lane + width if not lane & width else LANES + lane for lane in range(LANES)]
            swapped = list(rows)
            for row in range(LANES):
                if not row & width:
                    pair = rows[row], rows[row + width]
                    for place, order in ((row, low), (row + width, high)):
                        swapped[place] = builder.shuffle_vector(*pair, ir.Constant(_ints(32), order))
            rows = swapped
        return target.make_tuple(builder, signature.return_type, rows)

    return types.UniTuple(lanes, LANES)(*[lanes] * LANES), generate  # type: ignore[no-untyped-call]
