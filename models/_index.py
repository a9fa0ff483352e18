"""Exact indexes over the whole catalogue, as they are saved and served."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow_recommenders as tfrs

from shortlist.models._base import Query, masked_top_k, query_spec


class BruteForce(tfrs.layers.factorized_top_k.BruteForce):
    """TFRS's exact index, which here also scores everything at once: what fusion and exclusion need."""

    def scores(self, queries: tf.Tensor) -> tf.Tensor:
        """Query vectors float32 `[B, D]` → scores float32 `[B, I]`."""
        return self._compute_score(queries, self._candidates)


class Index(tf.Module):
    """The catalogue under one retriever's `score_items`, with string ids at the exit.

    Args:
      retriever: a loaded retriever, see the `Model` artifact.
      ids: item ids, string `[I]`; "" for the reserved rows.
      kinds: what a query says beside user, history and time, see `query_spec`.

    `scores(query)` are float32 `[B, I]`; `retrieve(query, exclude, k)`, with `exclude` int32 `[B, E]`, are item ids
    string `[B, k]`, "" where none is left, and scores float32 `[B, k]`.
    """

    def __init__(self, retriever: Any, ids: tf.Tensor, kinds: Mapping[str, str] | None = None):
        super().__init__(name="index")
        self.retriever = retriever
        self.ids = tf.Variable(ids, trainable=False, dtype=tf.string)
        spec = query_spec(kinds)
        further = [tf.TensorSpec([None, None], tf.int32, "exclude"), tf.TensorSpec([], tf.int32, "k")]
        self.scores = tf.function(self._scores, input_signature=[spec], autograph=False)
        self.retrieve = tf.function(self._retrieve, input_signature=[spec, *further], autograph=False)

    def _retrieve(self, query: Query, exclude: tf.Tensor, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        items, scores = masked_top_k(self._scores(query), k, exclude)
        return tf.gather(self.ids, items), scores

    def _scores(self, query: Query) -> tf.Tensor:
        return self.retriever.score_items(query)


class FactorizedIndex(Index):
    """The same for a retriever whose score is a dot product: its item vectors, indexed once."""

    def __init__(self, retriever: Any, ids: tf.Tensor, kinds: Mapping[str, str] | None = None):
        super().__init__(retriever, ids, kinds)
        self.brute_force = self._no_dependency(BruteForce().index(retriever.item_vectors()))
        self.vectors = self.brute_force._candidates

    @tf.function(input_signature=[], autograph=False)
    def item_vectors(self) -> tf.Tensor:
        """Item vectors float32 `[I, D]`."""
        return tf.convert_to_tensor(self.vectors)

    def _scores(self, query: Query) -> tf.Tensor:
        return self.brute_force.scores(self.retriever.embed_query(query))
