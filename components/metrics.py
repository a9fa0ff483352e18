"""Ranking metrics in NumPy, without a loop over users: of lists against targets, of lists alone, and over all users.

The lists are judged in the order given. Whoever made them broke ties between equal scores by the lower item row
(`shortlist.models._base.masked_top_k`); no metric in this file sees a score. Those that do, with their own rule for
ties, are in `_prediction_metrics.py`, intervals and p-values in `_intervals.py`; the names of both are found here too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from shortlist import ShortlistError
from shortlist.components._intervals import (
    bootstrap_mean,
    bootstrap_means,
    holm,
    paired_bootstrap,
    sign_flip_p,
)
from shortlist.components._prediction_metrics import (
    auc,
    calibration,
    log_loss,
    mae,
    mispredicted_watch_time,
    rmse,
    user_auc,
    user_rmse,
    weighted_user_loss,
)

__all__ = [
    "Found",
    "auc",
    "bootstrap_mean",
    "bootstrap_means",
    "calibration",
    "coverage",
    "diversity",
    "find_targets",
    "gini",
    "hits",
    "holm",
    "log_loss",
    "mae",
    "mispredicted_watch_time",
    "novelty",
    "paired_bootstrap",
    "popularity_bias",
    "popularity_percentile",
    "ranking_metrics",
    "rmse",
    "sign_flip_p",
    "user_auc",
    "user_rmse",
    "weighted_user_loss",
]

OOV, FIRST_ID = 1, 2
BLOCK = 2**21
"""Numbers held at a time while lists are compared or looked up."""


@dataclass(frozen=True)
class Found:
    """Where the targets stand in the lists: all that a ranking metric needs, so that slices cost next to nothing.

    Args:
      owner: int64 `[N]`, the query of every target row, ascending.
      first: int64 `[N]`, the first target row of the same query and item; a row out of vocabulary is its own.
      row: int64 `[H]`, the (first) target row of each hit, hits sorted by query, then rank.
      rank: int64 `[H]`, from 1.
      queries: Q.
    """

    owner: np.ndarray
    first: np.ndarray
    row: np.ndarray
    rank: np.ndarray
    queries: int

    def metrics(self, cutoffs: Sequence[int], keep: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """`ranking_metrics`, of all targets or of those that `keep` bool `[N]` marks, as if there were no other.

        A target that is there several times counts once, by its first row.
        """
        _check(cutoffs)
        counted = self.first == np.arange(len(self.first))
        rows, rank = self.row, self.rank
        if keep is not None:
            counted &= keep
            rows, rank = rows[keep[rows]], rank[keep[rows]]
        query = self.owner[rows]  # [H]
        relevant = np.bincount(self.owner[counted], minlength=self.queries)  # [Q]
        judged = np.where(relevant > 0, 1.0, np.nan)
        starts = np.searchsorted(query, np.arange(self.queries))
        ordinal = np.arange(len(query)) - starts[query] + 1  # of a hit among the hits of its query
        ideal = np.append(np.nan, np.cumsum(1 / np.log2(np.arange(2, max(cutoffs) + 2))))

        def total(gain: np.ndarray, k: int) -> np.ndarray:
            near = rank <= k
            return np.bincount(query[near], gain[near], self.queries)

        result = {}
        for k in cutoffs:
            reachable = np.where(relevant > 0, np.minimum(k, relevant), np.nan)
            found = total(np.ones(len(rank)), k)
            result[f"ndcg@{k}"] = total(1 / np.log2(rank + 1), k) / ideal[np.minimum(k, relevant)]
            result[f"hr@{k}"] = judged * (found > 0)
            result[f"recall@{k}"] = found / reachable
            result[f"precision@{k}"] = judged * found / k
            result[f"mrr@{k}"] = judged * total((ordinal == 1) / rank, k)
            result[f"map@{k}"] = total(ordinal / rank, k) / reachable
        return result

    def gain_ndcg(self, gain: np.ndarray, cutoffs: Sequence[int]) -> dict[str, np.ndarray]:
        """NDCG with watch-time gains: `weighted_ndcg@k` float64 `[Q]`.

        With w_j the watch time of the item at rank j if it is a target (the sum, if it is there several times), else
        0, and w*_1 ≥ w*_2 ≥ … those of all targets, out of vocabulary or not:

        Σ_{j≤k} w_j / log2(j + 1)  /  Σ_{j≤k} w*_j / log2(j + 1)

        NaN for a user without watch time. Ties: the order of the list decides.

        Args:
          gain: float `[N]`, at least 0: the watch time of each target row, or what stands for it.
          cutoffs: the k, each at least 1.

        Raises:
          ShortlistError: for a gain that is negative or not a number.
        """
        _check(cutoffs)
        if not (gain >= 0).all():
            raise ShortlistError(f"`gain` must be at least 0. Received: {gain[~(gain >= 0)][0]}.")
        summed = np.bincount(self.first, gain, len(self.first))  # 0 for a repeated row
        best = np.lexsort((-summed, self.owner))
        starts = np.searchsorted(self.owner, np.arange(self.queries))
        place = np.arange(len(best)) - starts[self.owner] + 1
        result = {}
        for k in cutoffs:
            near, ideal = self.rank <= k, place <= k
            got = np.bincount(
                self.owner[self.row[near]], summed[self.row[near]] / np.log2(self.rank[near] + 1), self.queries
            )
            most = np.bincount(self.owner[ideal], summed[best[ideal]] / np.log2(place[ideal] + 1), self.queries)
            result[f"weighted_ndcg@{k}"] = got / np.where(most > 0, most, np.nan)
        return result


def find_targets(ranked: np.ndarray, targets_offsets: np.ndarray, targets_items: np.ndarray) -> Found:
    """Looks every target up in its query's list; arguments as in `hits`."""
    queries = len(ranked)
    owner = np.repeat(np.arange(queries), np.diff(targets_offsets))
    known = np.flatnonzero(targets_items >= FIRST_ID)
    width = 1 + int(targets_items.max(initial=OOV))
    keys = owner[known] * width + targets_items[known]
    _, first_known, group = np.unique(keys, return_index=True, return_inverse=True)
    first = np.arange(len(owner))
    first[known] = known[first_known[group]]
    wanted = np.sort(known[first_known])
    rows, ranks = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for part in _blocks(len(wanted), ranked.shape[1]):
        row = wanted[part]
        same = ranked[owner[row]] == targets_items[row, np.newaxis]  # [n, K]
        hit = same.any(axis=1)
        rows.append(row[hit])
        ranks.append(same[hit].argmax(axis=1) + 1)
    row, rank = np.concatenate(rows), np.concatenate(ranks)
    order = np.lexsort((rank, owner[row]))
    return Found(owner, first, row[order], rank[order], queries)


