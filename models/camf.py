"""Rating prediction by matrix factorization with biases, and with deviations by context.

Past 400 lines because the two models share their steps, and what one adds to the other is read beside it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from shortlist.models._base import Query, constructor_arguments, register
from shortlist.models._camf import adagrad_steps
from shortlist.models._checks import require, require_integer, require_number
from shortlist.models._conditions import checked_contexts, condition_columns
from shortlist.models._replicas import rows_of

DEVIATIONS = ("C", "CI", "CU", "CUCI", "low_rank")


@register("biased_mf")
class BiasedMF(tf.keras.Model):
    """Matrix factorization with biases: a rating is a mean, what user and item add to it, and how they match.

    r̂ = μ + b_u + b_i + p_u·q_i. The loss of a batch is the sum over its ratings, not the mean, of
    (r − r̂)² + λ_b (n_u^(ν−1) b_u² + n_i^(ν−1) b_i²) + λ_f (n_u^(ν−1) |p_u|² + n_i^(ν−1) |q_i|²), n how many ratings the
    row has. Over an epoch a row's own weight is λ n^ν: ν = 0 is ridge regression, which shrinks rows with few ratings;
    ν = 1 is the usual form of stochastic gradient descent. Only the rows of the batch are read and changed. `adapt`
    sets μ and n; a row without a rating has vectors of 0, so that its r̂ is that of what is known.

    Source: Koren 2009, "Collaborative Filtering with Temporal Dynamics", equation 1 and its biases; Koren, Bell and
    Volinsky 2009, equation 5. Those have ν = 1.

    Args:
      num_users, num_items: U and I, rows of the tables, the reserved ones included.
      embedding_dim: D ≥ 1.
      l2_bias, l2_factors: λ_b and λ_f, at least 0, in squared units of the rating.
      frequency_exponent: ν ≥ 0.

    Call: `user` and `item` int `[B]` → r̂ float32 `[B]`; without `item`, a `Query` → r̂ of all items, float32 `[B, I]`.

    Raises:
      ShortlistError: for an argument out of range, and from `adapt` for what is no rating.

    Example:
      >>> model = BiasedMF(num_users=2, num_items=3)
      >>> x, y = {"user": np.array([0, 1]), "item": np.array([2, 1])}, np.array([4.0, 2.0], np.float32)
      >>> model.adapt(x, y)
      >>> model.compile(tf.keras.optimizers.Adagrad(0.4))
      >>> _ = model.fit(x, y, epochs=200, verbose=0)
      >>> model.predict_rating(x, clip=(1, 5)).numpy().round(1)
      array([3.9, 2.1], dtype=float32)
    """

    contexts: Mapping[str, int] = {}

    def __init__(
        self,
        num_users: int,
        num_items: int,
        embedding_dim: int = 20,
        l2_bias: float = 0.2,
        l2_factors: float = 0.5,
        frequency_exponent: float = 0.5,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_users = require_integer("num_users", num_users)
        self.num_items = require_integer("num_items", num_items)
        self.embedding_dim = require_integer("embedding_dim", embedding_dim)
        self.l2_bias, self.l2_factors = require_number("l2_bias", l2_bias), require_number("l2_factors", l2_factors)
        self.frequency_exponent = require_number("frequency_exponent", frequency_exponent)
        self.mean = self.add_weight("mean", (), initializer="zeros", trainable=False)
        self.l2 = self.add_weight("l2", (3,), initializer="zeros", trainable=False)  # a weight: no new graph for new λ
        self.l2.assign([self.l2_bias, self.l2_factors, 0])

        def start(shape: Any, dtype: Any = None) -> tf.Tensor:
            vectors = tf.keras.initializers.RandomNormal(stddev=0.1)((shape[0], self.embedding_dim), dtype)
            return tf.pad(vectors, [[0, 0], [0, 1]])

        for side, rows in (("user", self.num_users), ("item", self.num_items)):
            # Vector and bias lie together: in a large table, every other place is one more wait for main memory.
            setattr(self, f"{side}_rows", self.add_weight(f"{side}_rows", (rows, self.embedding_dim + 1), None, start))
            share = self.add_weight(f"{side}_share", (rows,), initializer="ones", trainable=False)  # n^(ν−1)
            setattr(self, f"{side}_share", share)
        self.trackers = [
            tf.keras.metrics.Mean("loss"),
            tf.keras.metrics.RootMeanSquaredError("rmse"),
            tf.keras.metrics.MeanAbsoluteError("mae"),
        ]
        self.built = True

    @property
    def user_table(self) -> tf.Tensor:
        """p, float32 `[U, D]`, a part of `user_rows`; its `assign` sets it there."""
        return self.user_rows[:, :-1]

    @property
    def user_bias(self) -> tf.Tensor:
        """b_u, float32 `[U]`, as `user_table`."""
        return self.user_rows[:, -1]

    @property
    def item_table(self) -> tf.Tensor:
        """q, float32 `[I, D]`, as `user_table`."""
        return self.item_rows[:, :-1]

    @property
    def item_bias(self) -> tf.Tensor:
        """b_i, float32 `[I]`, as `user_table`."""
        return self.item_rows[:, -1]

    def adapt(self, inputs: Mapping[str, np.ndarray], ratings: np.ndarray) -> None:
        """Sets μ, λ and how often each row is rated; sets the vectors of rows without a rating to 0.

        Args:
          inputs: as for `call`, `[N]` each, all that is trained on.
          ratings: float `[N]`.

        Raises:
          ShortlistError: without a rating, or with one that is no finite number.
        """
        ratings = np.asarray(ratings, np.float64)
        finite = bool(ratings.size) and bool(np.isfinite(ratings).all())
        require(finite, "`ratings` must be finite numbers, at least one.", ratings=ratings.tolist()[:5])
        self.mean.assign(ratings.mean())
        self.l2.assign([self.l2_bias, self.l2_factors, getattr(self, "l2_deviation", 0)])
        for side in ("user", "item"):
            counts = self._set_share(f"{side}_share", np.asarray(inputs[side]))
            for table in self._tables_of(side):
                table.assign(table * tf.cast(counts > 0, tf.float32)[:, tf.newaxis])

    def _set_share(self, name: str, rows: np.ndarray) -> np.ndarray:
        share = getattr(self, name)
        counts = np.bincount(rows.ravel(), minlength=share.shape[0])
        share.assign(np.maximum(counts, 1.0) ** (self.frequency_exponent - 1))
        return counts

    def _tables_of(self, side: str) -> list[Any]:
        """The tables with a vector a user, or item, that start at random."""
        return [getattr(self, f"{side}_table")]

    def fit_quickly(
        self,
        inputs: Mapping[str, np.ndarray],
        ratings: np.ndarray,
        epochs: int = 60,
        batch_size: int = 1024,
        learning_rate: float = 0.4,
        seed: int = 0,
    ) -> None:
        """`adapt`, and the steps that `fit` takes with a new Adagrad, in compiled loops on one thread.

        Of a few thousand ratings `fit` spends nearly all its time between the steps; this is for many small models.

        Args:
          inputs: as for `call`, `[N]` each.
          ratings: float `[N]`.
          epochs: how often each rating is seen.
          batch_size: B; the last batch of an epoch is the rest of it.
          learning_rate: of Adagrad.
          seed: of the order of the ratings, another one each epoch.
        """
        self.adapt(inputs, ratings)
        inputs = {name: np.asarray(values, np.int64) for name, values in inputs.items()}
        flat, cells, conditions, low_rank = self._parts(inputs)
        numbers, number_penalties = (np.concatenate(parts) for parts in zip(*map(self._float64, flat), strict=True))
        sides = [(f"{side}_table", f"{side}_share", self.l2[1]) for side in ("user", "item")]
        tables, penalties = zip(*map(self._float64, [*sides, *low_rank]), strict=True)
        if not low_rank:
            tables += tuple(np.zeros((rows, 0)) for rows in (1, self.num_items, self.num_users))
            penalties += tuple(np.zeros(rows) for rows in (1, self.num_items, self.num_users))
        rng, n = np.random.default_rng(seed), len(ratings)
        order = np.full((epochs, -(-n // batch_size) * batch_size), -1)
        order[:, :n] = np.stack([rng.permutation(n) for _ in range(epochs)])
        adagrad_steps(
            order.reshape(-1, batch_size),
            np.asarray(ratings, np.float64) - float(self.mean),
            learning_rate,
            (cells, inputs["user"], inputs["item"], conditions),
            (numbers[:, np.newaxis], number_penalties),
            tables,
            penalties,
        )
        ends = np.cumsum([0, *(getattr(self, name).shape[0] for name, _, _ in flat)])
        for (name, _, _), start, end in zip(flat, ends[:-1], ends[1:], strict=True):
            getattr(self, name).assign(numbers[start:end])
        for (name, _, _), table in zip([*sides, *low_rank], tables, strict=False):
            getattr(self, name).assign(table)

    def _float64(self, part: tuple[str, str, tf.Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """A table, and λ n^(ν−1) of its rows."""
        table, share = (getattr(self, name).numpy().astype(np.float64) for name in part[:2])
        return table, float(part[2]) * share

    def _parts(self, inputs: Mapping[str, np.ndarray]) -> tuple[list[Any], np.ndarray, np.ndarray, list[Any]]:
        """For `fit_quickly`: the tables of numbers one after the other (their names, shares and λ), the rows of them
        that each rating adds up, its conditions, and the tables of a low rank."""
        cells = np.stack([inputs["user"], inputs["item"] + self.num_users], axis=1)
        flat = [(f"{side}_bias", f"{side}_share", self.l2[0]) for side in ("user", "item")]
        return flat, cells, np.zeros((len(cells), 0), np.int64), []

    def call(self, inputs: Query, training: bool = False) -> tf.Tensor:
        if "item" not in inputs:
            return self.score_items(inputs)
        rating, penalty, factors = tf.convert_to_tensor(self.mean), 0.0, []
        for side in ("user", "item"):
            vectors, bias = self._row(side, inputs)
            share = rows_of(getattr(self, f"{side}_share"), inputs[side])
            rating += bias
            factors.append(vectors)
            squares = self.l2[0] * tf.square(bias) + self.l2[1] * _squared(vectors)
            penalty += tf.reduce_sum(share * squares)
        rating += tf.reduce_sum(factors[0] * factors[1], axis=1)  # [B]
        for deviation, own_penalty in self._deviations(inputs).values():
            rating += tf.reduce_sum(deviation, axis=1)
            penalty += own_penalty
        if training:
            self.add_loss(penalty)
        return rating

    def _row(self, side: str, inputs: Query) -> tuple[tf.Tensor, tf.Tensor]:
        """The vectors `[B, D]` and biases `[B]` of users or items."""
        rows = rows_of(getattr(self, f"{side}_rows"), inputs[side])
        return rows[:, :-1], rows[:, -1]

    def _deviations(self, inputs: Query) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
        """By part: what each dimension of the context adds, `[B, C]`, and the part's regularization."""
        return {}

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None) -> tf.Tensor:
        """Σ w (y − ŷ)² and the regularization of the last call in training."""
        errors = tf.square(tf.cast(y, tf.float32) - y_pred)
        errors = errors if sample_weight is None else errors * tf.cast(sample_weight, tf.float32)
        loss = tf.add_n([tf.reduce_sum(errors), *self.losses])
        self.trackers[0].update_state(loss / tf.cast(tf.maximum(tf.size(errors), 1), tf.float32), tf.size(errors))
        return loss

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> dict[str, tf.Tensor]:
        for metric in self.trackers[1:]:
            metric.update_state(y, y_pred, sample_weight)
        return {metric.name: metric.result() for metric in self.trackers}

    @property
    def metrics(self) -> list[tf.keras.metrics.Metric]:
        """The loss a rating, RMSE and MAE, of ratings that are not clipped."""
        return self.trackers

    def predict_rating(self, inputs: Query, clip: tuple[float, float] | None = None) -> tf.Tensor:
        """r̂ float32 `[B]` of `user` and `item`, within `clip` if it is given: the lowest and the highest rating."""
        rating = self(inputs)
        return rating if clip is None else tf.clip_by_value(rating, *clip)

    def score_items(self, query: Query) -> tf.Tensor:
        """r̂ of all items, float32 `[B, I]`."""
        return tf.linalg.matmul(self.embed_query(query), self.item_vectors(), transpose_b=True)

    def embed_query(self, query: Query) -> tf.Tensor:
        """float32 `[B, D + 2]`: p_u, 1, and what does not depend on the item."""
        vectors, bias = self._row("user", query)
        return tf.concat([vectors, _columns(tf.ones_like(bias), self.mean + bias)], axis=1)

    def item_vectors(self) -> tf.Tensor:
        """float32 `[I, D + 2]`: q_i, b_i, and 1."""
        return tf.pad(self.item_rows, [[0, 0], [0, 1]], constant_values=1)

    def explain(self, user: Any, item: Any, context: Mapping[str, Any] | None = None) -> dict[str, tf.Tensor]:
        """The terms whose sum is r̂, float32 `[B]` each, by name.

        Args:
          user: int `[B]`, or one.
          item: int `[B]`, or one.
          context: a condition int `[B]`, or one, by dimension; a dimension that is left out is not known.

        Returns:
          `mean`, `user`, `item`, `factors`; of `CAMF` also `context_<dimension>` (of everybody),
          `item_context_<dimension>` and `user_context_<dimension>`, those that the model has.
        """
        inputs = {"user": user, "item": item, **{f"context_{name}": c for name, c in (context or {}).items()}}
        shape = np.broadcast_shapes((1,), *(np.shape(value) for value in inputs.values()))
        inputs = {name: tf.constant(np.broadcast_to(value, shape), tf.int32) for name, value in inputs.items()}
        (p, user_bias), (q, item_bias) = (self._row(side, inputs) for side in ("user", "item"))
        terms = {
            "mean": tf.fill(shape, self.mean),
            "user": user_bias,
            "item": item_bias,
            "factors": tf.reduce_sum(p * q, axis=1),
        }
        for part, (values, _) in self._deviations(inputs).items():
            terms |= {f"{part}_{name}": values[:, j] for j, name in enumerate(self.contexts)}
        return terms

    def get_config(self) -> dict[str, Any]:
        return constructor_arguments(self)


