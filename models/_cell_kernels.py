"""Counting sorts of a matrix's cells, with no other memory than what they return.

`values` and `weights` hold a number a cell, or one number that all cells share.
"""

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def first_outside(indices: np.ndarray, rows: int, columns: int) -> int:
    """The first of indices `[N, 2]` that is no cell of a rows × columns matrix; −1 if none."""
    for k in range(len(indices)):
        if not (0 <= indices[k, 0] < rows and 0 <= indices[k, 1] < columns):
            return k
    return -1


@numba.njit(cache=True, nogil=True)
def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two lists of indices `[N, 2]` are equal, in the same order."""
    differing = abs(len(one) - len(other))
    for k in range(min(len(one), len(other))):
        differing += one[k, 0] != other[k, 0] or one[k, 1] != other[k, 1]
    return differing == 0


@numba.njit(cache=True, nogil=True)
def by_row(
    indices: np.ndarray, values: np.ndarray, weights: np.ndarray, rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The cells at indices `[N, 2]` by row and then column: starts int64 `[rows + 1]`, the columns int32 `[N]`, values
    and weights."""
    starts = np.zeros(rows + 1, np.int64)
    for k in range(len(indices)):
        starts[indices[k, 0] + 1] += 1
    starts = np.cumsum(starts)
    free, columns = starts.copy(), np.empty(len(indices), np.int32)
    sorted_values, sorted_weights = np.empty(len(values), np.float32), np.empty(len(weights), np.float32)
    sorted_values[0], sorted_weights[0] = values[0], weights[0]
    for k in range(len(indices)):
        place = free[indices[k, 0]]
        free[indices[k, 0]] += 1
        columns[place] = indices[k, 1]
        if len(values) > 1:
            sorted_values[place] = values[k]
        if len(weights) > 1:
            sorted_weights[place] = weights[k]
    for row in range(rows):
        first, last = starts[row], starts[row + 1]
        falls = False
        for k in range(first + 1, last):
            falls |= columns[k] < columns[k - 1]
        if falls:
            order = first + np.argsort(columns[first:last], kind="mergesort")
            columns[first:last] = columns[order]
            if len(values) > 1:
                sorted_values[first:last] = sorted_values[order]
            if len(weights) > 1:
                sorted_weights[first:last] = sorted_weights[order]
    return starts, columns, sorted_values, sorted_weights


@numba.njit(cache=True, nogil=True)
def transposed(
    starts: np.ndarray, columns: np.ndarray, values: np.ndarray, weights: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The same cells by column, sorted by row within it; `size` is the number of columns."""
    turned = np.zeros(size + 1, np.int64)
    for column in columns:
        turned[column + 1] += 1
    turned = np.cumsum(turned)
    free, rows = turned.copy(), np.empty(len(columns), np.int32)
    sorted_values, sorted_weights = np.empty(len(values), np.float32), np.empty(len(weights), np.float32)
    sorted_values[0], sorted_weights[0] = values[0], weights[0]
    for row in range(len(starts) - 1):
        for k in range(starts[row], starts[row + 1]):
            place = free[columns[k]]
            free[columns[k]] += 1
            rows[place] = row
            if len(values) > 1:
                sorted_values[place] = values[k]
            if len(weights) > 1:
                sorted_weights[place] = weights[k]
    return turned, rows, sorted_values, sorted_weights


@numba.njit(cache=True, nogil=True)
def first_twice(starts: np.ndarray, columns: np.ndarray) -> tuple[int, int]:
    """The row and column of the first cell that comes more than once; −1 if none. A row's columns are sorted."""
    for row in range(len(starts) - 1):
        for k in range(starts[row] + 1, starts[row + 1]):
            if columns[k] == columns[k - 1]:
                return row, columns[k]
    return -1, -1


@numba.njit(cache=True, nogil=True)
def merged(
    starts: np.ndarray, columns: np.ndarray, values: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Each cell once, its values and weights added up; both have a number a cell, and are overwritten."""
    found, last = np.zeros_like(starts), -1
    for row in range(len(starts) - 1):
        value = weight = 0.0
        for k in range(starts[row], starts[row + 1]):
            if k == starts[row] or columns[k] != columns[k - 1]:
                last += 1
                value = weight = 0.0
            value += values[k]
            weight += weights[k]
            columns[last], values[last], weights[last] = columns[k], value, weight
        found[row + 1] = last + 1
    return found, columns[: last + 1].copy(), values[: last + 1].copy(), weights[: last + 1].copy()
