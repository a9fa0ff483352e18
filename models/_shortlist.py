"""The first stage as one graph: several sources, one shortlist without duplicates and without what was seen."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from shortlist.models._base import FIRST_ID, PAD, Query, RankingQuery, masked_top_k, query_spec
from shortlist.models._nested import finite
from shortlist.models._ranking_features import RankingFeatures

RRF = 60.0
"""The constant of reciprocal rank fusion (Cormack, Clarke and Büttcher 2009)."""


class Proposals(NamedTuple):
    """What the sources say of the whole catalogue: float32 `[B, I]` a source, and in sum.

    `scores`, finite; `ranks` from 1, quota + 1 for what a source does not propose; `fused`, 0 for what none proposes.
    """

    scores: list[tf.Tensor]
    ranks: list[tf.Tensor]
    fused: tf.Tensor


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
      kinds: what a query says beside user, history and time, see `query_spec`.
    """

    def __init__(
        self,
        sources: Mapping[str, Any],
        quota: Mapping[str, int],
        size: int,
        popularity: np.ndarray,
        features: RankingFeatures,
        kinds: Mapping[str, str] | None = None,
    ):
        super().__init__(name="shortlist")
        self.sources = dict(sources)
        self.quota = {name: int(quota[name]) for name in sources}
        self.size = size
        self.popularity = tf.Variable(popularity, trainable=False, dtype=tf.float32)
        self.features = features
        self.asked = tuple(query_spec(kinds))

    def score_all(self, query: Query) -> list[tf.Tensor]:
        """Every source's scores float32 `[B, I]`."""
        known = tf.reduce_any(query["history"] >= FIRST_ID, axis=1, keepdims=True)
        query = {name: query[name] for name in self.asked}
        return [tf.where(known, source.scores(query), self.popularity[tf.newaxis]) for source in self.sources.values()]

    def __call__(self, query: RankingQuery, exclude: tf.Tensor) -> dict[str, tf.Tensor]:
        """Makes the shortlist.

        Args:
          query: a `RankingQuery`.
          exclude: int32 `[B, E]`, item rows never to return; 0 or less is padding.

        Returns:
          `items` int32 `[B, K]`, best first, 0 where none is left; `fused` float32 `[B, K]`, the fusion's score;
          `features` float32 `[B, K, F]`; `ranks` float32 `[B, S, K]`, each source's rank from 1, its quota + 1 for what
          it did not propose; `order` float32 `[B, I]`, a score of the whole catalogue that ranks the shortlist first.
        """
        proposals = self.propose(query, exclude)
        items, fused = self.cut(proposals)
        features, ranks = self.describe(query, proposals, items, items)
        order = self.order(proposals)
        return {"items": items, "fused": fused, "ranks": ranks, "features": features, "order": order}

    def propose(
        self,
        query: Query,
        exclude: tf.Tensor,
        only: tf.Tensor | None = None,
        quotas: Mapping[str, tf.Tensor] | None = None,
    ) -> Proposals:
        """Asks the sources.

        Args:
          query: as for a call.
          exclude: as for a call.
          only: as for `among`, what alone may be proposed.
          quotas: of some sources, int32 `[B]` each, how many of its quota's items it proposes to a request.
        """
        scores = self.score_all(query)
        rank_tables, fused = [], tf.zeros_like(scores[0])
        for (name, quota), score in zip(self.quota.items(), scores, strict=True):
            top, value = masked_top_k(score if only is None else among(score, only), quota, exclude)  # [B, Q]
            ranks = tf.broadcast_to(tf.range(1.0, quota + 1.0)[tf.newaxis], tf.shape(top))
            where = tf.stack([tf.broadcast_to(tf.range(tf.shape(top)[0])[:, tf.newaxis], tf.shape(top)), top], -1)
            table = tf.fill(tf.shape(score), quota + 1.0)
            found = value > -np.inf
            if quotas and name in quotas:
                found &= tf.range(quota) < quotas[name][:, tf.newaxis]
            table = tf.tensor_scatter_nd_update(table, where[found], ranks[found])  # [B, I]
            share = tf.constant(1 / (RRF + np.arange(1, quota + 1)), tf.float32)  # a rank's, to the bit, in any batch
            share = tf.broadcast_to(share, tf.shape(top))
            fused = tf.tensor_scatter_nd_add(fused, where[found], share[found])
            rank_tables.append(table)
        return Proposals([finite(score) for score in scores], rank_tables, fused)

    def cut(self, proposals: Proposals) -> tuple[tf.Tensor, tf.Tensor]:
        """`items` and `fused` of a call: the K best."""
        items, fused = masked_top_k(tf.where(proposals.fused > 0, proposals.fused, -np.inf), self.size)  # [B, K]
        return tf.cast(items, tf.int32), fused

    def describe(
        self, query: RankingQuery, proposals: Proposals, items: tf.Tensor, best: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """`features` and `ranks` of a call, of any item rows int32 `[B, C]`, beside the shortlist `best`."""

        def of(tables: Sequence[tf.Tensor], rows: tf.Tensor) -> tf.Tensor:
            return tf.stack([tf.gather(table, rows, batch_dims=1) for table in tables], axis=1)  # [B, S, C]

        ranks, scores = of(proposals.ranks, items), of(proposals.scores, items)
        among = None if items is best else (best, of(proposals.scores, best))
        return self.features(query, items, scores, ranks, among), ranks

    @staticmethod
    def order(proposals: Proposals) -> tf.Tensor:
        """`order` of a call."""
        return tf.where(proposals.fused > 0, proposals.fused, _unit(proposals.scores[0]))


def among(scores: tf.Tensor, only: tf.Tensor) -> tf.Tensor:
    """Scores `[B, I]`, −∞ outside of the item rows `only`, int32 `[B, O]`.

    0 is padding, and a request with nothing else allows every item; an unknown item, 1, is one that isn't there.
    """

    def cut() -> tf.Tensor:
        request = tf.broadcast_to(tf.range(tf.shape(only)[0])[:, tf.newaxis], tf.shape(only))
        listed = tf.zeros(tf.shape(scores), tf.bool)
        listed = tf.tensor_scatter_nd_update(listed, tf.stack([request, only], -1), tf.ones(tf.shape(only), tf.bool))
        free = tf.reduce_all(only == PAD, axis=1, keepdims=True)
        return tf.where(listed | free, scores, -np.inf)

    return tf.cond(tf.reduce_any(only != PAD), cut, lambda: scores)


def _unit(scores: tf.Tensor) -> tf.Tensor:
    """Scores squeezed below the least fused score, so that they only order what no source proposed."""
    low, high = tf.reduce_min(scores, 1, keepdims=True), tf.reduce_max(scores, 1, keepdims=True)
    return tf.math.divide_no_nan(scores - low, high - low) * 1e-6
