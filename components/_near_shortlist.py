"""The first stage with approximate indexes: of a large catalogue, only what is proposed is scored."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from shortlist.components._ann import Approximate
from shortlist.models._base import FIRST_ID, Query, masked_top_k
from shortlist.models._shortlist import Proposals, Shortlist, among


class NearShortlist(Shortlist):
    """A `Shortlist` some of whose sources are asked through faiss, outside of the graph; it cannot be saved.

    In `Proposals`, such a source has vectors float32 `[B, D + 1]` in the place of scores: ψ(x) and 0, whose products
    with `[v, popularity]` are the scores; without a known item in the history 0 and 1, so that they are the popularity.

    Args:
      near: the indexes, by the names of their sources, which must have `retriever.embed_query`.
      *args, **kwargs: of `Shortlist`.
    """

    def __init__(self, near: Mapping[str, Approximate], *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.near = dict(near)
        self.tables = {
            name: tf.concat([index.vectors, self.popularity[:, tf.newaxis]], axis=1) for name, index in near.items()
        }

    @property
    def scored(self) -> Mapping[str, Any]:
        return {name: source for name, source in self.sources.items() if name not in self.near}

    def score_all(self, query: Query) -> list[tf.Tensor]:
        known = tf.cast(tf.reduce_any(query["history"] >= FIRST_ID, axis=1, keepdims=True), tf.float32)
        asked = {name: query[name] for name in self.asked}
        scores = iter(super().score_all(query) if self.scored else ())
        return [
            tf.concat([source.retriever.embed_query(asked) * known, 1 - known], axis=1)
            if name in self.near
            else next(scores)
            for name, source in self.sources.items()
        ]

    def best(self, name: str, scores: tf.Tensor, exclude: tf.Tensor, only: tf.Tensor | None) -> tf.Tensor:
        if name not in self.near:
            return super().best(name, scores, exclude, only)
        quota, known = self.quota[name], scores[:, -1:] == 0
        if only is not None:  # few, so that an index would find none of them
            return masked_top_k(among(self._whole(name, scores), only), quota, exclude)[0]
        if self.closed is not None:
            never = tf.cast(tf.where(self.closed), tf.int32)[tf.newaxis, :, 0]
            exclude = tf.concat([exclude, tf.tile(never, [tf.shape(exclude)[0], 1])], axis=1)

        def search(vectors: np.ndarray, exclude: np.ndarray) -> np.ndarray:
            there = exclude >= FIRST_ID
            offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
            return self.near[name].search(vectors, quota, (offsets, exclude[there]))[0]

        found = tf.ensure_shape(tf.numpy_function(search, [scores[:, :-1], exclude], tf.int32), [None, quota])

        def popular() -> tf.Tensor:
            counts = tf.tile(self.popularity[tf.newaxis], [tf.shape(scores)[0], 1])
            return tf.where(known, found, masked_top_k(counts, quota, exclude)[0])

        return tf.cond(tf.reduce_all(known), lambda: found, popular)

    def scores_at(self, proposals: Proposals, items: tf.Tensor) -> tf.Tensor:
        exact = [name not in self.near for name in self.sources]
        others = proposals._replace(scores=[s for s, own in zip(proposals.scores, exact, strict=True) if own])
        rest = iter(tf.unstack(super().scores_at(others, items), axis=1, num=sum(exact)) if any(exact) else ())
        return tf.stack(
            [
                next(rest) if own else tf.einsum("bcd,bd->bc", tf.gather(self.tables[name], items), scores)
                for (name, scores), own in zip(zip(self.sources, proposals.scores, strict=True), exact, strict=True)
            ],
            axis=1,
        )

    def order(self, proposals: Proposals) -> tf.Tensor:
        first = next(iter(self.sources))
        if first not in self.near:
            return super().order(proposals)
        return super().order(proposals._replace(scores=[self._whole(first, proposals.scores[0])]))

    def _whole(self, name: str, vectors: tf.Tensor) -> tf.Tensor:
        """Scores `[B, I]` of a source that has an index."""
        return self.open(tf.linalg.matmul(vectors, self.tables[name], transpose_b=True))
