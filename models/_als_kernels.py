"""The half-step of WALS on the CPU: a row at a time, its cells and its system in the cache of one core.

Each kernel solves the rows of one batch, and threads take batches as they get free. A row's sums have an order of
their own, so the result depends neither on the threads nor on the rows that share a batch.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np

from shortlist.models._als_tile import (
    FAST,
    LANES,
    LINE,
    PANEL,
    TILE,
    add_gram,
    add_products,
    add_scaled,
    dot,
    factorize,
    fetch,
    padded,
    solve,
)
from shortlist.models._wals import PaddedRows

GATHERED = 64
"""Cells that are added to a system at once."""
NEAR = 8192
"""Numbers of the vectors that are still in the nearest cache when they are needed again (32 KB)."""
AHEAD = 16
"""Cells between the one whose vector is read for the first time and that whose vector is fetched meanwhile."""
FAR = 2**21
"""Numbers in a table beyond which its vectors come from main memory (8 MB): a long row then goes through cg alone, so
that its own stay in the core's cache from one step to the next."""
LONG = 128
"""Cells of such a row."""
HUGE = 2**22
"""Bytes from which on NumPy asks for huge pages."""
CONVERGED = 1e-14
"""Squared length of a residual, relative to the first one's, at which float32 has no more to give."""


