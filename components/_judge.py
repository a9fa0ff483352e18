"""What the evaluator says about lists and shortlists: figures a user, figures with intervals, paired differences."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shortlist.components import metrics as m
from shortlist.components._folding import untouched
from shortlist.components._queries import EncodedData, Queries, weight_source

FLIPS = 10_000
"""Coin throws of the p-values."""

Values = Mapping[str, np.ndarray]
Figure = dict[str, float]


class Lists:
    """What is known of the items when a list is judged by itself: counts in the part that the encoding was fitted on.

    Args:
      data: the encoded data.
      queries: of the split that is measured.
      cutoffs: the k.
      groups: bool `[I, G]`, where lists are judged by the groups that a user never touched (`_folding.py`).
    """

    def __init__(self, data: EncodedData, queries: Queries, cutoffs: Sequence[int], groups: np.ndarray | None = None):
        self.groups = groups
        rows = data.fitted_rows()
        known = rows["positive"] & (rows["item"] >= m.FIRST_ID)
        item, user = rows["item"][known].astype(np.int64), rows["user_key"][known]
        pairs = np.unique(user * np.int64(data.num_items) + item)
        self.counts = np.bincount(item, minlength=data.num_items)
        self.watchers = np.bincount(pairs % data.num_items, minlength=data.num_items)
        self.users = len(np.unique(user))
        self.genres = data.items["genres"]
        self.weighted = weight_source(data) != "none"
        self.queries, self.cutoffs, self.num_items = queries, cutoffs, data.num_items - m.FIRST_ID

    def of_users(self, ranked: np.ndarray, found: m.Found) -> dict[str, np.ndarray]:
        """Figures of every list, float64 `[Q]` by name; `weighted_ndcg` only where positives have a weight."""
        history = self.queries.history
        own = found.gain_ndcg(self.queries.target_weight.values, self.cutoffs) if self.weighted else {}
        return {
            **own,
            **m.novelty(ranked, self.watchers, self.users, self.cutoffs),
            **m.diversity(ranked, self.genres, self.cutoffs),
            **m.popularity_bias(ranked, self.counts, history.offsets, history.values, self.cutoffs),
            **self.untouched(ranked)[0],
        }

    def untouched(self, ranked: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """See `_folding.py`; nothing where there are no groups."""
        if self.groups is None:
            return {}, {}
        history, seen = self.queries.history, self.queries.seen
        pairs = ((history.offsets, history.values), (seen.offsets, seen.values))
        return untouched(ranked, self.groups, *pairs, self.cutoffs)

    def of_all(self, ranked: np.ndarray) -> dict[str, Figure]:
        """Figures that belong to no user: they have no interval over users."""
        found = {f"coverage@{k}": m.coverage(ranked, k, self.num_items) for k in self.cutoffs}
        found |= {f"gini@{k}": m.gini(ranked, k, self.num_items) for k in self.cutoffs}
        return {name: {"value": value} for name, value in found.items() if not np.isnan(value)}


def figures(values: Mapping[str, Values], samples: int, seed: int) -> dict[str, dict[str, Figure]]:
    """Means with their intervals, by system and metric; a metric without a user is absent."""
    columns = [(system, metric) for system, own in values.items() for metric in own]
    result: dict[str, dict[str, Figure]] = {system: {} for system in values}
    if not columns:
        return result
    table = np.stack([values[system][metric] for system, metric in columns], axis=1)
    users = (~np.isnan(table)).sum(axis=0)
    for (system, metric), n, *bounds in zip(columns, users, *m.bootstrap_means(table, samples, seed), strict=True):
        if n:
            value, low, high = map(float, bounds)
            result[system][metric] = {"value": value, "low": low, "high": high, "users": int(n)}
    return result


def differences(
    pairs: Sequence[Mapping[str, str]], values: Mapping[str, Values], samples: int, seed: int
) -> list[dict[str, Any]]:
    """Paired differences over users, `system` − `against` in `metric`, with intervals and p-values.

    `p` is `shortlist.components.metrics.sign_flip_p`, `p_holm` the same corrected for all of `pairs`.
    """
    if not pairs:
        return []
    table = np.stack([values[p["system"]][p["metric"]] - values[p["against"]][p["metric"]] for p in pairs], axis=1)
    p = m.sign_flip_p(table, FLIPS, seed)
    users = (~np.isnan(table)).sum(axis=0)
    names = ("difference", "low", "high", "p", "p_holm")
    numbers = zip(*m.bootstrap_means(table, samples, seed), p, m.holm(p), strict=True)
    return [
        {**pair, **dict(zip(names, map(float, own), strict=True)), "users": int(n)}
        for pair, own, n in zip(pairs, numbers, users, strict=True)
    ]


class Judged(NamedTuple):
    """Impressions, or candidates taken for such: one a row, and whose row of the queries it is.

    `user` int `[N]`, from 0; `page` int `[N]`, what was seen together; `positive` bool `[N]`; `weight` float `[N]`, the
    watch time of a positive, or what stands for it, 0 elsewhere.
    """

    user: np.ndarray
    page: np.ndarray
    positive: np.ndarray
    weight: np.ndarray

    def orders(
        self, scores: Mapping[str, np.ndarray], queries: int, samples: int, seed: int
    ) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, dict[str, Figure]]]:
        """By system, the figures of users and those with intervals, of orders float `[N]`."""
        own = {name: self.of_users(order, queries, name) for name, order in scores.items()}
        found = figures(own, samples, seed)
        return own, {name: found[name] | self.of_all(order, queries, name) for name, order in scores.items()}

    def of_users(self, scores: np.ndarray, queries: int, name: str) -> dict[str, np.ndarray]:
        """How an order of the impressions tells positives from the rest, float64 `[Q]`: `user_auc` and
        `weighted_user_loss` of `shortlist.components.metrics`."""
        loss = m.weighted_user_loss(scores, self.positive, self.weight, self.page, self.user, queries, name)
        return {"user_auc": m.user_auc(scores, self.positive, self.user, queries, name), "weighted_user_loss": loss}

    def of_all(self, scores: np.ndarray, queries: int, name: str) -> dict[str, Figure]:
        """Figures over all impressions: `auc`, and the paper's `watch_time_lost`, a ratio of sums over users."""
        where = self.positive, self.weight, self.page, self.user, queries, name
        lost, total = m.mispredicted_watch_time(scores, *where)
        found = {"auc": m.auc(scores, self.positive, name)}
        found["watch_time_lost"] = float(lost.sum() / total.sum()) if total.sum() else float("nan")
        return {metric: {"value": value} for metric, value in found.items() if not np.isnan(value)}

    def of_ranker(self, scores: Mapping[str, np.ndarray], unit: float | None, name: str) -> dict[str, Any]:
        """`log_loss` of P(watch), and the `calibration` of the expected watch time in the data's unit, if any."""
        found: dict[str, Any] = {"positives": int(self.positive.sum()), "impressions": len(self.positive)}
        if not len(self.positive):
            return found
        found["log_loss"] = m.log_loss(scores["watch"], self.positive, name)
        expected = scores["expected"].astype(np.float64) * (unit or np.nan)
        if np.isfinite(expected).all():
            found["calibration"] = m.calibration(expected, np.where(self.positive, self.weight, 0), name=name)
        return found
