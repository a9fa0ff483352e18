"""The best unseen items of many queries over the whole catalogue, where a score is a dot product."""

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np

from shortlist import ShortlistError

ROWS, COLUMNS = 256, 8192
"""Queries and items of one product, at most: what a thread holds of the scores, 8 MiB, whatever their numbers."""
EVEN = 16
"""Queries of a block are a multiple of it, so that products of fewer rows are computed like those of more."""
STRIDE = 32
"""Scores that are compared with the worst of the best so far before any of them is looked at alone."""
GROUP = 8
"""Scores of which the first block keeps the largest, to guess the worst of the best from."""
EMPTY = np.iinfo(np.int64).min
LOW = 0xFFFFFFFF


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

    Every thread (as many as numba has) takes blocks of queries. A block of scores is one float32 matrix product; a
    kernel then passes over it once, keeping the best k of every row in a heap: nearly all scores are no better than the
    worst of these, and are skipped `STRIDE` at a time. The heap starts from a bound: of the maxima of disjoint groups
    of scores the k-th largest has at least k scores above or at it.

    Args:
      queries: float32 `[Q, D]`.
      items: float32 `[I, D]`.
      k: at least 1; may exceed the number of items.
      exclude_offsets: int `[Q + 1]`; query q never gets `exclude_items[offsets[q]:offsets[q + 1]]`.
      exclude_items: int32 `[N]`, item rows, in any order.
      first_id: rows below this one are reserved and never returned.
      name: of the model, for the error.

    Returns:
      int32 `[Q, k]`, best first, ties by the lower row; where fewer than k items are left, the rest is 0. The same as
      `shortlist.models._base.masked_top_k` of the same scores. Products of another library, or of blocks of another
      size, may differ in the last bit.

    Raises:
      ShortlistError: if a score is not a number.
    """
    queries, items = np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(items, np.float32)
    offsets, exclude_items = exclude_offsets.astype(np.int64), np.asarray(exclude_items, np.int32)
    best = np.zeros((len(queries), k), np.int32)
    threads = numba.get_num_threads()
    blocks = max(threads, -(-len(queries) // (ROWS * threads)) * threads)  # as many for each thread
    size = -(-len(queries) // (blocks * EVEN)) * EVEN
    spare = [np.empty((size, min(COLUMNS, len(items))), np.float32) for _ in range(threads)]

    def block(start: int) -> None:
        rows = slice(start, min(start + size, len(queries)))
        bounds = offsets[rows.start : rows.stop + 1]
        excluded = exclude_items[bounds[0] : bounds[-1]]
        memory = spare.pop()
        heap, bad = _best_of(queries[rows], items, k, bounds - bounds[0], excluded, first_id, memory)
        spare.append(memory)
        if bad >= 0:
            raise ShortlistError(
                f"`{name}` scores items with NaN, so they have no order. Train it with a smaller learning rate "
                f"or more regularization. Received: NaN for query {start + bad}."
            )
        best[rows] = np.where(heap == EMPTY, 0, LOW - (heap & LOW))

    with _libraries().limit(limits=1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(block, range(0, len(queries), max(size, 1))):
            pass
    return best


@functools.cache
def _libraries() -> Any:
    """What limits the threads of NumPy's products; looking for its library takes milliseconds."""
    import threadpoolctl

    return threadpoolctl.ThreadpoolController()


