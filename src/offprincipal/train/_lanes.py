"""Eight entries at a time between a tensor and its packed values: what numba itself cannot write, as LLVM vectors.

`pack8` moves the allowed ones of eight neighbours to the front, `unpack8` puts them back where they came from; a table
of 256 orders, one per mask byte, says where. The permutation is AVX2's; on other processors `AVX2` is false and
``_cpu`` walks entry by entry. Lengths are the caller's affair: both touch eight entries on either side.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic as numba_intrinsic

AVX2 = get_host_cpu_features().get("avx2", False) and not any(
    getattr(config, name, None) for name in ("CPU_NAME", "CPU_FEATURES")
)
"""Whether the permutation exists here; a processor chosen by numba's own variables is not asked."""

intrinsic: Any = numba_intrinsic  # callers leave out the typing context that numba passes
_LANE, _BYTE = ir.IntType(32), ir.IntType(8)
_LANES, _BYTES = ir.VectorType(_LANE, 8), ir.VectorType(_BYTE, 8)


def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Per mask byte: which lane comes k-th, for each lane how many come before it, 255 where allowed; and how many."""
    allowed = (np.arange(256)[:, None] >> np.arange(8)) & 1
    front = np.argsort(1 - allowed, axis=1, kind="stable")
    before = np.cumsum(allowed, axis=1) - allowed
    orders = np.stack([front, before, 255 * allowed]).astype(np.uint8)
    return orders.reshape(-1), allowed.sum(axis=1).astype(np.uint8)


ORDERS, ONES = _tables()
_FRONT, _BEFORE, _ALLOWED = 0, 256 * 8, 2 * 256 * 8
"""Where the three tables start in `ORDERS`."""


class _Emit:
    """Vector loads and stores at ``array[index]``."""

    def __init__(self, context, builder):
        self.context, self.builder = context, builder

    def pointer(self, kind, array, index):
        return self.builder.gep(self.context.make_array(kind)(self.context, self.builder, array).data, [index])

    def load(self, pointer, bits):
        return self.builder.load(
            self.builder.bitcast(pointer, ir.VectorType(ir.IntType(bits), 8).as_pointer()), align=1
        )

    def store(self, value, pointer, bits):
        if bits < 32:
            value = self.builder.trunc(value, ir.VectorType(ir.IntType(bits), 8))
        target = self.builder.bitcast(pointer, ir.VectorType(ir.IntType(bits), 8).as_pointer())
        self.builder.store(value, target, align=1)

    def table(self, orders, byte, first):
        row = self.builder.add(self.builder.shl(byte, ir.Constant(byte.type, 3)), ir.Constant(byte.type, first))
        return self.load(self.pointer(types.Array(types.uint8, 1, "C"), orders, row), 8)

    def permute(self, value, order):
        kind = ir.FunctionType(_LANES, [_LANES, _LANES])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.x86.avx2.permd")
        return self.builder.call(function, [value, self.builder.zext(order, _LANES)])

    def shift(self, bits):
        return ir.Constant(_LANES, [32 - bits] * 8)


@intrinsic
def pack8(_, source, i, orders, byte, out, k):
    """``out[k:k+8]`` = the allowed ones of ``source[i:i+8]`` in front, as 32 bits; the rest is left over.

    source: uint16 (to the upper half) or uint32; orders: `ORDERS`; byte: the mask, lane j in bit j; out: uint32.
    """
    bits = source.dtype.bitwidth

    def generate(context, builder, signature, args):
        emit = _Emit(context, builder)
        value = emit.load(emit.pointer(source, args[0], args[1]), bits)
        if bits < 32:
            value = builder.shl(builder.zext(value, _LANES), emit.shift(bits))
        front = emit.permute(value, emit.table(args[2], args[3], _FRONT))
        emit.store(front, emit.pointer(out, args[4], args[5]), 32)
        return context.get_dummy_value()

    return types.void(source, types.intp, orders, types.intp, out, types.intp), generate


@intrinsic
def unpack8(_, target, i, orders, byte, packed, k):
    """``target[i:i+8]``, where allowed, = the next of ``packed[k:k+8]``; other entries are stored as they were.

    target: uint16 (takes the upper half) or uint32; packed: uint32. The mask comes from a table, not from a
    comparison: LLVM makes a masked store of the latter, which AMD runs in microcode, six times slower.
    """
    bits = target.dtype.bitwidth

    def generate(context, builder, signature, args):
        emit = _Emit(context, builder)
        place = emit.pointer(target, args[0], args[1])
        old = emit.load(place, bits)
        value = emit.permute(
            emit.load(emit.pointer(packed, args[4], args[5]), 32), emit.table(args[2], args[3], _BEFORE)
        )
        if bits < 32:
            old, value = builder.zext(old, _LANES), builder.lshr(value, emit.shift(bits))
        chosen = builder.sext(emit.table(args[2], args[3], _ALLOWED), _LANES)
        emit.store(builder.xor(old, builder.and_(builder.xor(old, value), chosen)), place, bits)
        return context.get_dummy_value()

    return types.void(target, types.intp, orders, types.intp, packed, types.intp), generate


@intrinsic
def fetch(_, array, i):
    """Ask for the cache line of ``array[i]``; a place beyond the end is harmless."""

    def generate(context, builder, signature, args):
        place = builder.bitcast(_Emit(context, builder).pointer(array, args[0], args[1]), _BYTE.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), _LANE, _LANE, _LANE])
        ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(ask, [place, _LANE(0), _LANE(3), _LANE(1)])  # to read, into every cache, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate
