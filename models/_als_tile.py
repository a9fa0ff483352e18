"""Dense float32 algebra for the kernels of `_als_kernels`: one product kept in registers, and what is built on it.

A matrix of order D has its upper half valid, whole tiles of rows, and the row stride that `padded` gives: whole tiles,
and one more, for a stride of a power of two would map all rows to the same few sets of the cache.
"""

from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

ir = cgutils.ir

LINE = 16
"""Numbers that a cache fetches at once."""
TILE, LANES = 4, 16
"""Rows and columns of the part of a matrix that stays in registers: eight vectors of eight numbers."""
PANEL = 16
"""Rows that `factorize` finishes before it subtracts them from the rest; a multiple of TILE and LANES."""
FAST: Any = {"reassoc", "contract", "arcp", "nsz"}
"""Reordered sums and fused products, but NaN and infinity stay what they are."""


@register_jitable
def padded(dim: int) -> int:
    """The row stride for D columns."""
    return -(-dim // LANES) * LANES + LANES


def _add_products(
    typing_context: Any,
    a: Any,
    a_at: Any,
    a_stride: Any,
    left: Any,
    left_at: Any,
    left_stride: Any,
    right: Any,
    right_at: Any,
    right_stride: Any,
    count: Any,
) -> Any:
    """a[r, j] += Σ_k left[k, r] right[k, j] for TILE rows r and LANES columns j.

    Every matrix is a C-contiguous float32 array, where in it the first number lies, and the row stride.
    """
    signature = types.void(
        *(a, types.intp, types.intp, left, types.intp, types.intp, right, types.intp, types.intp, types.intp)
    )
    return signature, _build


def _build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    real, whole = ir.FloatType(), context.get_value_type(types.intp)
    vector = ir.VectorType(real, 8)
    fast = ("reassoc", "contract", "nsz")

    def pointer(place: int) -> Any:
        array = context.make_array(signature.args[place])(context, builder, arguments[place])
        return builder.gep(array.data, [arguments[place + 1]])

    def load(at: Any) -> Any:
        return builder.load(builder.bitcast(at, vector.as_pointer()), align=4)

    a, left, right = pointer(0), pointer(3), pointer(6)
    a_stride, left_stride, right_stride, count = (arguments[place] for place in (2, 5, 8, 9))
    places = [
        builder.gep(a, [builder.add(builder.mul(a_stride, whole(row)), whole(8 * half))])
        for row in range(TILE)
        for half in range(2)
    ]
    sums = [cgutils.alloca_once_value(builder, load(place)) for place in places]
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), 8), [0] * 8)
    with cgutils.for_range(builder, count) as loop:
        row_of_right = builder.gep(right, [builder.mul(loop.index, right_stride)])
        row_of_left = builder.gep(left, [builder.mul(loop.index, left_stride)])
        halves = [load(builder.gep(row_of_right, [whole(8 * half)])) for half in range(2)]
        for row in range(TILE):
            factor = builder.load(builder.gep(row_of_left, [whole(row)]), align=4)
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), factor, ir.IntType(32)(0))
            spread = builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), lanes)
            for half in range(2):
                total = sums[2 * row + half]
                product = builder.fmul(spread, halves[half], flags=fast)
                builder.store(builder.fadd(builder.load(total), product, flags=fast), total)
    for place, total in zip(places, sums, strict=True):
        builder.store(builder.load(total), builder.bitcast(place, vector.as_pointer()), align=4)
    return context.get_dummy_value()


add_products: Any = intrinsic(_add_products)


def _fetch(typing_context: Any, table: Any, row: Any, column: Any) -> Any:
    """Has the cache begin to fetch table[row, column], float32, without waiting for it."""
    return types.void(table, types.intp, types.intp), _build_fetch


def _build_fetch(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    table, row, column = arguments
    array = context.make_array(signature.args[0])(context, builder, table)
    width = builder.extract_value(array.shape, 1)
    place = builder.gep(array.data, [builder.add(builder.mul(row, width), column)])
    place = builder.bitcast(place, ir.IntType(8).as_pointer())
    number = ir.IntType(32)
    function = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
    prefetch = cgutils.get_or_insert_function(builder.module, function, "llvm.prefetch.p0")
    builder.call(prefetch, [place, number(0), number(3), number(1)])  # to read, into every cache, data
    return context.get_dummy_value()


fetch: Any = intrinsic(_fetch)


@numba.njit(cache=True, nogil=True)
def add_gram(a: np.ndarray, left: np.ndarray, right: np.ndarray, first: int, dim: int, count: int) -> None:
    """Adds leftᵀ right to the upper half of a, from row and column `first` on; left is right with its rows scaled.

    a is `[D rounded up to LANES, padded(D)]`, and left and right are `[≥ count, padded(D)]`, of which `count` rows are
    taken.
    """
    stride = a.shape[1]
    for row in range(first, dim, TILE):
        for column in range(row // LANES * LANES, dim, LANES):
            add_products(a, row * stride + column, stride, left, row, stride, right, column, stride, count)


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def add_scaled(y: np.ndarray, factor: np.float32, x: np.ndarray) -> None:
    """Adds factor x to y."""
    for j in range(len(y)):
        y[j] += factor * x[j]


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def dot(x: np.ndarray, y: np.ndarray) -> np.float32:
    total = np.float32(0)
    for j in range(len(x)):
        total += x[j] * y[j]
    return total


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def factorize(a: np.ndarray, negative: np.ndarray, dim: int) -> None:
    """Overwrites a with its upper Cholesky factor R, RᵀR = a; NaN where a is not positive definite.

    a is as for `add_gram`; `negative`, `[≥ PANEL, padded(D)]`, is scratch.
    """
    for first in range(0, dim, PANEL):
        last = min(first + PANEL, dim)
        for k in range(first, last):
            pivot = a[k, k]
            scale = np.float32(1) / np.sqrt(pivot) if pivot > 0 else np.float32(np.nan)
            for j in range(k, dim):
                a[k, j] *= scale
            for i in range(k + 1, last):
                add_scaled(a[i, i:dim], -a[k, i], a[k, i:dim])
        if last < dim:
            for k in range(first, last):
                for j in range(last, dim):
                    negative[k - first, j] = -a[k, j]
            add_gram(a, negative, a[first:], last, dim, last - first)


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def solve(r: np.ndarray, b: np.ndarray, dim: int) -> None:
    """Overwrites b with the solution x of RᵀR x = b."""
    for k in range(dim):
        b[k] /= r[k, k]
        add_scaled(b[k + 1 : dim], -b[k], r[k, k + 1 : dim])
    for k in range(dim - 1, -1, -1):
        b[k] = (b[k] - dot(r[k, k + 1 : dim], b[k + 1 : dim])) / r[k, k]