def _best_of(
    queries: np.ndarray,
    items: np.ndarray,
    k: int,
    offsets: np.ndarray,
    excluded: np.ndarray,
    first_id: int,
    memory: np.ndarray,
) -> tuple[np.ndarray, int]:
    """The keys (see `_take`) of the best, int64 `[B, k]`, largest first, and the row of a NaN or −1; `memory` is for
    scores."""
    owner = np.repeat(np.arange(len(queries), dtype=np.int64), np.diff(offsets))
    excluded = np.sort(owner << 32 | excluded) & LOW  # ascending in each row
    place = offsets[:-1].copy()
    heap = np.full((len(queries), k), EMPTY)
    worst = np.full(len(queries), -np.inf, np.float32)
    for first in range(0, len(items), COLUMNS):
        part = items[first : first + COLUMNS]
        with np.errstate(invalid="ignore"):  # the kernel sees to it
            scores = np.matmul(queries, part.T, out=memory[: len(queries), : len(part)])
        scores[:, : max(first_id - first, 0)] = -np.inf
        _mask(scores, first, excluded, place, offsets[1:])
        groups = len(part) // GROUP
        if first == 0 and groups >= k:
            largest = scores[:, : groups * GROUP].reshape(len(scores), GROUP, groups).max(axis=1)
            bound = np.partition(largest, groups - k, axis=1)[:, groups - k]
            worst = np.nextafter(bound, np.float32(-np.inf))  # what equals the bound is taken
        bad = _take(scores, scores.view(np.int32), first, heap, worst)
        if bad >= 0:
            return heap, bad
    return np.sort(heap, axis=1)[:, ::-1], -1


@numba.njit(nogil=True, cache=True)
def _mask(scores: np.ndarray, first: int, excluded: np.ndarray, place: np.ndarray, stop: np.ndarray) -> None:
    """Gives excluded items −∞.

    Args:
      scores: float32 `[B, n]`, of the items from `first` on.
      first: the item row of the first column.
      excluded: int64 `[N]`, item rows, ascending in each row of `scores`.
      place: int64 `[B]`, where in `excluded` each row has got to; moved on.
      stop: int64 `[B]`, where each row's part of `excluded` ends.
    """
    for r in range(len(scores)):
        p = place[r]
        while p < stop[r] and excluded[p] < first + scores.shape[1]:
            if excluded[p] >= first:
                scores[r, excluded[p] - first] = -np.inf
            p += 1
        place[r] = p


@numba.njit(nogil=True, cache=True)
def _take(scores: np.ndarray, bits: np.ndarray, first: int, heap: np.ndarray, worst: np.ndarray) -> int:
    """Takes a block of scores into the heaps; returns the row of a NaN, or −1 without one.

    A key is one int64 that orders by score, then by the lower item: the float's bits above (of a negative one all but
    the sign turned, so that they ascend), the item's complement below.

    Args:
      scores: float32 `[B, n]`, of the items from `first` on; one of −∞ is not taken.
      bits: int32 `[B, n]`, the same memory.
      first: the item row of the first column.
      heap: int64 `[B, k]`, keys, the smallest on top; `EMPTY` where there is none yet.
      worst: float32 `[B]`; only scores above are taken. Raised.
    """
    k = heap.shape[1]
    top = np.empty(1, np.int32)
    top_score = top.view(np.float32)
    for r in range(len(scores)):
        own, keys, low = scores[r], heap[r], worst[r]
        for chunk in range(0, len(own), STRIDE):
            if chunk + STRIDE <= len(own):
                promising = 0
                for c in range(chunk, chunk + STRIDE):  # of a fixed length and without a branch: vector instructions
                    promising += not (own[c] <= low)  # a NaN too
                if promising == 0:
                    continue
            for c in range(chunk, min(chunk + STRIDE, len(own))):
                score = own[c]
                if score <= low:
                    continue
                if np.isnan(score):
                    return r
                high = np.int64(bits[r, c]) if score != 0 else np.int64(0)  # −0 equals 0
                key = ((high if high >= 0 else high ^ 0x7FFFFFFF) << 32) | (LOW - (first + c))
                place, child = 0, 1
                while child < k:
                    if child + 1 < k:
                        child += keys[child + 1] < keys[child]
                    if keys[child] >= key:
                        break
                    keys[place] = keys[child]
                    place, child = child, 2 * child + 1
                keys[place] = key
                if keys[0] != EMPTY:
                    high = keys[0] >> 32
                    top[0] = high if high >= 0 else high ^ 0x7FFFFFFF
                    low = max(low, top_score[0])
        worst[r] = low
    return -1
