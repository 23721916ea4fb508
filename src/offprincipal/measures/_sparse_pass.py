"""The compiled loops behind `_products`: a difference that is mostly zeros, multiplied by its nonzeros alone.

Rows are taken in blocks of `HEIGHT`, columns of the result in tiles of `TILE` bytes, so that a tile of a block stays
near the core while each column of the step picks its rows among them. The sum of one row of a tile is held in
registers: `_accumulate` writes that loop for LLVM by hand, because numba gives it no way to know that the arrays do
not overlap (72 ms for 16 % of 2730 x 1536 where the same loop in Python syntax takes 107).
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

HEIGHT = 128
"""Rows of a block. Row numbers within one are bytes."""

TILE = 512
"""Bytes of a row of a tile: eight registers of AVX-512, as many sums as its two units keep busy."""

RUN = 24
"""Blocks that are summed before their sum is added to the total: sums of few terms err less (*ours*, measured)."""

_compiled = njit(nogil=True, cache=True, error_model="numpy")


@_compiled
def count(before, after, lying, starts):
    """Where the weights that changed begin, block after block, and in a block column after column.

    ``before`` and ``after`` are codes of bfloat16, uint16 ``[R, n]``, or ``[n, R]`` where they are ``lying``. Those
    of block b and column j will stand from ``starts[b, j]`` to ``starts[b, j + 1]`` (int64 [blocks, n + 1]). Returns
    how many there are. A zero that changed its sign is among them, and adds nothing.
    """
    height, width = before.shape[::-1] if lying else before.shape
    starts[:] = 0
    if lying:
        for j in range(width):
            for b in range(starts.shape[0]):
                part = slice(b * HEIGHT, min(height, (b + 1) * HEIGHT))
                x, y, changed = before[j, part], after[j, part], 0
                for i in range(x.size):
                    changed += x[i] != y[i]
                starts[b, j + 1] = changed
    else:
        for i in range(height):
            first = starts[i // HEIGHT]
            for j in range(width):
                first[j + 1] += before[i, j] != after[i, j]
    total = 0
    for b in range(starts.shape[0]):
        starts[b, 0] = total
        for j in range(1, width + 1):
            total += starts[b, j]
            starts[b, j] = total
    return total


@_compiled
def columns(before, after, lying, starts, rows, first, second):
    """Note the weights that `count` counted.

    ``rows`` (uint8) counts from the block's first row and rises within a column; ``first`` and ``second`` (uint32)
    are the bits of the two weights in float32.
    """
    where, at = np.empty(before.shape[1], np.int64), starts.copy()
    for r in range(before.shape[0]):
        x, y, changed = before[r], after[r], 0
        for c in range(x.size):  # without a branch: which weights changed cannot be foretold
            where[changed] = c
            changed += x[c] != y[c]
        for m in range(changed):
            c = where[m]
            i, j = (c, r) if lying else (r, c)
            b = i // HEIGHT
            k = at[b, j]
            rows[k], first[k], second[k] = i - b * HEIGHT, _wide(x[c]), _wide(y[c])
            at[b, j] = k + 1


@_compiled
def _wide(code):
    """The bits of a bfloat16 as a float32."""
    return np.uint32(code) << np.uint32(16)


@_compiled
def add_cross(starts, rows, values, codes, lying, total):
    """Add ``D^T W`` to ``total [n, n]``, float32: D as `columns` gives it, with ``values`` (float32); W in codes."""
    height, size = codes.shape[::-1] if lying else codes.shape
    width = TILE // total.itemsize
    part, bits = _aligned(size, width, total), _aligned(HEIGHT, width, np.empty(0, np.uint32))
    tile = bits.view(np.float32)
    bits[:], part[:] = 0, 0.0
    for left in range(0, size, width):
        right = min(size, left + width)
        for b in range(starts.shape[0]):
            top = b * HEIGHT
            bottom = min(height, top + HEIGHT)
            if lying:
                for j in range(left, right):
                    for i in range(top, bottom):
                        bits[i - top, j - left] = _wide(codes[j, i])
            else:
                for i in range(top, bottom):
                    for j in range(left, right):
                        bits[i - top, j - left] = _wide(codes[i, j])
            _add_block(starts[b], rows, values, tile, 0, part)
            if b % RUN == RUN - 1 or b == starts.shape[0] - 1:
                _move(part, 0, total, left, right)


@_compiled
def add_square(starts, rows, values, total):
    """Add ``D^T D`` to what lies on and below the diagonal of ``total [n, n]``; above it, anything.

    D as `columns` gives it, ``values`` in the dtype of ``total``.
    """
    size, width = len(total), TILE // total.itemsize
    part, tile = _aligned(size, width, total), _aligned(HEIGHT, width, total)
    tile[:], part[:] = 0.0, 0.0
    for left in range(0, size, width):
        right = min(size, left + width)
        for b in range(starts.shape[0]):
            for j in range(left, right):
                for k in range(starts[b, j], starts[b, j + 1]):
                    tile[rows[k], j - left] = values[k]
            _add_block(starts[b], rows, values, tile, left, part)
            for j in range(left, right):
                for k in range(starts[b, j], starts[b, j + 1]):
                    tile[rows[k], j - left] = 0.0
            if b % RUN == RUN - 1 or b == starts.shape[0] - 1:
                _move(part, left, total, left, right)


@_compiled
def _add_block(starts, rows, values, tile, first, part):
    """Add a block's columns from ``first`` on, times its tile."""
    for j in range(first, len(part)):
        if starts[j + 1] > starts[j]:
            _accumulate(part[j], tile, rows, values, starts[j], starts[j + 1])  # pyright: ignore[reportCallIssue]


@_compiled
def _move(part, first, total, left, right):
    """Add the rows from ``first`` on to these columns of the total, and start anew."""
    for j in range(first, len(part)):
        for c in range(right - left):
            total[j, left + c] += part[j, c]
        part[j] = 0.0


@_compiled
def _aligned(height, width, like):
    """Room at a multiple of 64 bytes: a register that straddles two cache lines is loaded at half the speed."""
    room = np.empty(height * width + 64 // like.itemsize, like.dtype)
    start = (-room.ctypes.data % 64) // like.itemsize
    return room[start : start + height * width].reshape(height, width)


@intrinsic
def _accumulate(typing, part, tile, rows, values, start, stop):
    """``part += sum of values[k] * tile[rows[k]]`` over start <= k < stop; a row of the tile is `TILE` bytes."""

    def generate(context, builder, signature, arguments):
        def data(number):
            return context.make_array(signature.args[number])(context, builder, arguments[number]).data

        scalar = context.get_data_type(values.dtype)
        width = TILE // context.get_abi_sizeof(scalar)
        vector, index = ir.VectorType(scalar, width), ir.IntType(64)
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
        total = cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * width))
        begin, end = arguments[4:]
        with cgutils.for_range_slice(builder, begin, end, index(1), index) as (k, _):
            row = builder.zext(builder.load(builder.gep(data(2), [k])), index)
            place = builder.gep(data(1), [builder.mul(row, index(width))])
            dense = builder.load(builder.bitcast(place, vector.as_pointer()), align=64)
            value = builder.load(builder.gep(data(3), [k]))
            single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
            every = builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), lanes)
            product = builder.fmul(every, dense, flags=("contract",))
            builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
        into = builder.bitcast(data(0), vector.as_pointer())
        builder.store(builder.fadd(builder.load(into, align=64), builder.load(total)), into, align=64)
        return context.get_dummy_value()

    return types.void(part, tile, rows, values, start, stop), generate
