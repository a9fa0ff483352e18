"""The kernel of `ItemKNN`: counts of one row at a time, so that no I × I matrix is ever held."""

import numba
import numpy as np


@numba.njit(cache=True)
def nearest(
    user_starts: np.ndarray,
    user_items: np.ndarray,
    item_starts: np.ndarray,
    item_users: np.ndarray,
    neighbours: int,
    shrink: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The most similar items of every item, best first, ties by the lower row.

    Args:
      user_starts: int64 `[U + 1]`, see `user_items`.
      user_items: int32 `[N]`; the items of user u are `user_items[user_starts[u]:user_starts[u + 1]]`.
      item_starts: int64 `[I + 1]`, see `item_users`.
      item_users: int32 `[N]`, the users of every item in the same way.
      neighbours: K, how many to keep.
      shrink: added to the denominator.

    Returns:
      `ids` int32 `[I, K]` and `similarities` float32 `[I, K]`; 0 and 0 where an item has fewer.
    """
    items = len(item_starts) - 1
    ids = np.zeros((items, neighbours), np.int32)
    similarities = np.zeros((items, neighbours), np.float32)
    together = np.empty(items, np.int32)
    best = np.empty(neighbours, np.float64)
    for i in range(items):
        together[:] = 0
        for user in item_users[item_starts[i] : item_starts[i + 1]]:
            for j in user_items[user_starts[user] : user_starts[user + 1]]:
                together[j] += 1
        together[i] = 0
        count = float(item_starts[i + 1] - item_starts[i])
        kept = 0
        for j in range(items):
            if together[j] == 0:
                continue
            similarity = together[j] / (np.sqrt(count * (item_starts[j + 1] - item_starts[j])) + shrink)
            if kept == neighbours and similarity <= best[neighbours - 1]:
                continue
            place = min(kept, neighbours - 1)
            while place > 0 and best[place - 1] < similarity:
                best[place], ids[i, place] = best[place - 1], ids[i, place - 1]
                place -= 1
            best[place], ids[i, place] = similarity, j
            kept = min(kept + 1, neighbours)
        similarities[i, :kept] = best[:kept]
    return ids, similarities
