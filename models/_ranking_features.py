"""What the ranker sees of a (request, candidate) pair: one builder for training, evaluation and the served graph."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from shortlist.models._base import FIRST_ID, RankingQuery, ranking_query
from shortlist.models._column_features import DAY, NEVER, PRIOR, ColumnFeatures, log_days
from shortlist.models._layers import features_last, last_n

RECENT = (1, 3, 10)  # how many of the last watched items the similarities look at
YEAR = 365.2425 * DAY
FARTHEST = 100.0
"""Deviations at which the score of an item outside of the shortlist is cut."""


@dataclass(frozen=True)
class Catalogue:
    """What is known of the items, by item row; counts and times are those of the training part.

    `genres` float32 `[I, G]` multi-hot; `year` int `[I]`, 0 if unknown; `count` float `[I]`, positives; `recent_count`,
    those of the last years of the data; `first_time` and `last_time` int64 `[I]` seconds, of its first and last event;
    `weight` float `[I]`, what its positives weigh in sum, and `shown` float `[I]`, how often it was shown, in a log
    that says so; `contexts` float `[I, N]` by name, its positives in every condition. `weight_from`, `highest`,
    `categories`, `shared` and `numbers` are those of `ColumnFeatures`.
    """

    genres: np.ndarray
    year: np.ndarray
    count: np.ndarray
    recent_count: np.ndarray
    first_time: np.ndarray
    last_time: np.ndarray
    weight: np.ndarray | None = None
    shown: np.ndarray | None = None
    weight_from: str = "none"
    highest: float = 1.0
    categories: Mapping[str, np.ndarray] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    numbers: Mapping[str, np.ndarray] = field(default_factory=dict)
    contexts: Mapping[str, np.ndarray] = field(default_factory=dict)


GROUPS = {
    "retriever": ("score_z:", "log_rank:", "proposed:", "log_fused_rank"),
    "history": (
        *("log_history", "log_gap", "log_last_day", "history_log_count", "cosine_", "genres_last_10", "genres_all"),
        *("year_difference", "year_distance", "watched:", "since:", "finished:", "rated:", "click_rate:"),
        *("mean_finished", "mean_rated", "user_click_rate"),
    ),
    "impressions": ("ignored", "since_ignored"),
    "content": (
        *("age", "since_last_event", "since_first_event", "log_count", "log_recent", "number:", "match:"),
        *("click_rate", "mean_weight"),
    ),
    "context": ("context_",),
    "example_age": ("example_age",),
}
"""Groups of features, each by names or, with `:` or `_` at the end, by how they begin."""


def group_of(name: str) -> str:
    """The group of a feature."""
    return next(g for g, own in GROUPS.items() for n in own if name == n or (n[-1] in ":_" and name.startswith(n)))


class RankingFeatures(tf.Module):
    """Features of every candidate of a request, float32, none of them an id's magnitude.

    Each source's score enters as a z-score over the request's candidates and as the log of its rank, so that a refitted
    source means the same to the ranker as the one that it was trained with. The user's activity is there because a
    pointwise loss needs the base rate of the request. Similarities are cosines of item vectors.

    Args:
      catalogue: see `Catalogue`.
      vectors: item vectors float32 `[I, D]` by the name of their source.
      sources: names of the sources, in the order of their scores.
      history_length: the last watched items that the features look at, except for counts.
      quota: what each source may propose, if the features are to say which source did.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        vectors: dict[str, np.ndarray],
        sources: tuple[str, ...],
        history_length: int = 50,
        quota: Sequence[int] = (),
    ):
        super().__init__(name="ranking_features")
        constant = lambda value, dtype=tf.float32: tf.Variable(value, trainable=False, dtype=dtype)  # noqa: E731
        norm = np.linalg.norm(catalogue.genres, axis=1, keepdims=True)
        self.genres = constant(catalogue.genres / np.maximum(norm, 1e-9))
        self.year = constant(catalogue.year.astype(np.float32))
        self.log_count = constant(np.log1p(catalogue.count))
        self.log_recent = constant(np.log1p(catalogue.recent_count))
        self.first_time = constant(catalogue.first_time, tf.int64)
        self.last_time = constant(catalogue.last_time, tf.int64)
        self.newest = constant(np.max(catalogue.last_time), tf.int64)
        self.vectors = {name: constant(tf.math.l2_normalize(v, axis=1)) for name, v in vectors.items()}
        self.sources, self.history_length, self.quota = tuple(sources), history_length, tuple(quota)
        self.numbers = {name: constant(_log_number(values)) for name, values in catalogue.numbers.items()}
        self.of_items: dict[str, tf.Variable] = {}
        self.lift = {name: constant(_lift(counts)) for name, counts in catalogue.contexts.items()}  # [I, N]
        base_rate = None
        if catalogue.shown is not None and catalogue.count.sum() and catalogue.shown.sum() > catalogue.count.sum():
            base_rate = float(catalogue.count.sum() / catalogue.shown.sum())
            rate = (catalogue.count + PRIOR * base_rate) / (catalogue.shown + PRIOR)
            self.of_items["click_rate"] = constant(np.log(rate) - np.log1p(-rate))
        if catalogue.weight is not None and catalogue.weight_from != "none":
            mean = catalogue.weight.sum() / max(catalogue.count.sum(), 1)
            self.of_items["mean_weight"] = constant(
                np.log(np.maximum(catalogue.weight + PRIOR / 2 * mean, 1e-9) / (catalogue.count + PRIOR / 2))
            )
        self.columns = ColumnFeatures(
            catalogue.genres,
            dict(catalogue.categories),
            catalogue.shared,
            dict(catalogue.numbers),
            catalogue.weight_from,
            catalogue.highest,
            base_rate,
        )

    @property
    def names(self) -> list[str]:
        """The features' names, in their order."""
        return [
            *(f"{kind}:{source}" for source in self.sources for kind in ("score_z", "log_rank")),
            "log_fused_rank",
            *("log_history", "log_gap", "log_last_day", "history_log_count"),
            *(f"cosine_{n}:{v}" for v in sorted(self.vectors) for n in (*(f"last_{n}" for n in RECENT), "all", "max")),
            *("genres_last_10", "genres_all", "year_difference", "year_distance", "age"),
            *("since_last_event", "since_first_event", "log_count", "log_recent"),
            *(f"proposed:{source}" for source in self.sources if self.quota),
            *(f"number:{name}" for name in self.numbers),
            *self.of_items,
            *self.columns.names,
            *self.lift,
            "example_age",
        ]

    def __call__(
        self,
        query: RankingQuery,
        items: tf.Tensor,
        scores: tf.Tensor,
        ranks: tf.Tensor,
        best: tuple[tf.Tensor, tf.Tensor] | None = None,
    ) -> tf.Tensor:
        """Builds the features. Those of an item don't depend on what else is asked for, but on the shortlist.

        Args:
          query: a `RankingQuery`; of what only a ranker reads, anything may be absent.
          items: int32 `[B, C]`; 0 where there is none.
          scores: float32 `[B, S, C]`, each source's own score of each item.
          ranks: float32 `[B, S, C]`, its rank in that source's list, from 1.
          best: the shortlist, int32 `[B, K]`, best fused first, and its scores `[B, S, K]`; `items` itself if absent.

        Returns:
          float32 `[B, C, F]`; rows of missing items are 0.
        """
        query = ranking_query(query, [*(f"user_{name}" for name in self.columns.shared), *self.lift])
        valid = tf.cast(items >= FIRST_ID, tf.float32)  # [B, K]
        told = query["history"], self.history_length, query["history_time"], query["history_weight"]
        history, times, weight = last_n(*told)  # [B, L]
        seen = tf.cast(history >= FIRST_ID, tf.float32)
        length = tf.reduce_sum(seen, axis=1, keepdims=True)  # [B, 1]
        position = tf.reduce_sum(tf.cast(history != 0, tf.float32), axis=1, keepdims=True)
        back = position - tf.range(tf.cast(self.history_length, tf.float32))[tf.newaxis]  # 1 = the last watched
        weights = [seen * tf.cast(back <= n, tf.float32) for n in RECENT] + [seen]
        weights = tf.stack([tf.math.divide_no_nan(w, tf.reduce_sum(w, 1, keepdims=True)) for w in weights], 1)

        if best is None:
            shortlist, among = items, scores
            place = tf.broadcast_to(tf.range(tf.shape(items)[1], dtype=tf.float32), tf.shape(items))
        else:
            shortlist, among = best
            place = _place(items, shortlist)
        there = tf.cast(shortlist >= FIRST_ID, tf.float32)  # [B, K]
        columns = []
        for source in range(len(self.sources)):
            columns += [_z_score(scores[:, source], among[:, source], there), tf.math.log1p(ranks[:, source])]
        columns.append(tf.math.log1p(place))
        columns += [tf.broadcast_to(c, tf.shape(items)) for c in self._activity(query, history, times, seen, length)]
        # One that was seen in the place of what wasn't: twice the same is no other maximum, and has no weight.
        filled = tf.where(seen > 0, history, tf.reduce_max(history * tf.cast(seen, tf.int32), 1, keepdims=True))
        for name in sorted(self.vectors):
            table = self.vectors[name]
            cosine = tf.linalg.matmul(tf.gather(table, items), tf.gather(table, filled), transpose_b=True)  # [B, K, L]
            means = tf.linalg.matmul(cosine, weights, transpose_b=True)  # [B, K, 4]
            columns += tf.unstack(means, axis=-1)
            columns.append(tf.where(length > 0, tf.reduce_max(cosine, axis=-1), -1.0))
        genres = tf.gather(self.genres, items)  # [B, K, G]
        columns += self._content(query, items, genres, history, seen, weights)
        columns += [tf.cast(ranks[:, s] <= quota, tf.float32) for s, quota in enumerate(self.quota)]
        columns += [tf.gather(table, items) for table in (*self.numbers.values(), *self.of_items.values())]
        columns += self.columns(query, items, genres, history, times, weight)
        for name, table in self.lift.items():
            cell = items * table.shape[1] + query[name][:, tf.newaxis]
            columns.append(tf.gather(tf.reshape(table, [-1]), cell))
        columns.append(tf.broadcast_to(log_days(query["example_age"])[:, tf.newaxis], tf.shape(items)))
        features = tf.stack(columns) * valid  # [F, B, K]; beside each other they take longer to write
        return features_last(features)

    def _activity(
        self, query: RankingQuery, history: tf.Tensor, times: tf.Tensor, seen: tf.Tensor, length: tf.Tensor
    ) -> list[tf.Tensor]:
        total = tf.reduce_sum(tf.cast(query["history"] >= FIRST_ID, tf.float32), axis=1, keepdims=True)
        ago = tf.cast(query["time"][:, tf.newaxis] - times, tf.float32)  # [B, L]
        gap = tf.reduce_min(tf.where(seen > 0, ago, NEVER), axis=1, keepdims=True)
        in_day = tf.reduce_sum(seen * tf.cast(ago <= DAY, tf.float32), axis=1, keepdims=True)
        popularity = tf.math.divide_no_nan(
            tf.reduce_sum(seen * tf.gather(self.log_count, history), 1, keepdims=True), length
        )
        return [tf.math.log1p(total), tf.math.log1p(tf.maximum(gap, 0.0)), tf.math.log1p(in_day), popularity]

    def _content(
        self,
        query: RankingQuery,
        items: tf.Tensor,
        genres: tf.Tensor,
        history: tf.Tensor,
        seen: tf.Tensor,
        weights: tf.Tensor,
    ) -> list[tf.Tensor]:
        profile = tf.linalg.matmul(weights[:, 2:], tf.gather(self.genres, history))  # [B, 2, G]
        profile = tf.math.l2_normalize(profile, axis=-1)
        genre_10, genre_all = tf.unstack(tf.linalg.matmul(genres, profile, transpose_b=True), axis=-1)

        year, past = tf.gather(self.year, items), tf.gather(self.year, history)
        dated = weights[:, 2] * tf.cast(past > 0, tf.float32)
        mean_year = tf.math.divide_no_nan(tf.reduce_sum(dated * past, 1), tf.reduce_sum(dated, 1))[:, tf.newaxis]
        both = tf.cast((year > 0) & (mean_year > 0), tf.float32)
        difference = both * (year - mean_year)
        request_year = 1970.0 + tf.cast(query["time"], tf.float32)[:, tf.newaxis] / YEAR
        age = tf.where(year > 0, tf.maximum(request_year - year, 0.0), -1.0)

        def since(table: tf.Tensor) -> tf.Tensor:
            known = tf.minimum(query["time"], self.newest)[:, tf.newaxis]  # nothing later is known of any item
            return log_days(tf.cast(known - tf.gather(table, items), tf.float32))

        return [
            *(genre_10, genre_all, difference, tf.abs(difference), age),
            *(since(self.last_time), since(self.first_time)),
            *(tf.gather(self.log_count, items), tf.gather(self.log_recent, items)),
        ]


