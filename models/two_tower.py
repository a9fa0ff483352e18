"""The candidate generator: a query tower over the watched items, a softmax over the catalogue."""

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from shortlist.models._base import FIRST_ID, Query, register
from shortlist.models._checks import require, require_integer
from shortlist.models._layers import QuantileNormalization, last_n, powers

SOFTMAX = ("full", "in_batch")


@register("two_tower")
class TwoTower(tfrs.Model):
    """Two-tower softmax: the next watched item out of all, given the last ones.

    ψ(x) = tower([mean of the last L watched items' embeddings, time of the request, user]), v_i = id + genres + year,
    p(i | x) = softmax_i(ψ(x)·v_i / τ). With `softmax="in_batch"` the softmax runs over the batch's own items and each
    logit is reduced by log Q(i), the log of the item's share of the training labels; accidental hits are masked.
    The loss is summed over the batch, not averaged: Adagrad's accumulator starts at 0.1, and the gradients of a mean
    would drown in it. The tower ends in a linear layer when it has hidden ones; without, its parts are added up.

    Source: Covington, Adams and Sargin 2016, §3 (the network and its softmax); Yi et al. 2019, eq. 4–6 (two towers,
    logQ). Unlike Covington's, the item tables of the history and of the candidates are two, which measured better, and
    the request's time takes the place of the example's age.

    Args:
      num_items: I, rows of the item table, the two reserved ones included.
      num_users: rows of the user table; 0 leaves the user out, so that new users are served like old ones.
      embedding_dim: D.
      history_length: L ≥ 1, watched items looked at.
      hidden_units: widths of the ReLU layers before the last linear one.
      softmax: "in_batch" or "full".
      temperature: τ > 0.
      time_quantiles: seconds since 1970, ascending; the request's time t enters as its cumulative frequency x among
        them, with x² and √x. Empty leaves it out.
      shared_item_table: one item table for the history and the candidates.
      normalize: ψ and v of length 1.
      dropout: share of the history's items left out at random in training.
      num_genres, num_years: columns of the candidates' content, see `set_content`; 0 leaves them out.

    Call: a `Query` → scores float32 `[B, I]`.

    Raises:
      ShortlistError: for an argument out of range.

    Example:
      >>> model = TwoTower(num_items=100, embedding_dim=8)
      >>> query = {"history": tf.constant([[5, 7]]), "time": tf.constant([0], tf.int64)}
      >>> model.score_items(query).shape
      TensorShape([1, 100])
    """

    def __init__(
        self,
        num_items: int,
        num_users: int = 0,
        embedding_dim: int = 64,
        history_length: int = 10,
        hidden_units: tuple[int, ...] = (),
        softmax: str = "in_batch",
        temperature: float = 1.0,
        time_quantiles: tuple[float, ...] = (),
        shared_item_table: bool = False,
        normalize: bool = False,
        dropout: float = 0.0,
        num_genres: int = 0,
        num_years: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        for name, value, low in (
            ("num_items", num_items, FIRST_ID + 1),
            ("num_users", num_users, 0),
            ("embedding_dim", embedding_dim, 1),
            ("history_length", history_length, 1),
            *(("hidden_units", units, 1) for units in hidden_units),
            ("num_genres", num_genres, 0),
            ("num_years", num_years, 0),
        ):
            require_integer(name, value, low)
        require(softmax in SOFTMAX, f"`softmax` must be one of {', '.join(SOFTMAX)}.", softmax=softmax)
        require(temperature > 0, "`temperature` must be above 0.", temperature=temperature)
        require(0 <= dropout < 1, "`dropout` must be in [0, 1).", dropout=dropout)
        ascending = len(time_quantiles) != 1 and bool(np.all(np.diff(time_quantiles) >= 0))
        rule = "`time_quantiles` must be empty or at least two ascending numbers."
        require(ascending, rule, time_quantiles=time_quantiles)
        self.num_items, self.num_users, self.embedding_dim = num_items, num_users, embedding_dim
        self.history_length, self.hidden_units, self.softmax = history_length, tuple(hidden_units), softmax
        self.temperature, self.time_quantiles = temperature, tuple(float(q) for q in time_quantiles)
        self.shared_item_table, self.normalize, self.dropout = shared_item_table, normalize, dropout
        self.num_genres, self.num_years = num_genres, num_years

        def table(name: str, rows: int) -> tf.Variable:
            init = tf.keras.initializers.RandomUniform(-0.05, 0.05)
            return self.add_weight(name, (rows, embedding_dim), initializer=init)

        self.candidate_table = table("candidate_table", num_items)
        self.history_table = self.candidate_table if shared_item_table else table("history_table", num_items)
        self.user_table = table("user_table", num_users) if num_users else None
        self.time = QuantileNormalization(1, len(self.time_quantiles)) if self.time_quantiles else None
        if self.time is not None:
            self.time.boundaries.assign([self.time_quantiles])
            self.time_table = self.add_weight("time_table", (3, embedding_dim), initializer="zeros")
        self.genre_table = table("genre_table", num_genres) if num_genres else None
        self.year_table = table("year_table", num_years) if num_years else None
        self.tower = [tf.keras.layers.Dense(units, "relu") for units in self.hidden_units]
        if self.tower:
            self.tower.append(tf.keras.layers.Dense(embedding_dim))
        width = embedding_dim * (1 + bool(num_users) + bool(self.time_quantiles))
        for layer in self.tower:
            layer.build((None, width))
            width = layer.units
        constant = {"initializer": "zeros", "trainable": False}
        self.genres = self.add_weight("genres", (num_items, num_genres), **constant) if num_genres else None
        self.years = self.add_weight("years", (num_items,), dtype=tf.int32, **constant) if num_years else None
        self.log_q = self.add_weight("log_q", (num_items,), **constant)
        self.task = tfrs.tasks.Retrieval(remove_accidental_hits=True)
        self.task.factorized_metrics = None
        self.built = True

    def set_content(self, genres: np.ndarray | None = None, years: np.ndarray | None = None) -> None:
        """Sets what is known of the items: `genres` float `[I, G]` multi-hot, `years` int `[I]`, a bucket each.

        Raises:
          ShortlistError: if they don't fit `num_items`, `num_genres` and `num_years`.
        """
        if self.genres is not None:
            rule = f"`genres` must be [I, G] for {self.num_items:,} items and {self.num_genres} genres."
            genres = np.asarray(genres)
            require(genres.shape == tuple(self.genres.shape), rule, shape=genres.shape)
            self.genres.assign(genres)
        if self.years is not None:
            rule = f"`years` must be a bucket from 0 to {self.num_years - 1} for each of the {self.num_items:,} items."
            years = np.asarray(years)
            require(years.shape == (self.num_items,), rule, shape=years.shape)
            low, high = int(years.min()), int(years.max())
            require(low >= 0 and high < self.num_years, rule, lowest=low, highest=high)
            self.years.assign(years)

    def set_label_counts(self, counts: np.ndarray) -> None:
        """Sets log Q from `counts` `[I]`, how often each item is a label."""
        counts = np.asarray(counts, np.float64)
        rule = f"`counts` must be one number for each of the {self.num_items:,} items."
        require(counts.shape == (self.num_items,), rule, shape=counts.shape)
        self.log_q.assign(np.log(np.maximum(counts, 0.5) / max(counts.sum(), 1.0)))

    def embed_query(self, query: Query, training: bool = False) -> tf.Tensor:
        """ψ / τ, float32 `[B, D]`."""
        (history,) = last_n(query["history"], self.history_length)  # [B, L]
        mask = tf.cast(history >= FIRST_ID, tf.float32)
        if training and self.dropout:
            mask *= tf.cast(tf.random.uniform(tf.shape(mask)) >= self.dropout, tf.float32)
        rows = tf.gather(self.history_table, history) * mask[..., tf.newaxis]  # [B, L, D]
        total = tf.reduce_sum(mask, axis=1, keepdims=True)
        parts = [tf.math.divide_no_nan(tf.reduce_sum(rows, axis=1), total)]  # [B, D]
        if self.time is not None:
            parts.append(tf.linalg.matmul(powers(self.time(query["time"][:, tf.newaxis])), self.time_table))
        if self.user_table is not None:
            parts.append(tf.gather(self.user_table, query["user"]))
        if not self.tower:
            psi = tf.add_n(parts)
        else:
            psi = tf.concat(parts, axis=1)
            for layer in self.tower:
                psi = layer(psi)
        psi = tf.math.l2_normalize(psi, axis=1) if self.normalize else psi
        return psi / self.temperature

    def embed_items(self, items: tf.Tensor) -> tf.Tensor:
        """v, float32 `[N, D]`, of item rows int `[N]`."""
        vectors = tf.gather(self.candidate_table, items)
        if self.genre_table is not None:
            vectors += tf.linalg.matmul(tf.gather(self.genres, items), self.genre_table)
        if self.year_table is not None:
            vectors += tf.gather(self.year_table, tf.gather(self.years, items))
        return tf.math.l2_normalize(vectors, axis=1) if self.normalize else vectors

    def item_vectors(self) -> tf.Tensor:
        """V, float32 `[I, D]`."""
        return self.embed_items(tf.range(self.num_items))

    def score_items(self, query: Query) -> tf.Tensor:
        """ψ·v / τ, float32 `[B, I]`."""
        return tf.linalg.matmul(self.embed_query(query), self.item_vectors(), transpose_b=True)

    def call(self, inputs: Query) -> tf.Tensor:
        return self.score_items(inputs)

    def compute_loss(self, inputs: Query, training: bool = False) -> tf.Tensor:
        """The summed loss of a batch: a `Query` with `label` int32 `[B]`, the item that was watched next."""
        psi, label = self.embed_query(inputs, training=training), inputs["label"]
        if self.softmax == "in_batch":
            correction = -tf.gather(self.log_q, label)[:, tf.newaxis]  # as a column: TFRS's own stops at Q = 1e-6
            psi = tf.pad(psi, [[0, 0], [0, 1]], constant_values=1.0)  # [B, D + 1]
            vectors = tf.concat([self.embed_items(label), correction], axis=1)
            return self.task(psi, vectors, candidate_ids=label, compute_metrics=False)
        logits = tf.linalg.matmul(psi, self.item_vectors(), transpose_b=True)  # [B, I]
        logits = tf.concat([tf.fill([tf.shape(logits)[0], FIRST_ID], -1e9), logits[:, FIRST_ID:]], axis=1)
        return tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits))

    def get_config(self) -> dict[str, Any]:
        return {
            "num_items": self.num_items,
            "num_users": self.num_users,
            "embedding_dim": self.embedding_dim,
            "history_length": self.history_length,
            "hidden_units": self.hidden_units,
            "softmax": self.softmax,
            "temperature": self.temperature,
            "time_quantiles": self.time_quantiles,
            "shared_item_table": self.shared_item_table,
            "normalize": self.normalize,
            "dropout": self.dropout,
            "num_genres": self.num_genres,
            "num_years": self.num_years,
            "name": self.name,
        }
