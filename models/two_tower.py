"""The candidate generator: a query tower over the watched items, a softmax over the catalogue."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from shortlist.models._base import FIRST_ID, Query, constructor_arguments, register
from shortlist.models._checks import require, require_integer, require_number
from shortlist.models._item_content import ItemContent, mean_of_known, shares, table, weighted_sum
from shortlist.models._layers import QuantileNormalization, last_n, powers
from shortlist.models._negatives import CatalogueSoftmax
from shortlist.models._replicas import rows_of

Categories = Mapping[str, int] | Iterable[tuple[str, int]]


@register("two_tower")
class TwoTower(tfrs.Model):
    """Two-tower softmax: the next watched item out of all, given the last ones.

    ψ(x) = tower([mean of the last L watched items' embeddings, mean of the last M, time of the request, user,
    categories, numbers, search tokens, age of the example]), v_i = id + genres + year + mean of title tokens +
    categories, and p(i | x) = softmax_i(ψ(x)·v_i / τ). How that is learned, over which negatives, is told in
    `CatalogueSoftmax`.
    The loss is summed over the batch, not averaged: Adagrad's accumulator starts at 0.1, and the gradients of a mean
    would drown in it. The tower ends in a linear layer when it has hidden ones; without, its parts are added up.

    Source: Covington, Adams and Sargin 2016, §3 (the network and its softmax); Yi et al. 2019, eq. 4–6 (two towers,
    logQ). Unlike Covington's, the item tables of the history and of the candidates are two, which measured better, and
    the request's time is an input beside the example's age.

    Args:
      num_items: I, rows of the item table, the two reserved ones included.
      num_users: rows of the user table; 0 leaves the user out, so that new users are served like old ones.
      embedding_dim: D.
      history_length: L ≥ 1, watched items looked at.
      long_history_length: M > L adds the mean of the last M, by the same table: what the user likes beside what he
        is about to do. 0 leaves it out.
      hidden_units: widths of the ReLU layers before the last linear one.
      softmax, negatives, log_q, popularity_power, hard_share, hard_warmup, hard_refresh: the loss, see
        `CatalogueSoftmax` in models/_negatives.py.
      temperature: τ > 0.
      time_quantiles: seconds since 1970, ascending; the request's time t enters as its cumulative frequency x among
        them, with x² and √x. Empty leaves it out.
      age_quantiles: seconds, ascending, as `time_quantiles` for `query["example_age"]`, by how much a training example
        is older than the newest; absent, as in serving, it is 0. Empty leaves it out.
      recency_half_life: seconds after which a watched item counts half in its mean, seen from the newest of them; 0
        weighs all alike.
      categories: name and vocabulary size of each `query[name]` int32 `[B]`; rows 0 and 1, missing and unknown, add
        nothing.
      numbers: names of each `query[name]` float32 `[B]`, which enters like the time (`set_numbers` gives its
        quantiles); NaN, a missing one, adds nothing.
      num_tokens: rows of the table of search tokens, `query["query"]` int32 `[B, T]`, whose mean embedding enters;
        rows 0 and 1, padding and unknown, add nothing. 0 leaves them out.
      shared_item_table: one item table for the history and the candidates.
      normalize: ψ and v of length 1.
      dropout: share of the history's items left out at random in training.
      id_dropout: share of the candidates whose id is left out in training, so that content alone learns to serve.
      num_genres, num_years, num_title_tokens, title_length, item_categories: the candidates' content, see
        `set_content`; 0 or nothing leaves it out.

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
        long_history_length: int = 0,
        hidden_units: tuple[int, ...] = (),
        softmax: str = "in_batch",
        negatives: int = 512,
        log_q: str = "counts",
        popularity_power: float = 0.75,
        hard_share: float = 0.1,
        hard_warmup: int = 1000,
        hard_refresh: int = 200,
        temperature: float = 1.0,
        time_quantiles: tuple[float, ...] = (),
        age_quantiles: tuple[float, ...] = (),
        recency_half_life: float = 0.0,
        categories: Categories = (),
        numbers: tuple[str, ...] = (),
        num_tokens: int = 0,
        shared_item_table: bool = False,
        normalize: bool = False,
        dropout: float = 0.0,
        id_dropout: float = 0.0,
        num_genres: int = 0,
        num_years: int = 0,
        num_title_tokens: int = 0,
        title_length: int = 16,
        item_categories: Categories = (),
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.categories, self.item_categories = _pairs(categories), _pairs(item_categories)
        for name, value, low in (
            ("num_items", num_items, FIRST_ID + 1),
            ("num_users", num_users, 0),
            ("embedding_dim", embedding_dim, 1),
            ("history_length", history_length, 1),
            ("long_history_length", long_history_length, 0),
            *(("hidden_units", units, 1) for units in hidden_units),
            ("num_tokens", num_tokens, 0),
            ("num_genres", num_genres, 0),
            ("num_years", num_years, 0),
            ("num_title_tokens", num_title_tokens, 0),
            ("title_length", title_length, 1),
            *((f"categories.{name}", size, 1) for name, size in self.categories),
            *((f"item_categories.{name}", size, 1) for name, size in self.item_categories),
        ):
            require_integer(name, value, low)
        rule = "`long_history_length` must be 0 or above `history_length`."
        fits = long_history_length == 0 or long_history_length > history_length
        require(fits, rule, long_history_length=long_history_length, history_length=history_length)
        require(temperature > 0, "`temperature` must be above 0.", temperature=temperature)
        for name, share in (("dropout", dropout), ("id_dropout", id_dropout)):
            require(0 <= share < 1, f"`{name}` must be in [0, 1).", **{name: share})
        for name, quantiles in (("time_quantiles", time_quantiles), ("age_quantiles", age_quantiles)):
            ascending = len(quantiles) != 1 and bool(np.all(np.diff(quantiles) >= 0))
            require(ascending, f"`{name}` must be empty or at least two ascending numbers.", **{name: quantiles})
        self.num_items, self.num_users, self.embedding_dim = num_items, num_users, embedding_dim
        self.history_length, self.long_history_length = history_length, long_history_length
        self.hidden_units, self.softmax = tuple(hidden_units), softmax
        self.negatives, self.log_q, self.popularity_power = negatives, log_q, popularity_power
        self.hard_share, self.hard_warmup, self.hard_refresh = hard_share, hard_warmup, hard_refresh
        self.temperature = temperature
        self.time_quantiles = tuple(float(q) for q in time_quantiles)
        self.age_quantiles = tuple(float(q) for q in age_quantiles)
        self.recency_half_life = require_number("recency_half_life", recency_half_life)
        self.numbers, self.num_tokens = tuple(numbers), num_tokens
        self.shared_item_table, self.normalize = shared_item_table, normalize
        self.dropout, self.id_dropout = dropout, id_dropout
        self.num_genres, self.num_years = num_genres, num_years
        self.num_title_tokens, self.title_length = num_title_tokens, title_length

        dim = embedding_dim
        self.candidate_table = table(self, "candidate_table", num_items, dim)
        self.history_table = self.candidate_table if shared_item_table else table(self, "history_table", num_items, dim)
        self.user_table = table(self, "user_table", num_users, dim) if num_users else None
        self.time, self.time_table = self._normalized("time", self.time_quantiles)
        self.age, self.age_table = self._normalized("age", self.age_quantiles)
        self.category_tables = {name: table(self, f"{name}_table", size, dim) for name, size in self.categories}
        self.quantiles = QuantileNormalization(len(self.numbers)) if self.numbers else None
        self.number_table = table(self, "number_table", 3 * len(self.numbers), dim, "zeros") if self.numbers else None
        self.token_table = table(self, "token_table", num_tokens, dim) if num_tokens else None
        optional = (long_history_length, num_users, self.time_quantiles, self.age_quantiles, self.numbers, num_tokens)
        parts = 1 + sum(map(bool, optional)) + len(self.categories)
        self.tower = [tf.keras.layers.Dense(units, "relu") for units in self.hidden_units]
        if self.tower:
            self.tower.append(tf.keras.layers.Dense(dim))
        width = dim * parts
        for layer in self.tower:
            layer.build((None, width))
            width = layer.units
        content = (num_genres, num_years, num_title_tokens, title_length, self.item_categories)
        any_content = num_genres or num_years or num_title_tokens or self.item_categories
        self.content = ItemContent(num_items, dim, *content) if any_content else None
        self.trained = self.add_weight("trained", (num_items,), initializer="ones", trainable=False)
        self.loss_layer = CatalogueSoftmax(
            num_items, dim, softmax, negatives, log_q, popularity_power, hard_share, hard_warmup, hard_refresh
        )
        self.built = True

    def _normalized(self, name: str, quantiles: tuple[float, ...]) -> tuple[Any, Any]:
        """The layer and the table of a number whose quantiles are arguments; None of one that is left out."""
        if not quantiles:
            return None, None
        layer = QuantileNormalization(1, len(quantiles), name=f"{name}_quantiles")
        layer.set_boundaries([quantiles])
        return layer, table(self, f"{name}_table", 3, self.embedding_dim, "zeros")

    def set_content(
        self,
        genres: np.ndarray | None = None,
        years: np.ndarray | None = None,
        titles: np.ndarray | None = None,
        categories: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Sets what is known of the items; what the model leaves out is ignored.

        Args:
          genres: float `[I, G]`, multi-hot.
          years: int `[I]`, a bucket each.
          titles: int `[I, T]`, the rows of `title_length` tokens, padded with 0.
          categories: int `[I]` by the names of `item_categories`.

        Raises:
          ShortlistError: if they don't fit the arguments of the model.
        """
        if self.content is not None:
            self.content.assign(genres, years, titles, categories)

    def set_numbers(self, values: np.ndarray) -> None:
        """Fits the quantiles of `numbers` to `values`, float `[M, F]`; NaN is left out, and without `numbers` all."""
        if self.quantiles is not None:
            self.quantiles.adapt(values)

    def set_label_counts(self, counts: np.ndarray) -> None:
        """Sets log Q from `counts` `[I]`, how often each item is a label. One that never is has its content alone."""
        self.loss_layer.set_counts(counts)
        self.trained.assign((np.asarray(counts) > 0).astype(np.float32))

    def embed_query(self, query: Query, training: bool = False) -> tf.Tensor:
        """ψ / τ, float32 `[B, D]`."""
        parts = self._watched(query, training)
        if self.time is not None:
            parts.append(tf.linalg.matmul(powers(self.time(query["time"][:, tf.newaxis])), self.time_table))
        if self.user_table is not None:
            parts.append(rows_of(self.user_table, query["user"]))
        for name, _ in self.categories:
            parts.append(mean_of_known(self.category_tables[name], query[name][:, tf.newaxis]))
        if self.quantiles is not None:
            numbers = tf.stack([query[name] for name in self.numbers], axis=1)  # [B, F]
            known = tf.math.is_finite(numbers)
            x = tf.where(known, self.quantiles(tf.where(known, numbers, 0.0)), 0.0)
            parts.append(tf.linalg.matmul(powers(x), self.number_table))
        if self.token_table is not None:
            parts.append(mean_of_known(self.token_table, query["query"]))
        if self.age is not None:
            age = query.get("example_age", tf.zeros(tf.shape(query["history"])[:1]))
            parts.append(tf.linalg.matmul(powers(self.age(age[:, tf.newaxis])), self.age_table))
        psi = tf.concat(parts, axis=1) if self.tower else tf.add_n(parts)
        for layer in self.tower:
            psi = layer(psi)
        psi = tf.math.l2_normalize(psi, axis=1) if self.normalize else psi
        return psi / self.temperature

    def _watched(self, query: Query, training: bool) -> list[tf.Tensor]:
        """The mean embeddings of the last L watched items, and of the longer history, `[B, D]` each."""
        length = max(self.history_length, self.long_history_length)
        if self.recency_half_life:
            history, times = last_n(query["history"], length, query["history_time"])  # [B, length]
            known = history >= FIRST_ID
            times = tf.where(known, times, 0)
            behind = tf.cast(tf.reduce_max(times, axis=1, keepdims=True) - times, tf.float32)
            weight = tf.where(known, tf.exp(behind * (-np.log(2) / self.recency_half_life)), 0.0)
        else:
            (history,) = last_n(query["history"], length)
            weight = tf.cast(history >= FIRST_ID, tf.float32)
        if training and self.dropout:
            weight *= tf.cast(tf.random.uniform(tf.shape(history)) >= self.dropout, tf.float32)
        means = [shares(weight)]
        if self.long_history_length:
            watched = tf.reduce_sum(tf.cast(history != 0, tf.int32), axis=1, keepdims=True)
            means.append(shares(tf.where(tf.range(length) >= watched - self.history_length, weight, 0.0)))
        if not self.tower:
            means = [tf.add_n(means)]
        return [weighted_sum(self.history_table, history, mean) for mean in means]

    def embed_items(self, items: tf.Tensor, training: bool = False) -> tf.Tensor:
        """v, float32 `[N, D]`, of item rows int `[N]`."""
        keep = rows_of(self.trained, items)
        if training and self.id_dropout:
            keep *= tf.cast(tf.random.uniform(tf.shape(items)) >= self.id_dropout, tf.float32)
        vectors = rows_of(self.candidate_table, items) * keep[:, tf.newaxis]
        if self.content is not None:
            vectors += self.content(items)
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
        """The summed loss of a batch: a `Query` with `label` int32 `[B]`, the next item, and maybe `weight` float32."""
        psi = self.embed_query(inputs, training=training)

        def embed(items: tf.Tensor, training: bool = training) -> tf.Tensor:
            return self.embed_items(items, training)

        return self.loss_layer(psi, inputs["label"], embed, inputs.get("weight"), training=training)

    def get_config(self) -> dict[str, Any]:
        return constructor_arguments(self)


def _pairs(categories: Categories) -> tuple[tuple[str, int], ...]:
    pairs = categories.items() if isinstance(categories, Mapping) else categories
    return tuple((str(name), size) for name, size in pairs)
