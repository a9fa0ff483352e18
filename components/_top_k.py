"""The best unseen items of many queries over the whole catalogue, where a score is a dot product."""

import numba
import numpy as np

from shortlist import ShortlistError

ROWS, COLUMNS = 512, 4096
"""Queries and items of one product: what is held of the scores, 8 MiB, whatever the numbers of users and items."""
STRIDE = 64
"""Scores that are compared with the worst of the best so far before any of them is looked at alone."""


def top_k(
    queries: np.ndarray,
    items: np.ndarray,
    k: int,
    exclude_offsets: np.ndarray,
    exclude_items: np.ndarray,
    first_id: int = 2,
    name: str = "model",
) -> np.ndarray:
    """The k items of highest dot product of every query, in blocks.

    A block of scores is one float32 matrix product; a kernel then passes over it once, keeping the best k of every row
    in a heap: nearly all scores are below the worst of these, and are skipped `STRIDE` at a time.

    Args:
      queries: float32 `[Q, D]`.
      items: float32 `[I, D]`.
      k: at least 1; may exceed the number of items.
      exclude_offsets: int `[Q + 1]`; query q is never given `exclude_items[offsets[q]:offsets[q + 1]]`.
      exclude_items: int32 `[N]`, item rows, in any order.
      first_id: rows below this one are reserved and never returned.
      name: of the model, for the error.

    Returns:
      int32 `[Q, k]`, best first, ties by the lower row; where fewer than k items are left, the rest is 0. The same as
      `shortlist.models._base.masked_top_k` of the same scores.

    Raises:
      ShortlistError: if a score is not a number.
    """
    queries, items = np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(items, np.float32)
    owner = np.repeat(np.arange(len(queries)), np.diff(exclude_offsets))
    excluded = exclude_items[np.lexsort((exclude_items, owner))].astype(np.int32)
    offsets = exclude_offsets.astype(np.int64)
    best = np.zeros((len(queries), k), np.int32)
    rows, columns = min(ROWS, len(queries)), min(COLUMNS, len(items))
    scores = np.empty((rows, columns), np.float32)
    value = np.empty((rows, k), np.float32)
    for start in range(0, len(queries), ROWS):
        stop = min(start + ROWS, len(queries))
        block, place, ends = queries[start:stop], offsets[start:stop].copy(), offsets[start + 1 : stop + 1]
        kept = np.zeros(stop - start, np.int64)
        for first in range(0, len(items), COLUMNS):
            part = items[first : first + COLUMNS]
            found = np.matmul(block, part.T, out=scores[: stop - start, : len(part)])
            _select(found, first, first_id, excluded, place, ends, value, best[start:stop], kept)
        if (kept < 0).any():
            raise ShortlistError(
                f"`{name}` scores items with NaN, so they have no order. Train it with a smaller learning rate "
                f"or more regularization. Received: NaN among queries {start} to {stop - 1}."
            )
        _sort(value, best[start:stop], kept)
    return best


@numba.njit(inline="always")
def _worse(value: float, item: int, other_value: float, other: int) -> bool:
    return value < other_value or (value == other_value and item > other)


@numba.njit
def _sink(value: np.ndarray, item: np.ndarray, root: int, size: int) -> None:
    """Restores the heap, its worst on top, after `root` has been replaced."""
    v, i = value[root], item[root]
    while True:
        child = 2 * root + 1
        if child >= size:
            break
        if child + 1 < size and _worse(value[child + 1], item[child + 1], value[child], item[child]):
            child += 1
        if not _worse(value[child], item[child], v, i):
            break
        value[root], item[root] = value[child], item[child]
        root = child
    value[root], item[root] = v, i


@numba.njit
def _rise(value: np.ndarray, item: np.ndarray, leaf: int) -> None:
    """Restores the heap after `leaf` has been added."""
    v, i = value[leaf], item[leaf]
    while leaf > 0:
        parent = (leaf - 1) // 2
        if not _worse(v, i, value[parent], item[parent]):
            break
        value[leaf], item[leaf] = value[parent], item[parent]
        leaf = parent
    value[leaf], item[leaf] = v, i


@numba.njit
def _mask(scores: np.ndarray, first: int, excluded: np.ndarray, place: int, stop: int) -> int:
    """Gives the excluded items from `place` on −∞; returns where to go on in the next block."""
    while place < stop and excluded[place] < first + len(scores):
        if excluded[place] >= first:
            scores[excluded[place] - first] = -np.inf
        place += 1
    return place


@numba.njit
def _take(scores: np.ndarray, first: int, start: int, value: np.ndarray, item: np.ndarray, size: int) -> int:
    """Takes the scores of one row from column `start` on into its heap; returns the heap's size, −1 at a NaN."""
    k = len(value)
    worst = value[0] if size == k else np.float32(-np.inf)
    for chunk in range(start, len(scores), STRIDE):
        end = chunk + STRIDE
        if end <= len(scores):
            promising = 0
            for c in range(chunk, chunk + STRIDE):  # of a fixed length and without a branch: vector instructions
                promising += not (scores[c] <= worst)  # a NaN too
            if promising == 0:
                continue
        for c in range(chunk, min(end, len(scores))):
            s = scores[c]
            if s <= worst:
                continue
            if np.isnan(s):
                return -1
            if size < k:
                value[size], item[size] = s, first + c
                _rise(value, item, size)
                size += 1
            else:
                value[0], item[0] = s, first + c
                _sink(value, item, 0, k)
            if size == k:
                worst = value[0]
    return size


@numba.njit(parallel=True, cache=True)
def _select(
    scores: np.ndarray,
    first: int,
    first_id: int,
    excluded: np.ndarray,
    place: np.ndarray,
    stop: np.ndarray,
    value: np.ndarray,
    best: np.ndarray,
    kept: np.ndarray,
) -> None:
    """Takes the scores of a block, float32 `[B, n]` of the items from `first` on, into each row's heap of k.

    Args:
      scores: overwritten with −∞ where an item is excluded.
      first: the item row of the first column.
      first_id: rows below are left out.
      excluded: int32 `[N]`, ascending in each row.
      place: int64 `[B]`, where in `excluded` each row has got to; moved on.
      stop: int64 `[B]`, where each row's part of `excluded` ends.
      value: float32 `[B, k]`, the heaps.
      best: int32 `[B, k]`, their items.
      kept: int64 `[B]`, their sizes; −1 from the first NaN on.
    """
    for r in numba.prange(len(scores)):
        if kept[r] >= 0:
            place[r] = _mask(scores[r], first, excluded, place[r], stop[r])
            kept[r] = _take(scores[r], first, max(first_id - first, 0), value[r], best[r], kept[r])


@numba.njit(parallel=True, cache=True)
def _sort(value: np.ndarray, best: np.ndarray, kept: np.ndarray) -> None:
    """Turns each heap into a list, best first."""
    for r in numba.prange(len(best)):
        heap, item = value[r], best[r]
        for last in range(kept[r] - 1, 0, -1):
            heap[0], heap[last] = heap[last], heap[0]
            item[0], item[last] = item[last], item[0]
            _sink(heap, item, 0, last)
