"""Eight floats at a time, for Numba kernels on the CPU.

Numba turns simple loops into vector instructions, but neither a short run of known length nor additions to
neighbouring cells: these say so to LLVM, which makes of them what the machine has (one AVX, two SSE or NEON
instructions). Arrays are one-dimensional and contiguous, float32 or sums in int64; places count numbers from their
beginning, and nothing
is checked. No step is left to the compiler's choice, so that every compilation gives the same bits.
A CPU without fused multiply-add gets there by slow calls. Numba's cache does not look at this file: after a
change here change insert.py too, or clear __pycache__.
"""
from __future__ import annotations

import struct
from typing import Any, Sequence

from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

LANES = 8
EIGHT, SIXTEEN = (ir.VectorType(ir.FloatType(), n) for n in (LANES, 2 * LANES))
EIGHT_DOUBLES, EIGHT_INTEGERS = ir.VectorType(ir.DoubleType(), LANES), ir.VectorType(ir.IntType(64), LANES)
ROUNDER = 1.5 * 2.0 ** 52  # what is added to a double below 2⁵¹ stands, rounded, in the lowest bits of the sum
ROUNDER_BITS = struct.unpack("<q", struct.pack("<d", ROUNDER))[0]


def _place(context: Any, builder: Any, array_type: Any, array: Any, at: Any, vector: Any) -> Any:
    """Pointer to a vector in an array, at any float."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), vector.as_pointer())


def _packed(builder: Any, values: Sequence[Any]) -> Any:
    """A vector of these values, zero in what is left of its lanes."""
    vector = ir.Constant(EIGHT, [0.0] * LANES)
    for lane, value in enumerate(values):
        vector = builder.insert_element(vector, value, ir.Constant(ir.IntType(32), lane))
    return vector


@intrinsic
def copy_eight(typing_context, target, at, source, start):  # type: ignore[no-untyped-def]
    """target[at:at + 8] = source[start:start + 8]"""
    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        target, at, source, start = arguments
        values = builder.load(_place(context, builder, signature.args[2], source, start, EIGHT), align=4)
        builder.store(values, _place(context, builder, signature.args[0], target, at, EIGHT), align=4)
        return context.get_dummy_value()
    return types.void(target, types.intp, source, types.intp), code


@intrinsic
def split_eight(typing_context, target, at_real, at_imaginary, source, start):  # type: ignore[no-untyped-def]
    """target[at_real:…] = source[start:start + 16:2], target[at_imaginary:…] = source[start + 1:start + 16:2]"""
    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        target, at_real, at_imaginary, source, start = arguments
        values = builder.load(_place(context, builder, signature.args[3], source, start, SIXTEEN), align=4)
        for part, at in enumerate((at_real, at_imaginary)):
            lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [2 * lane + part for lane in range(LANES)])
            chosen = builder.shuffle_vector(values, ir.Constant(SIXTEEN, ir.Undefined), lanes)
            builder.store(chosen, _place(context, builder, signature.args[0], target, at, EIGHT), align=4)
        return context.get_dummy_value()
    return types.void(target, types.intp, types.intp, source, types.intp), code


@intrinsic
def fill_eight(typing_context, target, at, value):  # type: ignore[no-untyped-def]
    """target[at:at + 8] = value"""
    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        target, at, value = arguments
        place = _place(context, builder, signature.args[0], target, at, EIGHT)
        builder.store(_packed(builder, [value] * LANES), place, align=4)
        return context.get_dummy_value()
    return types.void(target, types.intp, types.float32), code


@intrinsic
def add_two_cells(typing_context, sums, at, scale, near, far, re, im, w):  # type: ignore[no-untyped-def]
    """sums[at:at + 6] += scale · (near·(re, im, w), far·(re, im, w)); the two numbers after them are written as read.

    Sums of int64 take the nearest integers of terms below 2⁵⁰.
    """
    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        sums, at, scale, near, far, re, im, w = arguments
        place = _place(context, builder, signature.args[0], sums, at, EIGHT)
        added = builder.fmul(_packed(builder, [re, im, w] * 2), _packed(builder, [near] * 3 + [far] * 3))
        multiply_add = get_or_insert_function(builder.module, ir.FunctionType(EIGHT, [EIGHT] * 3), "llvm.fma.v8f32")
        added = builder.call(multiply_add, [added, _packed(builder, [scale] * LANES), builder.load(place, align=4)])
        builder.store(added, place, align=4)
        return context.get_dummy_value()

    def code_of_integers(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        sums, at, scale, near, far, re, im, w = arguments
        place = _place(context, builder, signature.args[0], sums, at, EIGHT_INTEGERS)
        added = builder.fmul(_packed(builder, [re, im, w] * 2), _packed(builder, [near] * 3 + [far] * 3))
        added = builder.fpext(builder.fmul(added, _packed(builder, [scale] * LANES)), EIGHT_DOUBLES)
        added = builder.fadd(added, ir.Constant(EIGHT_DOUBLES, [ROUNDER] * LANES))
        added = builder.sub(builder.bitcast(added, EIGHT_INTEGERS), ir.Constant(EIGHT_INTEGERS, [ROUNDER_BITS] * LANES))
        builder.store(builder.add(builder.load(place, align=8), added), place, align=8)
        return context.get_dummy_value()
    return types.void(sums, types.intp, *[types.float32] * 6), code_of_integers if sums.dtype == types.int64 else code


@intrinsic
def fetch(typing_context, sums, at):  # type: ignore[no-untyped-def]
    """Ask for sums[at] to be brought near; of no effect on any value, and no fault wherever it is."""
    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        byte, number = ir.IntType(8), ir.IntType(32)
        pointer = byte.as_pointer()
        prefetch = get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [pointer, number, number, number]), "llvm.prefetch")
        place = builder.bitcast(_place(context, builder, signature.args[0], arguments[0], arguments[1], EIGHT), pointer)
        builder.call(prefetch, [place, number(1), number(3), number(1)])  # to write, into all caches, data
        return context.get_dummy_value()
    return types.void(sums, types.intp), code
