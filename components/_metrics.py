"""Ranking metrics and bootstrap intervals over users, in NumPy, without a loop over users.

The lists are judged in the order given. Whoever made them broke ties between equal scores by the lower item row
(`shortlist.models._base.masked_top_k`); no metric here sees a score.
"""

from collections.abc import Sequence

import numpy as np

from shortlist import ShortlistError

OOV, FIRST_ID = 1, 2
BLOCK = 2**21


def hits(ranked: np.ndarray, targets_offsets: np.ndarray, targets_items: np.ndarray) -> np.ndarray:
    """Whether each recommended item is among its query's targets.

    Args:
      ranked: int32 `[Q, K]`, item rows, best first, none twice in a list; 0 = none left.
      targets_offsets: int `[Q + 1]`; the targets of query q are `targets_items[offsets[q]:offsets[q + 1]]`.
      targets_items: int `[N]`, item rows; 1 = not in the vocabulary.

    Returns:
      bool `[Q, K]`. Rows 0 and 1 are never hits.
    """
    width = _width(ranked, targets_items)
    keys, _ = _targets(targets_offsets, targets_items, width)
    wanted = np.arange(len(ranked))[:, np.newaxis] * width + ranked  # [Q, K]
    place = np.searchsorted(keys, wanted)
    return np.append(keys, -1)[place] == wanted


def ranking_metrics(
    ranked: np.ndarray, targets_offsets: np.ndarray, targets_items: np.ndarray, cutoffs: Sequence[int]
) -> dict[str, np.ndarray]:
    """Each user's metrics at each cut-off k.

    With h_j = 1 if the item at rank j is a target, R the number of relevant items (a query's distinct targets, plus
    every target row that is out of vocabulary: it counts and is never hit) and m = min(k, R):

    - `ndcg@k` = Σ_{j≤k} h_j / log2(j + 1)  /  Σ_{j≤m} 1 / log2(j + 1)
    - `hr@k` = 1 if any h_j, j ≤ k
    - `recall@k` = Σ_{j≤k} h_j / m
    - `precision@k` = Σ_{j≤k} h_j / k
    - `mrr@k` = 1 / (the lowest j ≤ k with h_j), 0 if none
    - `map@k` = Σ_{j≤k} h_j · precision@j  /  m

    Ties: the order of the list decides, see the head of this module.

    Args:
      ranked: int32 `[Q, K]`, item rows, best first, none twice in a list; 0 = none left. K may be below a cut-off:
        missing ranks are misses.
      targets_offsets: int `[Q + 1]`, see `hits`.
      targets_items: int `[N]`, see `hits`.
      cutoffs: the k, each at least 1.

    Returns:
      float64 `[Q]` by name, NaN for users without a target.

    Example:
      >>> ranking_metrics(np.array([[5, 7, 3]]), np.array([0, 2]), np.array([7, 9]), [3])["recall@3"]
      array([0.5])
    """
    if min(cutoffs) < 1:
        raise ShortlistError(f"`cutoffs` must be at least 1. Received: {list(cutoffs)}.")
    deepest = max(cutoffs)
    shown = ranked[:, :deepest]
    hit = np.zeros((len(ranked), deepest))
    hit[:, : shown.shape[1]] = hits(shown, targets_offsets, targets_items)
    _, relevant = _targets(targets_offsets, targets_items, _width(targets_items))
    rank = np.arange(1, deepest + 1)
    discount = 1 / np.log2(rank + 1)
    found = np.cumsum(hit, axis=1)  # [Q, deepest]
    gain = np.cumsum(hit * discount, axis=1)
    precision = np.cumsum(hit * found / rank, axis=1)
    first = np.maximum.accumulate(hit / rank, axis=1)
    ideal = np.append(np.nan, np.cumsum(discount))
    result = {}
    for k in cutoffs:
        reachable = np.where(relevant > 0, np.minimum(k, relevant), np.nan)
        judged = np.where(relevant > 0, 1.0, np.nan)
        result[f"ndcg@{k}"] = gain[:, k - 1] / ideal[np.minimum(k, relevant)]
        result[f"hr@{k}"] = judged * (found[:, k - 1] > 0)
        result[f"recall@{k}"] = found[:, k - 1] / reachable
        result[f"precision@{k}"] = judged * found[:, k - 1] / k
        result[f"mrr@{k}"] = judged * first[:, k - 1]
        result[f"map@{k}"] = precision[:, k - 1] / reachable
    return result


def coverage(ranked: np.ndarray, k: int, num_items: int) -> float:
    """The share of the catalogue that is in the first k of anybody's list.

    Args:
      ranked: int32 `[Q, K]`, as in `hits`.
      k: cut-off.
      num_items: size of the catalogue, the two reserved rows not counted.
    """
    shown = np.zeros(_width(ranked), bool)
    shown[ranked[:, :k]] = True
    return float(shown[FIRST_ID:].sum() / num_items)


def bootstrap_mean(
    values: np.ndarray, samples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """The mean over users and its percentile bootstrap interval.

    A sample draws as many users as there are, with replacement; the bounds are the (1 ± level) / 2 quantiles of the
    samples' means. Equal `seed` and number of users give the same draws, so two systems are compared on the same ones.
    Source: Efron, Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.

    Args:
      values: float `[Q]`, one a user; NaN, a user without a target, is left out.
      samples: number of bootstrap samples.
      seed: of the draws.
      level: of the interval, between 0 and 1.

    Returns:
      Mean, lower and upper bound.

    Raises:
      ShortlistError: if no user is left.
    """
    kept = values[~np.isnan(values)].astype(np.float64)
    users = len(kept)
    if not users:
        raise ShortlistError(
            f"`values` must hold at least one user with a target. Received: {len(values)} users, none with a target."
        )
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    step = max(1, BLOCK // users)
    for start in range(0, samples, step):
        drawn = rng.integers(0, users, (min(step, samples - start), users), np.int32)  # [step, Q]
        means[start : start + step] = kept[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(kept.mean()), float(low), float(high)


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, samples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """The mean of a − b over users and its interval, by `bootstrap_mean`.

    Args:
      a: float `[Q]`, one a user.
      b: float `[Q]`, of the same users in the same order.
      samples: number of bootstrap samples.
      seed: of the draws.
      level: of the interval, between 0 and 1.

    Returns:
      Mean difference, lower and upper bound.

    Raises:
      ShortlistError: if the numbers of users differ, or no user is left.
    """
    if a.shape != b.shape:
        raise ShortlistError(f"`a` and `b` must be of the same users. Received: {len(a)} and {len(b)} users.")
    return bootstrap_mean(a - b, samples, seed, level)


def _width(*items: np.ndarray) -> int:
    return 1 + max(int(array.max(initial=OOV)) for array in items)


def _targets(offsets: np.ndarray, items: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct targets as sorted keys `query * width + item` int64, and each query's relevant count int64 [Q]."""
    queries = len(offsets) - 1
    query = np.repeat(np.arange(queries), np.diff(offsets))
    known = items >= FIRST_ID
    keys = np.unique(query[known] * width + items[known])
    relevant = np.bincount(keys // width, minlength=queries) + np.bincount(query[~known], minlength=queries)
    return keys, relevant
