"""Embeddings of words by which words follow them: skip-gram with negative samples."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from shortlist.models._checks import require_integer, require_number
from shortlist.models._item_content import table


@tf.keras.utils.register_keras_serializable("shortlist")
class SkipGram(tfrs.Model):
    """Skip-gram with negative samples: a word's vector tells those that follow it from words drawn at random.

    The loss of a pair (w, c) is −log σ(u_w·v_c) − Σ_n log σ(−u_w·v_n) over `negatives` words n ∝ count^`power`, those
    that are c left out; that of a batch is the sum. Words with the same followers get near each other.

    Source: Mikolov et al. 2013, "Distributed Representations of Words and Phrases", eq. 4. There the context is on both
    sides of a word in a text, here it is what the same user searches for next.

    Args:
      num_tokens: rows of the tables.
      embedding_dim: D.
      negatives: N ≥ 1.
      power: at least 0.

    Call: words int `[B]` → u, float32 `[B, D]`.
    """

    def __init__(self, num_tokens: int, embedding_dim: int, negatives: int = 5, power: float = 0.75, **kwargs: Any):
        super().__init__(**kwargs)
        self.negatives, self.power = require_integer("negatives", negatives), require_number("power", power)
        self.word_table = table(self, "word_table", num_tokens, embedding_dim)
        self.follower_table = table(self, "follower_table", num_tokens, embedding_dim)
        self.edges = self.add_weight("edges", (num_tokens,), tf.float32, "zeros", trainable=False)
        self.built = True

    def set_counts(self, counts: np.ndarray) -> None:
        """Sets how often each word follows another, `[V]`; at least one does."""
        total = np.cumsum(np.asarray(counts, np.float64) ** self.power * (np.asarray(counts) > 0))
        self.edges.assign(total / total[-1])  # the last is exactly 1, and no draw lies past it

    def draw(self, count: tf.Tensor) -> tf.Tensor:
        """Negatives int32 `[count, N]`."""
        uniform = tf.random.uniform([count * self.negatives])
        return tf.reshape(tf.searchsorted(self.edges, uniform, side="right"), [count, self.negatives])

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.gather(self.word_table, inputs)

    def compute_loss(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """The summed loss of pairs `word`, `follower` int `[B]`, with `drawn` int `[B, N]` or negatives of its own."""
        word, follower = self(inputs["word"]), tf.cast(inputs["follower"], tf.int32)
        drawn = tf.cast(inputs["drawn"], tf.int32) if "drawn" in inputs else self.draw(tf.shape(follower)[0])
        near = tf.reduce_sum(word * tf.gather(self.follower_table, follower), axis=1)
        far = tf.einsum("bd,bnd->bn", word, tf.gather(self.follower_table, drawn))
        far = tf.where(drawn == follower[:, tf.newaxis], 0.0, tf.math.softplus(far))
        return tf.reduce_sum(tf.math.softplus(-near)) + tf.reduce_sum(far)
