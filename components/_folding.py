"""Folding: unrelated groups of items that lie in the same place of an embedding space, and recommendations from there.

A model that learns from positives alone has no reason to keep apart what nobody compares. Groups are any property that
users mostly don't mix, such as a language; an item may be in several, or in none, which is never held against it.
"""

from collections.abc import Sequence

import numpy as np

from shortlist import ShortlistError
from shortlist.components._queries import EncodedData

BLOCK = 2**21
"""Numbers held at a time."""


def groups_of(data: EncodedData, name: str) -> np.ndarray:
    """The groups of each item, bool `[I, G]`: "genres", or the values of a category.

    Raises:
      ShortlistError: if the items have no such column.
    """
    if name == "genres":
        return data.items["genres"] > 0
    if name not in data.state["categories"]:
        raise ShortlistError(
            f"`evaluation.groups` must be one of {', '.join(['genres', *data.state['categories']])}. "
            f"Received: {name!r}. Name a column of the items in transform.categories."
        )
    rows = data.items[f"category_{name}"]
    return rows[:, np.newaxis] == np.arange(2, max(int(rows.max()), 2) + 1)


def untouched(
    ranked: np.ndarray,
    groups: np.ndarray,
    history: tuple[np.ndarray, np.ndarray],
    seen: tuple[np.ndarray, np.ndarray],
    cutoffs: Sequence[int],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The share of each list that comes from groups its user never touched, and the least that it could be.

    An item counts if it has a group, and none of its groups is one of an item in the history. An order that respects
    the groups puts all other unseen items first: of n of them, its share at k is max(k − n, 0) / k. The difference of
    the two is folding, or taste for something new.

    Args:
      ranked: int32 `[Q, K]`, best first, 0 where none is left.
      groups: bool `[I, G]`, the reserved rows empty.
      history: offsets `[Q + 1]` and item rows, ragged, what each user did.
      seen: offsets `[Q + 1]` and item rows, what is never recommended.
      cutoffs: the k, at least 1.

    Returns:
      `untouched@k` and `untouched_least@k`, float64 `[Q]`; NaN for a user whose history has no group, and where a list
      is empty.
    """
    groups = np.asarray(groups, bool)
    if ranked.ndim != 2 or groups.ndim != 2 or len(history[0]) - 1 != len(ranked) or len(seen[0]) - 1 != len(ranked):
        raise ShortlistError(
            "`ranked` must be [Q, K] and `groups` [I, G], with a history and what was seen of each query. Received: "
            f"ranked={ranked.shape}, groups={groups.shape}, {len(history[0]) - 1} and {len(seen[0]) - 1} queries."
        )
    queries, items = len(ranked), len(groups)
    touched = np.zeros((queries, groups.shape[1]), bool)
    owner = np.repeat(np.arange(queries), np.diff(history[0]))
    np.logical_or.at(touched, owner, groups[history[1]])
    known = np.asarray(touched.any(axis=1))
    grouped = groups.any(axis=1)
    shares, least = (
        {f"{name}@{k}": np.full(queries, np.nan) for k in cutoffs} for name in ("untouched", "untouched_least")
    )
    step = max(1, BLOCK // max(items, 1))
    for start in range(0, queries, step):
        part = slice(start, min(start + step, queries))
        strange: np.ndarray = (touched[part].astype(np.float32) @ groups.T.astype(np.float32) == 0) & grouped  # [B, I]
        mine = np.arange(seen[0][part.start], seen[0][part.stop])
        whose = np.repeat(np.arange(part.stop - part.start), np.diff(seen[0][part.start : part.stop + 1]))
        familiar = ~strange
        familiar[:, :2] = False
        familiar[whose, seen[1][mine]] = False
        count = familiar.sum(axis=1)
        there = ranked[part] >= 2
        odd = np.take_along_axis(strange, ranked[part].astype(np.int64), axis=1) & there  # [B, K]
        for k in cutoffs:
            length = there[:, :k].sum(axis=1)
            judged = known[part] & (length > 0)
            length = np.where(judged, length, 1)
            shares[f"untouched@{k}"][part] = np.where(judged, odd[:, :k].sum(axis=1) / length, np.nan)
            least[f"untouched_least@{k}"][part] = np.where(judged, np.maximum(length - count, 0) / length, np.nan)
    return shares, least


def overlap(
    vectors: np.ndarray, groups: np.ndarray, k: int = 10, most: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """How far groups lie on top of each other: of the items nearest to an item, those that share no group with it.

    Args:
      vectors: float `[I, D]`, compared by cosine. Rows of zeros, and items without a group, are left out.
      groups: bool `[I, G]`.
      k: neighbours looked at of each item.
      most: items whose neighbours are looked at, drawn by `seed`; the neighbours are of all.
      seed: of that draw.

    Returns:
      The mean share among the k nearest, 0 where the groups lie apart, and what it would be if vectors had nothing to
      do with groups. NaN where fewer than 2 items are left.
    """
    groups = np.asarray(groups, bool)
    kept = np.flatnonzero(groups.any(axis=1) & np.any(vectors != 0, axis=1))
    if len(kept) < 2:
        return float("nan"), float("nan")
    own = groups[kept].astype(np.float32)
    unit = vectors[kept].astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    drawn = np.sort(np.random.default_rng(seed).permutation(len(kept))[:most])
    k = min(k, len(kept) - 1)
    near, chance = 0.0, 0.0
    step = max(1, BLOCK // len(kept))
    for start in range(0, len(drawn), step):
        rows = drawn[start : start + step]
        cosine = unit[rows] @ unit.T
        apart = own[rows] @ own.T == 0  # [B, I]
        itself = (np.arange(len(rows)), rows)
        cosine[itself] = -np.inf
        nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        near += np.take_along_axis(apart, nearest, axis=1).mean(axis=1).sum()
        chance += (apart.sum(axis=1) / (len(kept) - 1)).sum()
    return float(near / len(drawn)), float(chance / len(drawn))