def _lift(counts: np.ndarray) -> np.ndarray:
    """How much more of an item's positives fall into a condition than of all items' do, the log of the ratio, `[I, N]`.

    An item begins with PRIOR positives that are spread as all are; 0 for a condition that is missing or had none.
    """
    counts = np.concatenate([np.zeros((len(counts), FIRST_ID)), counts[:, FIRST_ID:]], axis=1)
    share = (counts.sum(axis=0) + 1e-9) / (counts.sum() + 1e-9 * counts.shape[1])  # [N]
    known = counts.sum(axis=1, keepdims=True)
    lift = np.log((counts + PRIOR * share) / ((known + PRIOR) * share))
    return np.where(counts.sum(axis=0) > 0, lift, 0.0)


def _log_number(values: np.ndarray) -> np.ndarray:
    """log(1 + x) for x ≥ 0 and its mirror image below; the middle of the known ones where there is none."""
    known = values[np.isfinite(values)]
    values = np.where(np.isfinite(values), values, np.median(known) if len(known) else 0.0)
    return np.sign(values) * np.log1p(np.abs(values))


def _place(items: tf.Tensor, among: tf.Tensor) -> tf.Tensor:
    """Where each of `items` `[B, C]` stands in `among` `[B, K]`, float32 `[B, C]`; K for what doesn't."""
    same = items[:, :, tf.newaxis] == among[:, tf.newaxis]  # [B, C, K]
    first = tf.argmax(same, axis=-1, output_type=tf.int32)
    return tf.cast(tf.where(tf.reduce_any(same, axis=-1), first, tf.shape(among)[1]), tf.float32)


def _z_score(scores: tf.Tensor, among: tf.Tensor, there: tf.Tensor) -> tf.Tensor:
    """`scores` `[B, C]` in deviations from the mean of `among` `[B, K]`, where `there` is 1."""
    count = tf.reduce_sum(there, axis=1, keepdims=True)
    high = tf.reduce_max(tf.where(there > 0, among, -np.inf), axis=1, keepdims=True)
    high = tf.where(count > 0, high, 0.0)
    among = tf.where(there > 0, among - high, 0.0)  # scores that are all alike become 0 without rounding
    mean = tf.math.divide_no_nan(tf.reduce_sum(among, 1, keepdims=True), count)
    variance = tf.reduce_sum(tf.square((among - mean) * there), 1, keepdims=True)
    deviation = tf.sqrt(tf.math.divide_no_nan(variance, count))
    return tf.clip_by_value(tf.math.divide_no_nan(scores - high - mean, deviation), -FARTHEST, FARTHEST)
