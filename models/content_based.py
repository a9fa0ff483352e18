"""Content-based retrieval: items like those watched, by what they are."""

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from shortlist.models._base import FIRST_ID, Query, constructor_arguments, register
from shortlist.models._checks import require, require_integer
from shortlist.models._layers import last_n
from shortlist.models._replicas import rows_of

FORMS = ("network", "profile")


@register("content_based")
class ContentBased(tfrs.Model):
    """Scores items by their content: as a cosine with what the user watched, or by a network over classes of items.

    x_i is the content of item i (`set_content`), x̄ the mean of x over the last L watched items, weighted by
    `history_weight` where the query has it. "profile": s_i = cos(x̄, x_i); nothing is learned, and nobody else's
    behaviour is looked at. "network": z = [ē, x̄], ē the mean embedding of the hashed ids of the last L items;
    h = ReLU layers of z; p(i | z) = softmax_i(h·v_i + b_i) over the items that were a label in training, with
    v_i = Cᵀx_i + t_i w_i, b_i = c·x_i + t_i β_i. w and β are an item's own; t_i is 1, but 0 for an item that was never
    a label, which is so scored by its content alone, and in training for a random share of the others, so that the
    content learns to stand alone. The loss is summed over the batch.

    Source: the course's network (hashed ids, categories, hidden units, logits over classes) is the softmax network of
    Covington, Adams and Sargin 2016, §3, over content. It has v_i = w_i alone, which no new item has; leaving the own
    part out at random is DropoutNet's (Volkovs, Yu and Poutanen 2017). Profile: Lops, de Gemmis and Semeraro 2011, §3.

    Args:
      num_items: I, item rows, the two reserved ones included.
      num_features: F, columns of the content.
      form: "network" or "profile". All that follows but `history_length` belongs to the network.
      history_length: L ≥ 1, watched items looked at.
      hash_buckets: of item ids; 0 leaves the ids out.
      embedding_dim: width of a bucket's embedding.
      hidden_units: widths of the ReLU layers, at least one; the last is that of v.
      dropout: share of the history's items left out at random in training.
      item_dropout: share of the items without their own part in a training step. It keeps new items at the level of
        the others: on `validation` of the demo data, one seed, with a seventh of the items new, 0.5 and 0 had
        Recall@100 of .328 and .306, of the new items .136 and .359, and of these among themselves .608 and .600.

    Call: a `Query` → scores float32 `[B, I]`. An empty history has the profile 0, and all items the score 0.

    Raises:
      ShortlistError: for an argument out of range.

    Example:
      >>> model = ContentBased(num_items=5, num_features=2, form="profile")
      >>> model.set_content(np.array([[0, 0], [0, 0], [1, 0], [0, 1], [3, 4]]))
      >>> model.score_items({"history": tf.constant([[2, 0]])}).numpy().round(2)
      array([[0. , 0. , 1. , 0. , 0.6]], dtype=float32)
    """

    def __init__(
        self,
        num_items: int,
        num_features: int,
        form: str = "network",
        history_length: int = 10,
        hash_buckets: int = 0,
        embedding_dim: int = 32,
        hidden_units: tuple[int, ...] = (64,),
        dropout: float = 0.0,
        item_dropout: float = 0.5,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        for name, value, low in (
            ("num_items", num_items, FIRST_ID + 1),
            ("num_features", num_features, 1),
            ("history_length", history_length, 1),
            ("hash_buckets", hash_buckets, 0),
            ("embedding_dim", embedding_dim, 1),
            *(("hidden_units", units, 1) for units in hidden_units),
        ):
            require_integer(name, value, low)
        require(form in FORMS, f"`form` must be one of {', '.join(FORMS)}.", form=form)
        require(len(hidden_units) > 0, "`hidden_units` must be at least one width.", hidden_units=hidden_units)
        for name, share in (("dropout", dropout), ("item_dropout", item_dropout)):
            require(0 <= share < 1, f"`{name}` must be in [0, 1).", **{name: share})
        self.num_items, self.num_features, self.form = num_items, num_features, form
        self.history_length, self.hash_buckets, self.embedding_dim = history_length, hash_buckets, embedding_dim
        self.hidden_units, self.dropout, self.item_dropout = tuple(hidden_units), dropout, item_dropout

        constant = {"initializer": "zeros", "trainable": False}
        self.content = self.add_weight("content", (num_items, num_features), **constant)
        if form == "network":
            width = self.hidden_units[-1]
            if hash_buckets:
                self.bucket = self.add_weight("bucket", (num_items,), dtype=tf.int32, **constant)
                self.id_table = self.add_weight("id_table", (hash_buckets + 1, embedding_dim), initializer="uniform")
            self.tower = [tf.keras.layers.Dense(units, "relu") for units in self.hidden_units]
            size = num_features + (embedding_dim if hash_buckets else 0)
            for layer in self.tower:
                layer.build((None, size))
                size = layer.units
            # C and c; w and β; t
            self.content_table = self.add_weight("content_table", (num_features, width + 1), initializer="uniform")
            self.own = self.add_weight("own", (num_items, width + 1), initializer="zeros")
            self.trained = self.add_weight("trained", (num_items,), **constant)
        self.built = True

    def set_content(self, content: np.ndarray, ids: np.ndarray | None = None) -> None:
        """Sets what is known of the items.

        Args:
          content: x, float `[I, F]`; 0 in the reserved rows.
          ids: strings `[I]`, "" for the reserved rows; only a network with `hash_buckets` needs them.

        Raises:
          ShortlistError: if they don't fit `num_items` and `num_features`, or a number isn't finite.
        """
        content = np.asarray(content, np.float32)
        rule = (
            f"`content` must be finite numbers [I, F] for {self.num_items:,} items and {self.num_features:,} features."
        )
        require(content.shape == (self.num_items, self.num_features), rule, shape=content.shape)
        require(bool(np.isfinite(content).all()), rule, not_finite=int((~np.isfinite(content)).sum()))
        self.content.assign(content)
        if self.form == "network" and self.hash_buckets:
            found = np.zeros(0, np.str_) if ids is None else np.asarray(ids, np.str_)
            rule = f"`ids` must be one string for each of the {self.num_items:,} items, as there are `hash_buckets`."
            require(found.shape == (self.num_items,), rule, shape=found.shape)
            hashing = tf.keras.layers.Hashing(self.hash_buckets + 1, mask_value="")
            self.bucket.assign(tf.cast(hashing(tf.constant(found)), tf.int32))

    def set_trained(self, labels: np.ndarray) -> None:
        """Names the items, int `[N]`, that are a label in training; the softmax runs over them."""
        trained = np.zeros(self.num_items, np.float32)
        trained[labels] = 1
        trained[:FIRST_ID] = 0
        self.trained.assign(trained)

    def embed_query(self, query: Query, training: bool = False) -> tf.Tensor:
        """float32 `[B, D]`: h and a 1, or the profile, of length 1."""
        others = [query["history_weight"]] if "history_weight" in query else []
        history, *others = last_n(query["history"], self.history_length, *others)  # [B, L]
        weight = tf.cast(history >= FIRST_ID, tf.float32)
        if training and self.dropout:
            weight *= tf.cast(tf.random.uniform(tf.shape(weight)) >= self.dropout, tf.float32)
        if others:
            weight *= _relative(others[0], weight)
        weight = tf.math.divide_no_nan(weight, tf.reduce_sum(weight, axis=1, keepdims=True))
        mean = tf.linalg.matvec(rows_of(self.content, history), weight, transpose_a=True)  # [B, F]
        if self.form == "profile":
            return tf.math.l2_normalize(mean, axis=1)
        if self.hash_buckets:
            buckets = rows_of(self.bucket, history)
            rows = rows_of(self.id_table, buckets)  # [B, L, E]
            mean = tf.concat([tf.linalg.matvec(rows, weight, transpose_a=True), mean], axis=1)
        for layer in self.tower:
            mean = layer(mean)
        return tf.pad(mean, [[0, 0], [0, 1]], constant_values=1.0)

    def item_vectors(self, training: bool = False) -> tf.Tensor:
        """float32 `[I, D]`: v and b, or the content, of length 1."""
        if self.form == "profile":
            return tf.math.l2_normalize(self.content, axis=1)
        kept = self.trained
        if training and self.item_dropout:
            kept = kept * tf.cast(tf.random.uniform([self.num_items]) >= self.item_dropout, tf.float32)
        return tf.linalg.matmul(self.content, self.content_table) + kept[:, tf.newaxis] * self.own

    def score_items(self, query: Query) -> tf.Tensor:
        """float32 `[B, I]`."""
        return tf.linalg.matmul(self.embed_query(query), self.item_vectors(), transpose_b=True)

    def call(self, inputs: Query) -> tf.Tensor:
        return self.score_items(inputs)

    def compute_loss(self, inputs: Query, training: bool = False) -> tf.Tensor:
        """The summed loss of a batch: a `Query` with `label` int32 `[B]`, the item that was watched next.

        Raises:
          ShortlistError: for a profile, which learns nothing.
        """
        require(self.form == "network", "`form` must be network to be trained.", form=self.form)
        vectors = self.item_vectors(training)
        logits = tf.linalg.matmul(self.embed_query(inputs, training), vectors, transpose_b=True)  # [B, I]
        logits = tf.where(self.trained > 0, logits, -1e9)
        return tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(inputs["label"], logits))

    def get_config(self) -> dict[str, Any]:
        return constructor_arguments(self)


def _relative(weight: tf.Tensor, seen: tf.Tensor) -> tf.Tensor:
    """Watch times or ratings `[B, L]`; where unknown (-1), the mean of the row's known ones, or 1."""
    known = seen * tf.cast(weight >= 0, tf.float32)
    total = tf.reduce_sum(known, axis=1, keepdims=True)
    mean = tf.where(total > 0, tf.math.divide_no_nan(tf.reduce_sum(known * weight, 1, keepdims=True), total), 1.0)
    return tf.where(known > 0, weight, mean)