def solve_rows(
    rows: PaddedRows,
    own: np.ndarray,
    other: np.ndarray,
    gram: np.ndarray,
    ridge: np.ndarray,
    w0: float,
    solver: str,
    cg_steps: int,
    block_size: int,
) -> Iterator[tuple[np.ndarray, float]]:
    """Solves the rows of each batch, in the order of the batches.

    Args:
      rows: the batches.
      own: float32 `[N, D]`, the table of factors of this side, which is overwritten; cg and block start from it.
      other: float32 `[M, D]`, the factors of the other side, best `aligned`.
      gram: float32 `[D, D]`, otherᵀ other.
      ridge: float32 `[R]`, the weight of |u|² for each row of `rows`.
      w0: the weight of an empty cell.
      solver: "cholesky", "cg" or "block".
      cg_steps: of "cg".
      block_size: of "block".

    Yields:
      The rows of the table that are solved, `[B]`, and Σ c (a − u·v)² − w0 (u·v)² over their cells.
    """
    dim = other.shape[1]
    wide = np.zeros((-(-dim // LANES) * LANES, padded(dim)), np.float32)
    wide[:dim, :dim] = np.float32(w0) * gram
    cells = rows.cells
    sparse = (cells.starts, cells.columns, cells.values, cells.weights)

    kernels: dict[str, tuple[Any, ...]] = {
        "cholesky": (_cholesky,),
        "cg": (_cg, cg_steps),
        "block": (_block, min(block_size, dim)),
    }
    kernel, *options = kernels[solver]

    def batch(local: np.ndarray) -> tuple[np.ndarray, float]:
        ids = rows.ids[local]
        return ids, kernel(local, *sparse, other, wide, ridge[local], np.float32(w0), own, ids, *options)

    with ThreadPoolExecutor(numba.get_num_threads()) as pool:
        yield from pool.map(batch, rows.batches)


def aligned(table: np.ndarray) -> np.ndarray:
    """The table from where a line of the cache begins, so that no vector of whole lines touches one more.

    A large one is copied in any case: rows are read from all over it, and NumPy puts a large new array in huge pages.
    """
    line = LINE * table.itemsize
    if table.ctypes.data % line == 0 and table.nbytes < HUGE:
        return _read_only(table)
    room = np.empty(table.nbytes + line, np.uint8)
    first = -room.ctypes.data % line
    found = room[first : first + table.nbytes].view(table.dtype).reshape(table.shape)
    found[:] = table
    return _read_only(found)


def _read_only(table: np.ndarray) -> np.ndarray:
    """What the kernels are compiled for: a tensor's numbers are."""
    table = table.view()
    table.flags.writeable = False
    return table


@numba.njit(cache=True, nogil=True)
def _at(numbers: np.ndarray, cell: int) -> np.float32:
    """The number of a cell; see `Cells` for those that all share one."""
    return numbers[min(cell, len(numbers) - 1)]


@numba.njit(cache=True, nogil=True)
def _longest(ids: np.ndarray, starts: np.ndarray) -> int:
    most = 0
    for row in ids:
        most = max(most, starts[row + 1] - starts[row])
    return most


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def _dots(vectors: np.ndarray, columns: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
    """Sets out[k] to vectors[columns[k]] · x."""
    n, dim = len(columns), len(x)
    for k in range(0, n - 3, 4):
        i0, i1, i2, i3 = columns[k], columns[k + 1], columns[k + 2], columns[k + 3]
        s0 = s1 = s2 = s3 = np.float32(0)
        for d in range(dim):
            s0 += vectors[i0, d] * x[d]
            s1 += vectors[i1, d] * x[d]
            s2 += vectors[i2, d] * x[d]
            s3 += vectors[i3, d] * x[d]
        out[k], out[k + 1], out[k + 2], out[k + 3] = s0, s1, s2, s3
    for k in range(n // 4 * 4, n):
        out[k] = dot(vectors[columns[k]], x)


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def _first_dots(vectors: np.ndarray, columns: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
    """`_dots` of the first columns, as many as `out` has; the vectors of those that follow are fetched meanwhile.

    Its loop is written out once more, since a test for it within `_dots` costs 4 %, a shared function 30 %."""
    n, dim = len(out), len(x)
    for k in range(0, n - 3, 4):
        if k + AHEAD + 4 <= len(columns):
            for cell in range(k + AHEAD, k + AHEAD + 4):
                for d in range(0, dim, LINE):
                    fetch(vectors, columns[cell], d)
        i0, i1, i2, i3 = columns[k], columns[k + 1], columns[k + 2], columns[k + 3]
        s0 = s1 = s2 = s3 = np.float32(0)
        for d in range(dim):
            s0 += vectors[i0, d] * x[d]
            s1 += vectors[i1, d] * x[d]
            s2 += vectors[i2, d] * x[d]
            s3 += vectors[i3, d] * x[d]
        out[k], out[k + 1], out[k + 2], out[k + 3] = s0, s1, s2, s3
    for k in range(n // 4 * 4, n):
        out[k] = dot(vectors[columns[k]], x)


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def _combine(vectors: np.ndarray, columns: np.ndarray, factors: np.ndarray, y: np.ndarray) -> None:
    """Adds Σ_k factors[k] vectors[columns[k]] to y."""
    n, dim = len(columns), len(y)
    for k in range(0, n - 3, 4):
        i0, i1, i2, i3 = columns[k], columns[k + 1], columns[k + 2], columns[k + 3]
        f0, f1, f2, f3 = factors[k], factors[k + 1], factors[k + 2], factors[k + 3]
        for d in range(dim):
            y[d] += f0 * vectors[i0, d] + f1 * vectors[i1, d] + f2 * vectors[i2, d] + f3 * vectors[i3, d]
    for k in range(n // 4 * 4, n):
        add_scaled(y, factors[k], vectors[columns[k]])


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def _observed(
    targets: np.ndarray, weights: np.ndarray, low: int, high: int, w0: np.float32, scores: np.ndarray
) -> float:
    """What the cells from `low` to `high` add to the objective; `scores` are theirs."""
    total = 0.0
    for k in range(high - low):
        error = _at(targets, low + k) - scores[k]
        total += _at(weights, low + k) * error * error - w0 * scores[k] * scores[k]
    return total


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def _cholesky(
    ids: np.ndarray,
    starts: np.ndarray,
    columns: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    other: np.ndarray,
    gram: np.ndarray,
    ridge: np.ndarray,
    w0: np.float32,
    own: np.ndarray,
    places: np.ndarray,
) -> float:
    dim, stride = other.shape[1], gram.shape[1]
    system = np.empty_like(gram)
    right, left = np.zeros((GATHERED, stride), np.float32), np.zeros((GATHERED, stride), np.float32)
    scores = np.empty(GATHERED, np.float32)
    observed = 0.0
    for n in range(len(ids)):
        low, high = starts[ids[n]], starts[ids[n] + 1]
        x = own[places[n]]
        x[:] = 0
        system[:] = gram
        for d in range(dim):
            system[d, d] += ridge[n]
        for first in range(low, high, GATHERED):
            count = min(GATHERED, high - first)
            for k in range(count):
                v, c = other[columns[first + k]], _at(weights, first + k)
                wanted = c * _at(targets, first + k)
                for d in range(dim):
                    right[k, d] = v[d]
                    left[k, d] = (c - w0) * v[d]
                    x[d] += wanted * v[d]
            add_gram(system, left, right, 0, dim, count)
        factorize(system, left, dim)
        solve(system, x, dim)
        for first in range(low, high, GATHERED):
            last = min(first + GATHERED, high)
            _dots(other, columns[first:last], x, scores)
            observed += _observed(targets, weights, first, last, w0, scores)
    return observed


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def _times_gram(gram: np.ndarray, x: np.ndarray, columns_of_x: np.ndarray, out: np.ndarray) -> None:
    """Sets `out` to x gram, for TILE rows x `[TILE, D]` at once; `columns_of_x` `[D, TILE]` is scratch."""
    dim, stride = x.shape[1], gram.shape[1]
    for d in range(dim):
        for row in range(TILE):
            columns_of_x[d, row] = x[row, d]
    out[:] = 0
    for column in range(0, dim, LANES):
        add_products(out, column, stride, columns_of_x, 0, TILE, gram, column, stride, dim)


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def _cg(
    ids: np.ndarray,
    starts: np.ndarray,
    columns: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    other: np.ndarray,
    gram: np.ndarray,
    ridge: np.ndarray,
    w0: np.float32,
    own: np.ndarray,
    places: np.ndarray,
    steps: int,
) -> float:
    """TILE rows go in step, for their products with the Gramian; each has its own residual r and direction p. The rows
    come by length, the longest first."""
    dim, stride = other.shape[1], gram.shape[1]
    p, r = np.zeros((TILE, dim), np.float32), np.zeros((TILE, dim), np.float32)
    q, columns_of_p = np.zeros((TILE, stride), np.float32), np.zeros((dim, TILE), np.float32)
    length, goal = np.zeros(TILE, np.float32), np.zeros(TILE, np.float32)
    most = _longest(ids, starts)
    scores, change = np.empty((TILE, most), np.float32), np.empty(most, np.float32)
    wanted, excess = np.empty((TILE, most), np.float32), np.empty((TILE, most), np.float32)
    cells = max(TILE, NEAR // dim // TILE * TILE)
    coefficient = np.empty(cells, np.float32)
    observed = 0.0
    group = 0
    while group < len(ids):
        alone = other.size > FAR and starts[ids[group] + 1] - starts[ids[group]] > LONG
        size = 1 if alone else min(TILE, len(ids) - group)
        p[:] = 0
        for i in range(size):
            p[i] = own[places[group + i]]
        _times_gram(gram, p, columns_of_p, q)
        for i in range(size):
            low, high = starts[ids[group + i]], starts[ids[group + i] + 1]
            for d in range(dim):
                r[i, d] = -q[i, d] - ridge[group + i] * p[i, d]
            for k in range(high - low):
                c = _at(weights, low + k)
                wanted[i, k], excess[i, k] = c * _at(targets, low + k), c - w0
            for first in range(low, high, cells):
                last = min(first + cells, high)
                near = scores[i, first - low : last - low]
                _first_dots(other, columns[first:], p[i], near)
                a, b = wanted[i, first - low : last - low], excess[i, first - low : last - low]
                for k in range(last - first):
                    coefficient[k] = a[k] - b[k] * near[k]
                _combine(other, columns[first:last], coefficient, r[i])
            length[i] = dot(r[i], r[i])
            goal[i] = max(np.float32(CONVERGED) * length[i], np.float32(1e-30))
            p[i] = r[i]
        for taken in range(steps):
            last_step = taken == steps - 1
            _times_gram(gram, p, columns_of_p, q)
            for i in range(size):
                low, high = starts[ids[group + i]], starts[ids[group + i] + 1]
                product = q[i, :dim]
                add_scaled(product, ridge[group + i], p[i])
                curvature = dot(p[i], product)  # pᵀ A p, for which the cells' part of A p is not needed
                for first in range(low, high, cells):
                    last = min(first + cells, high)
                    near = change[first - low : last - low]
                    _dots(other, columns[first:last], p[i], near)
                    b = excess[i, first - low : last - low]
                    for k in range(last - first):
                        coefficient[k] = b[k] * near[k]
                    curvature += dot(coefficient[: last - first], near)
                    if not last_step:
                        _combine(other, columns[first:last], coefficient, product)
                if length[i] <= goal[i]:
                    continue
                step = length[i] / curvature
                add_scaled(own[places[group + i]], step, p[i])
                add_scaled(scores[i, : high - low], step, change[: high - low])
                if last_step:
                    continue
                add_scaled(r[i], -step, product)
                new = dot(r[i], r[i])
                for d in range(dim):
                    p[i, d] = r[i, d] + new / length[i] * p[i, d]
                length[i] = new
        for i in range(size):
            low, high = starts[ids[group + i]], starts[ids[group + i] + 1]
            observed += _observed(targets, weights, low, high, w0, scores[i])
        group += size
    return observed


@numba.njit(cache=True, nogil=True, fastmath=FAST)
def _block(
    ids: np.ndarray,
    starts: np.ndarray,
    columns: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    other: np.ndarray,
    gram: np.ndarray,
    ridge: np.ndarray,
    w0: np.float32,
    own: np.ndarray,
    places: np.ndarray,
    block_size: int,
) -> float:
    """One exact step in each block of coordinates after the other; the scores of the cells follow along."""
    dim, most = other.shape[1], _longest(ids, starts)
    stride = padded(block_size)
    system = np.zeros((stride - LANES, stride), np.float32)
    right, left = np.zeros((most, stride), np.float32), np.zeros((GATHERED, stride), np.float32)
    negative = np.zeros((PANEL, stride), np.float32)
    scores, step = np.empty(most, np.float32), np.empty(block_size, np.float32)
    observed = 0.0
    for n in range(len(ids)):
        low, high = starts[ids[n]], starts[ids[n] + 1]
        u = own[places[n]]
        _dots(other, columns[low:high], u, scores)
        for begin in range(0, dim, block_size):
            size = min(block_size, dim - begin)
            x, part = step[:size], u[begin : begin + size]
            for d in range(size):
                x[d] = -ridge[n] * part[d]
                system[d, :size] = gram[begin + d, begin : begin + size]
                system[d, d] += ridge[n]
            for d in range(dim):
                add_scaled(x, -u[d], gram[d, begin : begin + size])
            for first in range(0, high - low, GATHERED):
                count = min(GATHERED, high - low - first)
                for k in range(count):
                    cell = low + first + k
                    v, c = other[columns[cell], begin : begin + size], _at(weights, cell)
                    excess = c - w0
                    toward = c * _at(targets, cell) - excess * scores[first + k]
                    for d in range(size):
                        right[first + k, d] = v[d]
                        left[k, d] = excess * v[d]
                        x[d] += toward * v[d]
                add_gram(system, left, right[first:], 0, size, count)
            factorize(system, negative, size)
            solve(system, x, size)
            add_scaled(part, np.float32(1), x)
            for k in range(high - low):
                scores[k] += dot(right[k, :size], x)
        observed += _observed(targets, weights, low, high, w0, scores)
    return observed
