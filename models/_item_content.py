"""What is known of the items but their ids, as the candidates of a two-tower see it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from shortlist.models._base import FIRST_ID
from shortlist.models._checks import require
from shortlist.models._replicas import rows_of


def table(layer: tf.keras.layers.Layer, name: str, rows: int, dim: int, initializer: Any = "") -> tf.Variable:
    """A table of embeddings float32 `[rows, dim]`, weights of `layer`."""
    initializer = initializer or tf.keras.initializers.RandomUniform(-0.05, 0.05)
    return layer.add_weight(name, (rows, dim), tf.float32, initializer)


def weighted_sum(table: tf.Variable, rows: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """Σ_t weight[n, t] · table[rows[n, t]], float32 `[N, D]`, of rows int and weights float32 `[N, T]`.

    A sparse product with the different rows that have a weight: several times faster than to gather `[N, T, D]`, and
    its gradient has each row once.
    """
    place = tf.where(weight != 0)  # [P, 2]
    used, column = tf.unique(tf.gather_nd(rows, place), tf.int64)
    shape = [tf.shape(rows, tf.int64)[0], tf.size(used, tf.int64)]
    weights = tf.SparseTensor(tf.stack([place[:, 0], column], axis=1), tf.gather_nd(weight, place), shape)  # [N, used]
    return tf.sparse.sparse_dense_matmul(weights, rows_of(table, used))


def mean_of_known(table: tf.Variable, rows: tf.Tensor) -> tf.Tensor:
    """The mean embedding `[N, D]` of the rows int `[N, T]` that are neither padding nor unknown; 0 where none is."""
    return weighted_sum(table, rows, shares(tf.cast(rows >= FIRST_ID, tf.float32)))


def shares(weight: tf.Tensor) -> tf.Tensor:
    """The weights `[N, T]` over their sum; 0 where all are."""
    return tf.math.divide_no_nan(weight, tf.reduce_sum(weight, axis=1, keepdims=True))


@tf.keras.utils.register_keras_serializable("shortlist")
class ItemContent(tf.keras.layers.Layer):
    """The sum of an item's embeddings of genres, year, title and further columns; each a constant of the layer.

    content(i) = Σ_{g ∈ genres(i)} G_g + Y_{year(i)} + mean_{t ∈ title(i)} T_t + Σ_c C_c,{value(i, c)}

    Args:
      num_items: I.
      embedding_dim: D.
      num_genres, num_years: columns of the multi-hot genres, buckets of the year; 0 leaves them out.
      num_title_tokens: rows of the table of title tokens, 0 is padding and 1 an unknown one; 0 leaves the title out.
      title_length: tokens kept of a title.
      categories: (name, number of rows) of each further column; rows 0 and 1, missing and unknown, add nothing.

    Call: item rows int `[N]` → float32 `[N, D]`.
    """

    def __init__(
        self,
        num_items: int,
        embedding_dim: int,
        num_genres: int = 0,
        num_years: int = 0,
        num_title_tokens: int = 0,
        title_length: int = 16,
        categories: Sequence[tuple[str, int]] = (),
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_items, self.num_genres, self.num_years = num_items, num_genres, num_years
        self.num_title_tokens, self.title_length = num_title_tokens, title_length
        self.categories = tuple(categories)
        constant = {"initializer": "zeros", "trainable": False}
        if num_genres:
            self.genres = self.add_weight("genres", (num_items, num_genres), **constant)
            self.genre_table = table(self, "genre_table", num_genres, embedding_dim)
        if num_years:
            self.years = self.add_weight("years", (num_items,), dtype=tf.int32, **constant)
            self.year_table = table(self, "year_table", num_years, embedding_dim)
        if num_title_tokens:
            self.titles = self.add_weight("titles", (num_items, title_length), dtype=tf.int32, **constant)
            self.title_table = table(self, "title_table", num_title_tokens, embedding_dim)
        self.columns = {n: self.add_weight(n, (num_items,), dtype=tf.int32, **constant) for n, _ in self.categories}
        self.column_tables = {n: table(self, f"{n}_table", rows, embedding_dim) for n, rows in self.categories}

    def assign(
        self,
        genres: np.ndarray | None = None,
        years: np.ndarray | None = None,
        titles: np.ndarray | None = None,
        categories: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Sets the constants; what the layer leaves out is ignored. See `TwoTower.set_content`."""
        if self.num_genres and genres is not None:
            rule = f"`genres` must be [I, G] for {self.num_items:,} items and {self.num_genres} genres."
            genres = np.asarray(genres)
            require(genres.shape == (self.num_items, self.num_genres), rule, shape=genres.shape)
            self.genres.assign(genres)
        if self.num_years and years is not None:
            what = f"a bucket from 0 to {self.num_years - 1} for each of the {self.num_items:,} items"
            self.years.assign(_rows("years", years, (self.num_items,), self.num_years, what))
        if self.num_title_tokens and titles is not None:
            what = f"[I, T] rows below {self.num_title_tokens:,} for {self.num_items:,} items, T = {self.title_length}"
            shape = (self.num_items, self.title_length)
            self.titles.assign(_rows("titles", titles, shape, self.num_title_tokens, what))
        for name, size in self.categories:
            if categories is not None:
                require(name in categories, "`categories` must hold every column of the model.", missing=name)
                what = f"a row below {size:,} for each of the {self.num_items:,} items"
                self.columns[name].assign(_rows(name, categories[name], (self.num_items,), size, what))

    def call(self, items: tf.Tensor) -> tf.Tensor:
        parts = []
        if self.num_genres:
            parts.append(tf.linalg.matmul(rows_of(self.genres, items), self.genre_table))
        if self.num_years:
            years = rows_of(self.years, items)
            parts.append(rows_of(self.year_table, years))
        if self.num_title_tokens:
            parts.append(mean_of_known(self.title_table, rows_of(self.titles, items)))
        for name, _ in self.categories:
            rows = rows_of(self.columns[name], items)[:, tf.newaxis]
            parts.append(mean_of_known(self.column_tables[name], rows))
        return tf.add_n(parts)


def _rows(name: str, rows: np.ndarray, shape: tuple[int, ...], size: int, what: str) -> np.ndarray:
    rows = np.asarray(rows)
    require(rows.shape == shape, f"`{name}` must be {what}.", shape=rows.shape)
    low, high = int(rows.min()), int(rows.max())
    require(low >= 0 and high < size, f"`{name}` must be {what}.", lowest=low, highest=high)
    return rows.astype(np.int32)
