"""Hybrid: one network over the vectors and the scores of several other retrievers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from shortlist.models._base import FIRST_ID, Factorized, Query, cell_indices, constructor_arguments, register
from shortlist.models._checks import require, require_integer
from shortlist.models._nested import copy_weights, finite, restored
from shortlist.models._replicas import total

NEVER = -1e9


@register("hybrid")
class Hybrid(tfrs.Model):
    """Weighs other retrievers' scores by who asks and by the item, and adds what their vectors say together.

    s(x, i) = Σ_m (a_m(x) + c_m(i)) · z_m(x, i) + φ(x)·θ(i) + b(i), with
    z_m(x, i) = arsinh of base m's score, standardized over the catalogue for each request (what a base leaves out
    scores as its lowest); a(x) = 1 + a linear layer on the length of the history, so that a request without one trusts
    other bases than one with a long one; c(i) and b(i) linear in how often the item was watched, so that a new item is
    judged by what knows new items; φ a ReLU network over the bases' query vectors, θ a linear layer over their item
    vectors, each of length 1, both on the same D numbers. The bases themselves are frozen. At the start c, b and φ·θ
    are 0, and s is the sum of the z.

    The loss is −log p(i | x) of the softmax over the whole catalogue without what the user has seen, a mean over the
    targets of a request and over requests. Train it on what the bases have not been fitted to: their scores of what
    they have are far too good, and it would learn to trust the one that remembers best.

    Source: Burke 2002, §3 (weighted and feature-combination hybrids), as a network.

    Args:
      num_items: I, item rows, reserved ones included.
      bases: the other retrievers, as `described` writes them; they are kept inside.
      embedding_dim: D; 0 leaves the vectors out.
      hidden_units: widths of φ's ReLU layers.
      dropout: share of each unit vector's numbers and of the hidden units left out at random in training.

    Call: a `Query` → scores float32 `[B, I]`.

    Raises:
      ShortlistError: for an argument out of range.

    Example:
      >>> from shortlist.models import Popularity
      >>> from shortlist.models._nested import described
      >>> base = Popularity(num_items=4)
      >>> _ = base.fit([2, 3, 3])
      >>> model = Hybrid(num_items=4, bases=[described(base)])
      >>> model.set_bases([base])
      >>> query = {"user": [1], "history": [[0]], "history_time": [[0]], "time": [0]}
      >>> model.score_items({name: tf.constant(value) for name, value in query.items()}).numpy().round(3)
      array([[ 0.   ,  0.   , -0.881,  0.881]], dtype=float32)
    """

    def __init__(
        self,
        num_items: int,
        bases: Sequence[str],
        embedding_dim: int = 16,
        hidden_units: tuple[int, ...] = (),
        dropout: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_items = require_integer("num_items", num_items, FIRST_ID + 1)
        self.bases = tuple(bases)
        require(len(self.bases) > 0, "`bases` must be at least one retriever.", bases=self.bases)
        self.models = [restored("bases", text) for text in self.bases]
        self.embedding_dim = require_integer("embedding_dim", embedding_dim, 0)
        self.hidden_units = tuple(require_integer("hidden_units", units) for units in hidden_units)
        require(0 <= dropout < 1, "`dropout` must be in [0, 1).", dropout=dropout)
        self.dropout = float(dropout)
        count = len(self.models)
        zeros = {"initializer": "zeros"}
        self.count = self.add_weight("count", (self.num_items, 2), trainable=False, **zeros)  # log-count, none at all
        self.by_length = self.add_weight("by_length", (3, count), **zeros)
        self.by_count = self.add_weight("by_count", (2, count + 1), **zeros)
        self.factorized = [isinstance(model, Factorized) for model in self.models]
        width = sum(int(m.item_vectors().shape[1]) for m, own in zip(self.models, self.factorized, strict=True) if own)
        self.tower: list[tf.keras.layers.Layer] = []
        self.project: tf.keras.layers.Layer | None = None
        if width and self.embedding_dim:
            self.tower = [tf.keras.layers.Dense(units, "relu") for units in self.hidden_units]
            self.tower.append(tf.keras.layers.Dense(self.embedding_dim, kernel_initializer="zeros"))
            self.project = tf.keras.layers.Dense(self.embedding_dim, use_bias=False)
            self.project.build((None, width))
            for layer in self.tower:
                layer.build((None, width))
                width = layer.units
        self.built = True

    def set_bases(self, models: Sequence[tf.keras.Model]) -> None:
        """Takes over the weights of the models that `bases` describes, in their order.

        Raises:
          ShortlistError: for other models.
        """
        rule = "`models` must be those that `bases` describes."
        require(len(models) == len(self.models), rule, models=[type(m).__name__ for m in models])
        for source, target in zip(models, self.models, strict=True):
            copy_weights("models", source, target)

    def set_item_counts(self, counts: np.ndarray) -> None:
        """Says how often each item was watched in what the bases were fitted to, int `[I]`.

        Raises:
          ShortlistError: for another number of items.
        """
        counts = np.asarray(counts, np.float64)
        rule = f"`counts` must be one number for each of the {self.num_items:,} items."
        require(counts.shape == (self.num_items,), rule, shape=counts.shape)
        logs = np.log1p(counts)
        known = logs[FIRST_ID:]
        self.count.assign(np.stack([(logs - known.mean()) / max(known.std(), 1e-9), counts == 0], axis=1))

    def score_items(self, query: Query, training: bool = False) -> tf.Tensor:
        """Float32 `[B, I]`."""
        scores, queries, items = [], [], []
        for model, factorized in zip(self.models, self.factorized, strict=True):
            if factorized:
                psi, vectors = model.embed_query(query), model.item_vectors()
                scores.append(tf.linalg.matmul(psi, vectors, transpose_b=True))
                queries.append(tf.math.l2_normalize(psi, axis=1, epsilon=1e-30))
                items.append(tf.math.l2_normalize(vectors, axis=1, epsilon=1e-30))
            else:
                scores.append(model.score_items(query))
        z = tf.stop_gradient(tf.stack([_standardized(score) for score in scores], axis=-1))  # [B, I, M]
        length = tf.reduce_sum(tf.cast(query["history"] >= FIRST_ID, tf.float32), axis=1, keepdims=True)
        about = tf.concat([tf.ones_like(length), tf.math.log1p(length) / 5, tf.cast(length == 0, tf.float32)], axis=1)
        by_query = 1.0 + tf.linalg.matmul(about, self.by_length)  # [B, M]
        by_item = tf.linalg.matmul(self.count, self.by_count)  # [I, M + 1]
        score = tf.linalg.matvec(z, by_query) + tf.reduce_sum(z * by_item[:, :-1], axis=-1) + by_item[:, -1]
        if self.project is not None:
            psi, vectors = (self._dropped(tf.concat(parts, axis=1), training) for parts in (queries, items))
            for layer in self.tower[:-1]:
                psi = self._dropped(layer(psi), training)
            score += tf.linalg.matmul(self.tower[-1](psi), self.project(vectors), transpose_b=True)
        return score

    def _dropped(self, values: tf.Tensor, training: bool) -> tf.Tensor:
        return tf.nn.dropout(values, self.dropout) if training and self.dropout else values

    def call(self, inputs: Query) -> tf.Tensor:
        return self.score_items(inputs)

    def compute_loss(self, inputs: Query, training: bool = False) -> tf.Tensor:
        """The mean loss of a batch, of a replica what it adds to that: a `Query` with `targets` int32 `[B, T]`, what
        was watched next, at least one a row, and `exclude` int32 `[B, E]`, what was seen before; 0 pads both."""
        scores, targets, exclude = self.score_items(inputs, training), inputs["targets"], inputs["exclude"]
        scores = tf.tensor_scatter_nd_update(scores, cell_indices(exclude), tf.fill(tf.shape(exclude), NEVER))
        reserved = tf.range(self.num_items) < FIRST_ID
        log_p = tf.nn.log_softmax(tf.where(reserved, NEVER, scores))
        there = tf.cast(targets >= FIRST_ID, tf.float32)
        found = tf.where(there > 0, tf.gather(log_p, targets, batch_dims=1), 0.0)
        losses = -tf.reduce_sum(found, 1) / tf.reduce_sum(there, 1)
        return tf.reduce_sum(losses) / total(tf.size(losses))

    def get_config(self) -> dict[str, Any]:
        return constructor_arguments(self)


def _standardized(scores: tf.Tensor) -> tf.Tensor:
    """The arsinh of the deviations from the mean over a row's items, float32 `[B, I]`; 0 for the reserved ones."""
    scores = finite(scores)[:, FIRST_ID:]
    scores -= tf.reduce_mean(scores, axis=1, keepdims=True)
    deviation = tf.sqrt(tf.reduce_mean(tf.square(scores), axis=1, keepdims=True))
    return tf.pad(tf.asinh(tf.math.divide_no_nan(scores, deviation)), [[0, 0], [FIRST_ID, 0]])