@register("camf")
class CAMF(BiasedMF):
    """Context-aware matrix factorization: `BiasedMF` plus what each known condition of the context adds.

    r̂ = μ + b_u + b_i + p_u·q_i + Σ_j d_j. Of a condition c the deviation d is

    | deviation | d | weights |
    |---|---|---|
    | `C` | b_c | N |
    | `CI` | b_ic, of item and condition | I·N |
    | `CU` | b_uc, of user and condition | U·N |
    | `CUCI` | b_ic + b_uc | (I + U)·N |
    | `low_rank` | b_c + (s_i + t_u)·w_c | N + (I + U + N)·R |

    They start at 0 (w_c in `low_rank`), and so remain where no rating was trained on. A condition that is not known has
    d = 0, always. The loss adds λ_d n^(ν−1) times the square of each weight that the rating has.

    Source: Baltrunas, Ludwig and Ricci 2011, "Matrix Factorization Techniques for Context Aware Recommendation",
    equation 1 (`CI`), §3 (`C`); `CU` is its mirror. The paper has no p and q of the biases' ν < 1, and no `low_rank`.

    Args:
      num_users, num_items: U and I, as in `BiasedMF`.
      contexts: by dimension of the context, the number of its conditions. They are 1 to that number; 0, or any other,
        is "not known" (NA).
      deviation: "C", "CI", "CU", "CUCI" or "low_rank".
      embedding_dim, l2_bias, l2_factors, frequency_exponent: as in `BiasedMF`.
      l2_deviation: λ_d ≥ 0.
      rank: R ≥ 1, of `low_rank`.

    Call: as `BiasedMF`, with `context_<dimension>` int `[B]` beside; a dimension that is absent is not known.

    Raises:
      ShortlistError: as `BiasedMF`.

    Example:
      >>> model = CAMF(num_users=2, num_items=3, contexts={"companion": 2}, deviation="CI")
      >>> x = {"user": np.array([0, 1, 0, 1]), "item": np.array([2] * 4), "context_companion": np.array([1, 1, 2, 2])}
      >>> y = np.array([5.0, 5.0, 2.0, 2.0])
      >>> model.adapt(x, y)
      >>> model.compile(tf.keras.optimizers.Adagrad(0.4))
      >>> _ = model.fit(x, y, epochs=100, verbose=0)
      >>> terms = model.explain(user=0, item=2, context={"companion": 1})
      >>> bool(terms["item_context_companion"] > 1)
      True
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        contexts: Mapping[str, int],
        deviation: str = "CUCI",
        embedding_dim: int = 20,
        l2_bias: float = 0.2,
        l2_factors: float = 0.5,
        l2_deviation: float = 0.5,
        frequency_exponent: float = 0.5,
        rank: int = 4,
        **kwargs: Any,
    ):
        super().__init__(num_users, num_items, embedding_dim, l2_bias, l2_factors, frequency_exponent, **kwargs)
        self.contexts = checked_contexts(contexts)
        require(deviation in DEVIATIONS, f"`deviation` must be one of {', '.join(DEVIATIONS)}.", deviation=deviation)
        self.deviation, self.l2_deviation = deviation, require_number("l2_deviation", l2_deviation)
        self.rank = require_integer("rank", rank)
        self.l2.assign([self.l2_bias, self.l2_factors, self.l2_deviation])
        self.columns = 1 + sum(self.contexts.values())  # column 0 is NA
        self.sides = {"low_rank": (), "C": (), "CI": ("item",), "CU": ("user",), "CUCI": ("item", "user")}[deviation]
        for name, rows in self._cells().items():
            setattr(self, name, self.add_weight(name, (rows,), initializer="zeros"))
            share = self.add_weight(f"{name}_share", (rows,), initializer="ones", trainable=False)
            setattr(self, f"{name}_share", share)
        if deviation == "low_rank":
            self.context_table = self.add_weight("context_table", (self.columns, self.rank), initializer="zeros")
            for side, rows in (("user", self.num_users), ("item", self.num_items)):
                init = tf.keras.initializers.RandomNormal(stddev=0.3)
                table = self.add_weight(f"{side}_context_table", (rows, self.rank), initializer=init)
                setattr(self, f"{side}_context_table", table)

    def _cells(self) -> dict[str, int]:
        """The flat tables with a number a condition, by their rows: that of (r, c) is r·(N + 1) + c."""
        rows = {"item": self.num_items, "user": self.num_users}
        cells = {f"{side}_context": rows[side] * self.columns for side in self.sides}
        return cells or {"context": self.columns}

    def _tables_of(self, side: str) -> list[Any]:
        further = [getattr(self, f"{side}_context_table")] if self.deviation == "low_rank" else []
        return [*super()._tables_of(side), *further]

    def adapt(self, inputs: Mapping[str, np.ndarray], ratings: np.ndarray) -> None:
        super().adapt(inputs, ratings)
        inputs = {name: tf.constant(values, tf.int32) for name, values in inputs.items()}
        conditions = condition_columns(inputs, self.contexts)
        for name in self._cells():
            self._set_share(f"{name}_share", self._cell(name, inputs, conditions).numpy())

    def _parts(self, inputs: Mapping[str, np.ndarray]) -> tuple[list[Any], np.ndarray, np.ndarray, list[Any]]:
        flat, cells, _, _ = super()._parts(inputs)
        query = {name: tf.constant(values) for name, values in inputs.items()}
        conditions = condition_columns(query, self.contexts)
        first = self.num_users + self.num_items
        for name, rows in self._cells().items():
            own = np.where(conditions > 0, self._cell(name, query, conditions) + first, -1)
            cells = np.concatenate([cells, own], axis=1)
            flat.append((name, f"{name}_share", self.l2[2]))
            first += rows
        parts = {"context": "context", "item_context": "item", "user_context": "user"}
        low_rank = [(f"{name}_table", f"{share}_share", self.l2[2]) for name, share in parts.items()]
        return flat, cells, conditions.numpy(), low_rank if self.deviation == "low_rank" else []

    def _cell(self, name: str, inputs: Query, conditions: tf.Tensor) -> tf.Tensor:
        """The rows `[B, C]` of a flat table."""
        if name == "context":
            return conditions
        row = tf.cast(inputs[name.removesuffix("_context")], tf.int64)
        return row[:, tf.newaxis] * self.columns + conditions

    def _deviations(self, inputs: Query) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
        conditions = condition_columns(inputs, self.contexts)
        known = tf.cast(conditions > 0, tf.float32)
        parts = {}
        for name in self._cells():
            cells = self._cell(name, inputs, conditions)
            values = rows_of(getattr(self, name), cells) * known  # [B, C]
            parts[name] = (values, self._penalty(f"{name}_share", cells, tf.square(values)))
        if self.deviation == "low_rank":
            w = rows_of(self.context_table, conditions) * known[..., tf.newaxis]  # [B, C, R]
            values, penalty = parts["context"]
            parts["context"] = (values, penalty + self._penalty("context_share", conditions, _squared(w)))
            for side in ("item", "user"):
                own = rows_of(getattr(self, f"{side}_context_table"), inputs[side])  # [B, R]
                values = tf.linalg.matvec(w, own)  # [B, C]
                parts[f"{side}_context"] = (values, self._penalty(f"{side}_share", inputs[side], _squared(own)))
        return parts

    def _penalty(self, share: str, rows: tf.Tensor, squares: tf.Tensor) -> tf.Tensor:
        return self.l2[2] * tf.reduce_sum(rows_of(getattr(self, share), rows) * squares)

    def embed_query(self, query: Query) -> tf.Tensor:
        """float32 `[B, D + 2 + N + 1 or R]`: as in `BiasedMF`, then the known conditions as ones, or Σ w_c."""
        conditions = condition_columns(query, self.contexts)
        known = tf.cast(conditions > 0, tf.float32)
        vectors = super().embed_query(query)
        own = "user_context" if "user" in self.sides else "context" if not self.sides else ""
        if own:
            values = rows_of(getattr(self, own), self._cell(own, query, conditions)) * known
            vectors += tf.pad(tf.reduce_sum(values, axis=1)[:, tf.newaxis], [[0, 0], [self.embedding_dim + 1, 0]])
        if "item" in self.sides:
            ones = tf.reduce_sum(tf.one_hot(conditions, self.columns) * known[..., tf.newaxis], axis=1)
            return tf.concat([vectors, ones], axis=1)
        if self.deviation == "low_rank":
            w = tf.reduce_sum(rows_of(self.context_table, conditions) * known[..., tf.newaxis], axis=1)  # [B, R]
            own_match = tf.reduce_sum(w * rows_of(self.user_context_table, query["user"]), axis=1)
            vectors += tf.pad(own_match[:, tf.newaxis], [[0, 0], [self.embedding_dim + 1, 0]])
            return tf.concat([vectors, w], axis=1)
        return vectors

    def item_vectors(self) -> tf.Tensor:
        """float32 `[I, D + 2 + N + 1 or R]`: as in `BiasedMF`, then b_i of every condition, or s_i."""
        vectors = [super().item_vectors()]
        if "item" in self.sides:
            vectors.append(tf.reshape(self.item_context, [self.num_items, self.columns]))
        if self.deviation == "low_rank":
            vectors.append(tf.convert_to_tensor(self.item_context_table))
        return tf.concat(vectors, axis=1)


def _squared(vectors: tf.Tensor) -> tf.Tensor:
    """The squared length of each vector, `[..., D]` → `[...]`."""
    return tf.reduce_sum(tf.square(vectors), axis=-1)


def _columns(*values: tf.Tensor) -> tf.Tensor:
    """Vectors `[N]` beside each other."""
    return tf.stack(values, axis=1)
