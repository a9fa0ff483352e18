"""What a split by context means to a served graph: which half of an item or user a request is about."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from shortlist.models._base import Query, constructor_arguments
from shortlist.models._checks import require, require_integer
from shortlist.models._conditions import checked_contexts
from shortlist.models._nested import restored
from shortlist.models._replicas import rows_of


@tf.keras.utils.register_keras_serializable("shortlist")
class SplitRows(tf.keras.layers.Layer):
    """The rows of a table of items, or users, of which some are halves that belong to a context.

    Args:
      num_rows: R.
      contexts: by dimension, the number of its conditions.

    Call: a `Query` → whether each row is of its context, bool `[B, R]`; rows that are no half always are. An unknown
    condition belongs to the other half.

    Raises:
      ShortlistError: for an argument out of range, and from `set_halves` for arrays that don't fit.

    Example:
      >>> layer = SplitRows(num_rows=4, contexts={"place": 2})
      >>> layer.set_halves(required=np.array([[0], [0], [2], [2]]), inverse=[0, 0, 0, 1], sibling=[0, 1, 3, 2])
      >>> layer({"user": tf.constant([0, 0]), "context_place": tf.constant([2, 0])}).numpy().astype(int)
      array([[1, 1, 1, 0],
             [1, 1, 0, 1]])
    """

    def __init__(self, num_rows: int, contexts: Mapping[str, int], **kwargs: Any):
        super().__init__(**kwargs)
        self.num_rows, self.contexts = require_integer("num_rows", num_rows), checked_contexts(contexts)
        constant = {"dtype": tf.int32, "initializer": "zeros", "trainable": False}
        self.required = self.add_weight("required", (num_rows, len(self.contexts)), **constant)
        self.inverse = self.add_weight("inverse", (num_rows,), **constant)
        self.sibling = self.add_weight("sibling", (num_rows,), **constant)
        self.sibling.assign(np.arange(num_rows, dtype=np.int32))

    def set_halves(self, required: np.ndarray, inverse: np.ndarray, sibling: np.ndarray) -> None:
        """Says which rows are halves.

        Args:
          required: int `[R, C]`, a condition of each dimension, 0 for any; all must hold.
          inverse: bool `[R]`, true for the other half, that of a context for which they don't.
          sibling: int `[R]`, the row of the other half, or the row itself.
        """
        for name, values in (("required", required), ("inverse", inverse), ("sibling", sibling)):
            values, weight = np.asarray(values), getattr(self, name)
            require(
                values.shape == weight.shape, f"`{name}` must be of shape {tuple(weight.shape)}.", shape=values.shape
            )
            weight.assign(values)

    def call(self, query: Query) -> tf.Tensor:
        return self._holds(query, self.required[tf.newaxis]) != tf.cast(self.inverse, tf.bool)

    def _holds(self, query: Query, required: tf.Tensor) -> tf.Tensor:
        """Whether required conditions hold, bool `[B, M]`, of `[B or 1, M, C]`."""
        holds = tf.ones_like(required[..., 0], tf.bool)
        for j, (name, size) in enumerate(self.contexts.items()):
            given = tf.cast(query.get(f"context_{name}", tf.zeros_like(query["user"])), tf.int32)[:, tf.newaxis]
            needed = required[..., j]
            holds &= (needed == 0) | ((needed == given) & (given <= size))
        return holds

    def choose(self, rows: tf.Tensor, query: Query) -> tf.Tensor:
        """Of each row int32 `[B]`, either half of it, the one that is of the query's context."""
        holds = self._holds(query, rows_of(self.required, rows)[:, tf.newaxis])[:, 0]
        right = holds != tf.cast(rows_of(self.inverse, rows), tf.bool)
        return tf.where(right, rows, rows_of(self.sibling, rows))

    def with_siblings(self, rows: tf.Tensor) -> tf.Tensor:
        """Rows int32 `[B, E]` and their other halves, `[B, 2E]`: what was seen as one half is seen as both."""
        known = tf.clip_by_value(rows, 0, self.num_rows - 1)
        return tf.concat([rows, tf.where(rows == known, rows_of(self.sibling, known), rows)], axis=1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_rows": self.num_rows, "contexts": dict(self.contexts)}


@tf.keras.utils.register_keras_serializable("shortlist")
class SplitItems(tf.keras.Model):
    """A rating model whose users and items are split by context; from outside, they are what they were.

    `base` has U + S_u rows of users and I + S_i of items, S of them split: one that is split has its own row where the
    condition of its split does not hold, or isn't known, and one of the further rows where it does. So a request is
    that of the half of its user that is of its context, and each item is scored as the half that is.

    Source: Baltrunas and Ricci 2014, "Experimental evaluation of context-dependent collaborative filtering using item
    splitting"; here both halves keep one place in the catalogue, so what was seen as one is not proposed as the other.

    Args:
      base: the rating model, as `described` writes it; it is kept inside, and trained.
      num_users, num_items: U and I.
      contexts: by dimension, the number of its conditions.

    Call: as `base`, for rows below U and I.

    Raises:
      ShortlistError: for an argument out of range or a base with fewer rows.
    """

    def __init__(self, base: str, num_users: int, num_items: int, contexts: Mapping[str, int], **kwargs: Any):
        super().__init__(**kwargs)
        self.base, self.contexts = base, checked_contexts(contexts)
        self.model = restored("base", base)
        self.model.trainable = True
        self.num_users = require_integer("num_users", num_users)
        self.num_items = require_integer("num_items", num_items)
        for side, rows in (("user", self.num_users), ("item", self.num_items)):
            own = getattr(self.model, f"num_{side}s", 0)
            require(own >= rows, f"`base` must have a row for each {side}.", **{f"num_{side}s": rows, "base": own})
            setattr(self, f"{side}_rows", SplitRows(own, self.contexts))
        self.registered_name = type(self.model).registered_name
        self.built = True

    def set_splits(self, side: str, owner: np.ndarray, required: np.ndarray) -> None:
        """Says which rows of a side, "user" or "item", are split: `owner` int `[S]`, and for the half that has the
        further row s what must hold, `required` int `[S, C]`, a condition of each dimension, 0 for any."""
        layer, rows = getattr(self, f"{side}_rows"), getattr(self, f"num_{side}s")
        further = rows + np.arange(len(owner))
        sibling, needed = np.arange(layer.num_rows), np.zeros((layer.num_rows, len(self.contexts)), np.int32)
        sibling[owner], sibling[further] = further, owner
        needed[owner] = needed[further] = required
        layer.set_halves(needed, np.isin(np.arange(layer.num_rows), owner), sibling)

    def _rows(self, inputs: Mapping[str, Any]) -> Query:
        """The inputs with the halves of their users and items."""
        asked = {name: tf.convert_to_tensor(values) for name, values in inputs.items()}
        sides = [side for side in ("user", "item") if side in asked]
        return {**asked, **{side: getattr(self, f"{side}_rows").choose(asked[side], asked) for side in sides}}

    def adapt(self, inputs: Mapping[str, np.ndarray], ratings: np.ndarray) -> None:
        """See the base."""
        self.model.adapt({name: rows.numpy() for name, rows in self._rows(inputs).items()}, ratings)

    def call(self, inputs: Query, training: bool = False) -> tf.Tensor:
        return self.model(self._rows(inputs), training=training) if "item" in inputs else self.score_items(inputs)

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None) -> tf.Tensor:
        return self.model.compute_loss(x, y, y_pred, sample_weight)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> dict[str, tf.Tensor]:
        return self.model.compute_metrics(x, y, y_pred, sample_weight)

    @property
    def metrics(self) -> list[tf.keras.metrics.Metric]:
        return self.model.metrics

    def score_items(self, query: Query) -> tf.Tensor:
        """r̂ of all items, each as the half that is of the query's context, float32 `[B, I]`."""
        scores = self.model.score_items(self._rows(query))  # [B, I + S]
        own, other = scores[:, : self.num_items], tf.gather(scores, self.item_rows.sibling[: self.num_items], axis=1)
        return tf.where(self.item_rows(query)[:, : self.num_items], own, other)

    def get_config(self) -> dict[str, Any]:
        return {**constructor_arguments(self), "contexts": dict(self.contexts)}


@tf.keras.utils.register_keras_serializable("shortlist")
class SplitUsers(SplitItems):
    """The same where items are not split: its score is a dot product if that of the base is."""

    def embed_query(self, query: Query) -> tf.Tensor:
        """As the base, of the half of the user that is of the query's context."""
        return self.model.embed_query(self._rows(query))

    def item_vectors(self) -> tf.Tensor:
        """As the base."""
        return self.model.item_vectors()

    def score_items(self, query: Query) -> tf.Tensor:
        """r̂ of all items, float32 `[B, I]`."""
        return self.model.score_items(self._rows(query))
