"""The first stage as one graph: several sources, one shortlist without duplicates and without what was seen."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from shortlist.models._base import FIRST_ID, PAD, Query, RankingQuery, cell_indices, masked_top_k, query_spec
from shortlist.models._nested import finite
from shortlist.models._ranking_features import RankingFeatures

RRF = 60.0
"""The constant of reciprocal rank fusion (Cormack, Clarke and Büttcher 2009)."""


class Proposals(NamedTuple):
    """What the sources say.

    `scores` float32 `[B, I]` a source, of the whole catalogue, −∞ for what it leaves out. What it proposes, in the
    order of the rows: `items` int32 `[B, Q]`, 0 before the first, and `ranks` float32 `[B, Q]`, from 1.
    """

    scores: list[tf.Tensor]
    items: list[tf.Tensor]
    ranks: list[tf.Tensor]


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
      closed: bool `[I]`, items that are never proposed, whatever the sources say; None for none.
    """

    def __init__(
        self,
        sources: Mapping[str, Any],
        quota: Mapping[str, int],
        size: int,
        popularity: np.ndarray,
        features: RankingFeatures,
        kinds: Mapping[str, str] | None = None,
        closed: np.ndarray | None = None,
    ):
        super().__init__(name="shortlist")
        self.sources = dict(sources)
        self.quota = {name: int(quota[name]) for name in sources}
        self.size = size
        self.popularity = tf.Variable(popularity, trainable=False, dtype=tf.float32)
        self.features = features
        self.asked = tuple(query_spec(kinds))
        self.closed = None if closed is None else tf.Variable(closed, trainable=False, dtype=tf.bool)

    @property
    def scored(self) -> Mapping[str, Any]:
        """The sources that score the whole catalogue."""
        return self.sources

    def score_all(self, query: Query) -> list[tf.Tensor]:
        """Every source's scores float32 `[B, I]`, −∞ for what is closed."""
        known = tf.reduce_any(query["history"] >= FIRST_ID, axis=1, keepdims=True)
        query = {name: query[name] for name in self.asked}
        scores = [source.scores(query) for source in self.scored.values()]
        popular = self.popularity[tf.newaxis]
        scores = tf.cond(tf.reduce_all(known), lambda: scores, lambda: [tf.where(known, s, popular) for s in scores])
        return [self.open(s) for s in scores]

    def open(self, scores: tf.Tensor) -> tf.Tensor:
        """Scores `[B, I]`, −∞ for what is closed."""
        return scores if self.closed is None else tf.where(self.closed, -np.inf, scores)

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
        items, fused, ranks = self.cut(proposals)
        features, ranks = self.describe(query, proposals, items, items, ranks)
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
        scores, items, ranks = self.score_all(query), [], []
        for (name, quota), score in zip(self.quota.items(), scores, strict=True):
            top = self.best(name, score, exclude, only)  # [B, Q]
            if quotas and name in quotas:
                top = tf.where(tf.range(quota) < quotas[name][:, tf.newaxis], top, 0)
            negative, place = tf.math.top_k(-top, quota)
            items.append(-negative)
            ranks.append(tf.cast(place + 1, tf.float32))
        return Proposals(scores, items, ranks)

    def best(self, name: str, scores: tf.Tensor, exclude: tf.Tensor, only: tf.Tensor | None) -> tf.Tensor:
        """What a source proposes of its scores `[B, I]`, int32 `[B, Q]`, best first; 0 where none is left."""
        return masked_top_k(scores if only is None else among(scores, only), self.quota[name], exclude)[0]

    def ranks(self, proposals: Proposals, items: tf.Tensor) -> list[tf.Tensor]:
        """Each source's ranks of any item rows int32 `[B, C]`, float32 `[B, C]`; its quota + 1 for what it does not
        propose."""
        found = []
        for own, ranks, quota in zip(proposals.items, proposals.ranks, self.quota.values(), strict=True):
            at = tf.minimum(tf.searchsorted(own, items), quota - 1)
            there = (tf.gather(own, at, batch_dims=1) == items) & (items != PAD)
            found.append(tf.where(there, tf.gather(ranks, at, batch_dims=1), quota + 1.0))
        return found

    def fuse(self, proposals: Proposals) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """What the sources propose, in the order of the rows, its fused scores and its `ranks`: int32 and float32
        `[B, P]`; 0, 0 and the quota + 1 in the place of what came before."""
        every = tf.concat(proposals.items, axis=1)  # [B, P]
        items = -tf.math.top_k(-every, every.shape[1])[0]
        items = tf.where(items == tf.pad(items, [[0, 0], [1, 0]])[:, :-1], PAD, items)
        fused = tf.zeros(tf.shape(items))
        every_rank = self.ranks(proposals, items)
        for ranks, quota in zip(every_rank, self.quota.values(), strict=True):
            share = 1 / (RRF + np.arange(1, quota + 2))  # a rank's, to the bit, in any batch
            fused += tf.gather(tf.constant([*share[:-1], 0.0], tf.float32), tf.cast(ranks, tf.int32) - 1)
        return items, fused, every_rank

    def cut(self, proposals: Proposals) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """`items`, `fused` and `ranks` of a call: the K best."""
        items, fused, every_rank = self.fuse(proposals)
        kept = min(self.size, items.shape[1])
        best, place = tf.math.top_k(tf.where(items != PAD, fused, -np.inf), kept)
        lacking = [[0, 0], [0, self.size - kept]]
        items = tf.pad(tf.gather(items, place, batch_dims=1), lacking)  # [B, K]
        ranks = [
            tf.pad(tf.gather(own, place, batch_dims=1), lacking, constant_values=quota + 1.0)
            for own, quota in zip(every_rank, self.quota.values(), strict=True)
        ]
        return items, tf.pad(best, lacking, constant_values=-np.inf), tf.stack(ranks, axis=1)

    def describe(
        self,
        query: RankingQuery,
        proposals: Proposals,
        items: tf.Tensor,
        best: tf.Tensor,
        ranks: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """`features` and `ranks` of a call, of any item rows int32 `[B, C]`, beside the shortlist `best`; `ranks` where
        they are known already, as those of a shortlist are."""
        ranks = tf.stack(self.ranks(proposals, items), axis=1) if ranks is None else ranks  # [B, S, C]
        beside = None if items is best else (best, self.scores_at(proposals, best))
        return self.features(query, items, self.scores_at(proposals, items), ranks, beside), ranks

    def scores_at(self, proposals: Proposals, items: tf.Tensor) -> tf.Tensor:
        """Each source's scores of item rows `[B, C]`, `[B, S, C]`: for what it leaves out as low as its lowest."""
        found = [tf.gather(scores, items, batch_dims=1) for scores in proposals.scores]
        low = tf.reduce_any(tf.math.is_inf(tf.stack(found)))
        return tf.cond(
            low,
            lambda: tf.stack([tf.gather(finite(scores), items, batch_dims=1) for scores in proposals.scores], axis=1),
            lambda: tf.stack(found, axis=1),
        )

    def order(self, proposals: Proposals) -> tf.Tensor:
        """`order` of a call."""
        items, fused, _ = self.fuse(proposals)
        there = items != PAD
        unit = _unit(finite(proposals.scores[0]))
        return self.open(tf.tensor_scatter_nd_update(unit, cell_indices(items)[there], fused[there]))


def among(scores: tf.Tensor, only: tf.Tensor) -> tf.Tensor:
    """Scores `[B, I]`, −∞ outside of the item rows `only`, int32 `[B, O]`.

    0 is padding, and a request with nothing else allows every item; an unknown item, 1, is one that isn't there.
    """

    def cut() -> tf.Tensor:
        listed = tf.zeros(tf.shape(scores), tf.bool)
        listed = tf.tensor_scatter_nd_update(listed, cell_indices(only), tf.ones(tf.shape(only), tf.bool))
        free = tf.reduce_all(only == PAD, axis=1, keepdims=True)
        return tf.where(listed | free, scores, -np.inf)

    return tf.cond(tf.reduce_any(only != PAD), cut, lambda: scores)


def _unit(scores: tf.Tensor) -> tf.Tensor:
    """Scores squeezed below the least fused score, so that they only order what no source proposed."""
    low, high = tf.reduce_min(scores, 1, keepdims=True), tf.reduce_max(scores, 1, keepdims=True)
    return tf.math.divide_no_nan(scores - low, high - low) * 1e-6