def hits(ranked: np.ndarray, targets_offsets: np.ndarray, targets_items: np.ndarray) -> np.ndarray:
    """Whether each recommended item is among its query's targets.

    Args:
      ranked: int32 `[Q, K]`, item rows, best first, none twice in a list; 0 = none left.
      targets_offsets: int `[Q + 1]`; the targets of query q are `targets_items[offsets[q]:offsets[q + 1]]`.
      targets_items: int `[N]`, item rows; 1 = not in the vocabulary.

    Returns:
      bool `[Q, K]`. Rows 0 and 1 are never hits.
    """
    found = find_targets(ranked, targets_offsets, targets_items)
    hit = np.zeros(ranked.shape, bool)
    hit[found.owner[found.row], found.rank - 1] = True
    return hit


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
    return find_targets(ranked, targets_offsets, targets_items).metrics(cutoffs)


def novelty(ranked: np.ndarray, watchers: np.ndarray, users: int, cutoffs: Sequence[int]) -> dict[str, np.ndarray]:
    """`novelty@k`: the mean of −log2(share of the training users that watched the item) over the first k of a list.

    An item that nobody watched counts as watched by one. NaN for an empty list. Ties: the order of the list decides.
    Source: Zhou, Kuscsik, Liu, Medo, Wakeling, Zhang 2010, "Solving the apparent diversity-accuracy dilemma of
    recommender systems" (self-information).

    Args:
      ranked: int32 `[Q, K]`, as in `hits`.
      watchers: int `[I]`, the training users of each item row.
      users: the training users, at least 1.
      cutoffs: the k, each at least 1.

    Returns:
      float64 `[Q]` by name, in bits.
    """
    surprise = np.log2(max(users, 1)) - np.log2(np.maximum(watchers, 1))
    return {f"novelty@{k}": mean for k, mean in _list_means(ranked, surprise, cutoffs).items()}


def diversity(ranked: np.ndarray, genres: np.ndarray, cutoffs: Sequence[int]) -> dict[str, np.ndarray]:
    """`diversity@k`: 1 − the mean cosine of the genre vectors of all pairs among the first k of a list.

    Items without a genre are left out; NaN where fewer than two are left. The pairs are not formed: with ĝ the unit
    vectors and n their number, their cosines sum to (|Σ ĝ|² − n) / 2. Ties: the order of the list decides.
    Source: Ziegler, McNee, Konstan, Lausen 2005, "Improving recommendation lists through topic diversification".

    Args:
      ranked: int32 `[Q, K]`, as in `hits`.
      genres: float `[I, G]`, multi-hot.
      cutoffs: the k, each at least 1.

    Returns:
      float64 `[Q]` by name.
    """
    _check(cutoffs)
    size = np.linalg.norm(genres.astype(np.float64), axis=1, keepdims=True)
    unit = genres / np.where(size > 0, size, 1)
    unit[:FIRST_ID] = 0
    result = {f"diversity@{k}": np.full(len(ranked), np.nan) for k in cutoffs}
    deepest = min(max(cutoffs), ranked.shape[1])
    for part in _blocks(len(ranked), deepest * max(genres.shape[1], 1)):
        items = ranked[part]
        for k in cutoffs:
            shown = unit[items[:, :k]]  # [n, k, G]
            n = shown.any(axis=2).sum(axis=1)
            cosines = (shown.sum(axis=1) ** 2).sum(axis=1) - n
            result[f"diversity@{k}"][part] = 1 - cosines / np.where(n > 1, n * (n - 1), np.nan)
    return result


