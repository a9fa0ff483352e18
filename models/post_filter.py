"""Post-filtering as a retriever: of the shortlist of another one, made without context, what fits the context."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from shortlist.models._base import Query, cell_indices, constructor_arguments, masked_top_k, register
from shortlist.models._checks import require_integer
from shortlist.models._nested import copy_weights, restored
from shortlist.models._post_filter import PostFilter


@register("post_filter")
class PostFiltered(tf.keras.Model):
    """The best items of another retriever, weighted by, or cut to, what the user watches in such a context.

    Of the other's scores the `candidates` highest are kept, items of the history left out; `PostFilter` (in
    models/_post_filter.py) reorders or cuts these by P(attribute | user, context). All other items are left out, with a
    score of −∞. Without a known condition it is the other retriever's order.

    Source: Panniello et al. 2009, "Experimental comparison of pre- vs. post-filtering approaches in context-aware
    recommender systems", §3.

    Args:
      num_users, num_items, num_attributes: U, I and A, the reserved rows of U and I included.
      contexts: by dimension, the number of its conditions.
      base: the other retriever, as `described` writes it; it is kept inside.
      candidates: N ≥ 1.
      mode, smoothing, threshold: as in `PostFilter`.

    Call: a `Query` with `context_<dimension>` → scores float32 `[B, I]`.

    Raises:
      ShortlistError: for an argument out of range, and when asked before `adapt`.

    Example:
      >>> from shortlist.models import Popularity
      >>> from shortlist.models._nested import described
      >>> base = Popularity(num_items=4)
      >>> _ = base.fit([2, 2, 3])
      >>> model = PostFiltered(1, 4, 2, {"day": 1}, described(base), candidates=2, smoothing=1.0)
      >>> watched = {"user": np.array([0, 0]), "item": np.array([3, 3]), "context_day": np.array([1, 1])}
      >>> model.adapt(base, watched, attributes=np.array([[0, 0], [0, 0], [1, 0], [0, 1]]))
      >>> query = {"user": [0, 0], "context_day": [1, 0], "history": [[0], [0]], "time": [0, 0]}
      >>> model.score_items({name: tf.constant(value) for name, value in query.items()}).numpy()[:, 2:].argmax(axis=1)
      array([1, 0])
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        num_attributes: int,
        contexts: Mapping[str, int],
        base: str,
        candidates: int = 500,
        mode: str = "weight",
        smoothing: float = 10.0,
        threshold: float = 0.1,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.layer = PostFilter(num_users, num_items, num_attributes, contexts, mode, smoothing, threshold)
        self.num_users, self.num_items, self.num_attributes = num_users, num_items, num_attributes
        self.contexts, self.mode, self.smoothing, self.threshold = contexts, mode, smoothing, threshold
        self.candidates = require_integer("candidates", candidates)
        self.base = base
        self.model = restored("base", base)

    def adapt(self, base: tf.keras.Model, watched: Mapping[str, np.ndarray], attributes: np.ndarray) -> None:
        """Takes over the weights of the other retriever, and counts what was watched when.

        Args:
          base: the model that `base` describes.
          watched: of all positives, `user`, `item` and `context_<dimension>`, int `[N]` each.
          attributes: `[I, A]`, 1 where the item has the attribute, else 0.

        Raises:
          ShortlistError: for another model, and as there.
        """
        copy_weights("base", base, self.model)
        self.layer.adapt(watched, attributes)
        self.built = True

    def score_items(self, query: Query) -> tf.Tensor:
        """Float32 `[B, I]`, −∞ for what is left out."""
        scores = self.model.score_items(query)
        items, best = masked_top_k(scores, self.candidates, query["history"])  # [B, N]
        items, best = self.layer(query, items, best)
        there = items > 0
        return tf.tensor_scatter_nd_update(tf.fill(tf.shape(scores), -np.inf), cell_indices(items)[there], best[there])

    def call(self, inputs: Query) -> tf.Tensor:
        return self.score_items(inputs)

    def get_config(self) -> dict[str, Any]:
        return {**constructor_arguments(self), "contexts": dict(self.contexts)}

    def get_build_config(self) -> dict[str, Any] | None:
        return self.layer.get_build_config()

    def build_from_config(self, config: dict[str, Any]) -> None:
        self.layer.build_from_config(config)
        self.built = True
