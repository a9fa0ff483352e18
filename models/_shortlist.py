"""The first stage as one graph: several sources, one shortlist without duplicates and without what was seen."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from shortlist.models._base import FIRST_ID, Query, masked_top_k
from shortlist.models._ranking_features import RankingFeatures

RRF = 60.0
"""The constant of reciprocal rank fusion (Cormack, Clarke and Büttcher 2009)."""


class Shortlist(tf.Module):
    """Union of the sources' best items by reciprocal rank fusion, Σ_s 1 / (60 + rank_s), each source with a quota.

    A request without a known item in its history is answered by popularity in the place of every source.

    Source: Cormack, Clarke and Büttcher 2009.

    Args:
      sources: objects with `scores(query)` → float32 `[B, I]`, by name.
      quota: how many items each source may propose.
      size: K, the items kept of the union.
      popularity: float `[I]`, the answer to an empty history.
      features: builds the ranker's features.
    """

    def __init__(
        self,
        sources: Mapping[str, Any],
        quota: Mapping[str, int],
        size: int,
        popularity: np.ndarray,
        features: RankingFeatures,
    ):
        super().__init__(name="shortlist")
        self.sources = dict(sources)
        self.quota = {name: int(quota[name]) for name in sources}
        self.size = size
        self.popularity = tf.Variable(popularity, trainable=False, dtype=tf.float32)
        self.features = features

    def score_all(self, query: Query) -> list[tf.Tensor]:
        """Every source's scores float32 `[B, I]`."""
        known = tf.reduce_any(query["history"] >= FIRST_ID, axis=1, keepdims=True)
        return [tf.where(known, source.scores(query), self.popularity[tf.newaxis]) for source in self.sources.values()]

    def __call__(self, query: Query, exclude: tf.Tensor) -> dict[str, tf.Tensor]:
        """Makes the shortlist.

        Args:
          query: a `Query`.
          exclude: int32 `[B, E]`, item rows never to return; 0 or less is padding.

        Returns:
          `items` int32 `[B, K]`, best first, 0 where none is left; `fused` float32 `[B, K]`, the fusion's score;
          `features` float32 `[B, K, F]`; `ranks` float32 `[B, S, K]`, each source's rank from 1, its quota + 1 for what
          it did not propose; `order` float32 `[B, I]`, a score of the whole catalogue that ranks the shortlist first.
        """
        scores = self.score_all(query)
        rank_tables, fused = [], tf.zeros_like(scores[0])
        for score, quota in zip(scores, self.quota.values(), strict=True):
            top, value = masked_top_k(score, quota, exclude)  # [B, Q]
            ranks = tf.broadcast_to(tf.range(1.0, quota + 1.0)[tf.newaxis], tf.shape(top))
            where = tf.stack([tf.broadcast_to(tf.range(tf.shape(top)[0])[:, tf.newaxis], tf.shape(top)), top], -1)
            table = tf.fill(tf.shape(score), quota + 1.0)
            found = value > -np.inf
            table = tf.tensor_scatter_nd_update(table, where[found], ranks[found])  # [B, I]
            fused = tf.tensor_scatter_nd_add(fused, where[found], 1.0 / (RRF + ranks[found]))
            rank_tables.append(table)
        proposed = tf.where(fused > 0, fused, -np.inf)
        items, fused_top = masked_top_k(proposed, self.size)  # [B, K]
        items = tf.cast(items, tf.int32)
        ranks = tf.stack([tf.gather(table, items, batch_dims=1) for table in rank_tables], axis=1)  # [B, S, K]
        values = tf.stack([tf.gather(score, items, batch_dims=1) for score in scores], axis=1)
        return {
            "items": items,
            "fused": fused_top,
            "ranks": ranks,
            "features": self.features(query, items, values, ranks),
            "order": fused + _unit(scores[0]),
        }


def _unit(scores: tf.Tensor) -> tf.Tensor:
    """Scores squeezed below the least fused score, so that they only order what no source proposed."""
    low, high = tf.reduce_min(scores, 1, keepdims=True), tf.reduce_max(scores, 1, keepdims=True)
    return tf.math.divide_no_nan(scores - low, high - low) * 1e-6