def popularity_percentile(counts: np.ndarray) -> np.ndarray:
    """The share of the catalogue that is less popular, items with the same count half counted: float64 `[I]`.

    The mean over the catalogue is ½. The two reserved rows are no items: NaN.
    """
    own = counts[FIRST_ID:]
    ordered = np.sort(own)
    below, up_to = np.searchsorted(ordered, own, "left"), np.searchsorted(ordered, own, "right")
    return np.concatenate([np.full(FIRST_ID, np.nan), (below + up_to) / 2 / max(len(own), 1)])


def popularity_bias(
    ranked: np.ndarray,
    counts: np.ndarray,
    history_offsets: np.ndarray,
    history_items: np.ndarray,
    cutoffs: Sequence[int],
) -> dict[str, np.ndarray]:
    """`popularity_bias@k`: how much more popular than a user's history the first k of the list are.

    Mean popularity percentile (`popularity_percentile`) of the list − that of the history: above 0, the list is more
    popular than what the user watches. NaN for a user without a history. Ties: the order of the list decides.
    Source: Abdollahpouri, Mansoury, Burke, Mobasher 2019, "The unfairness of popularity bias in recommendation", with
    percentiles in the place of counts and a difference in the place of a ratio.

    Args:
      ranked: int32 `[Q, K]`, as in `hits`.
      counts: int `[I]`, training watches of each item row.
      history_offsets: int `[Q + 1]`; the history of query q is `history_items[offsets[q]:offsets[q + 1]]`.
      history_items: int `[M]`, item rows from 2 on.
      cutoffs: the k, each at least 1.

    Returns:
      float64 `[Q]` by name, in [−1, 1].
    """
    percentile = popularity_percentile(counts)
    length = np.diff(history_offsets)
    owner = np.repeat(np.arange(len(length)), length)
    taste = np.bincount(owner, percentile[history_items], len(length)) / np.where(length > 0, length, np.nan)
    return {f"popularity_bias@{k}": mean - taste for k, mean in _list_means(ranked, percentile, cutoffs).items()}


def coverage(ranked: np.ndarray, k: int, num_items: int) -> float:
    """The share of the catalogue that is in the first k of anybody's list.

    Args:
      ranked: int32 `[Q, K]`, as in `hits`.
      k: cut-off.
      num_items: size of the catalogue, the two reserved rows not counted.
    """
    return float((_exposure(ranked, k, num_items) > 0).sum() / num_items)


def gini(ranked: np.ndarray, k: int, num_items: int) -> float:
    """The Gini coefficient of the exposure: 0 if every item is in as many lists, near 1 if few are in all.

    With c_(1) ≤ … ≤ c_(I) the numbers of lists that hold each item among their first k:
    Σ_i (2 i − I − 1) c_(i)  /  (I Σ_i c_(i)). NaN if nothing is recommended at all.

    Args:
      ranked: int32 `[Q, K]`, as in `hits`.
      k: cut-off.
      num_items: I, the size of the catalogue, the two reserved rows not counted.
    """
    exposure = np.sort(_exposure(ranked, k, num_items))
    if not exposure.sum():
        return float("nan")
    return float(((2 * np.arange(1, num_items + 1) - num_items - 1) @ exposure) / (num_items * exposure.sum()))


def _exposure(ranked: np.ndarray, k: int, num_items: int) -> np.ndarray:
    return np.bincount(ranked[:, :k].ravel(), minlength=num_items + FIRST_ID)[FIRST_ID:]


def _list_means(ranked: np.ndarray, value: np.ndarray, cutoffs: Sequence[int]) -> dict[int, np.ndarray]:
    """The mean of `value` `[I]` over the items among the first k of each list, by k; NaN for an empty list."""
    _check(cutoffs)
    result = {k: np.full(len(ranked), np.nan) for k in cutoffs}
    for part in _blocks(len(ranked), min(max(cutoffs), ranked.shape[1])):
        for k in cutoffs:
            items = ranked[part, :k]
            there = items >= FIRST_ID
            count = there.sum(axis=1)
            total = np.where(there, value[items], 0).sum(axis=1)
            result[k][part] = total / np.where(count > 0, count, np.nan)
    return result


def _blocks(rows: int, width: int) -> Iterator[slice]:
    step = max(1, BLOCK // max(width, 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _check(cutoffs: Sequence[int]) -> None:
    if min(cutoffs) < 1:
        raise ShortlistError(f"`cutoffs` must be at least 1. Received: {list(cutoffs)}.")
