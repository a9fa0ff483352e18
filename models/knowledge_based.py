"""Knowledge-based retrieval: what satisfies stated constraints, relaxed in a declared order until there is enough."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from shortlist.models._base import FIRST_ID, Query, constructor_arguments, masked_top_k, register
from shortlist.models._checks import require, require_integer, require_number
from shortlist.models._layers import last_n

MOST = 16
EXACT = 24
"""Bits of a float32's whole numbers."""


class Constraints(NamedTuple):
    """What is asked for: `wanted` int8 `[B, A]`, 1 for an attribute that is liked, -1 for one refused, 0 for neither;
    `between` float32 `[B, R, 2]`, the least and the most of each number, NaN where that end is open."""

    wanted: tf.Tensor
    between: tf.Tensor


class Answer(NamedTuple):
    """`items` int32 `[B, k]`, best first, 0 where none is left; their `scores` float32 `[B, k]`; `relaxed` bool
    `[B, k, N]`, which constraints each of them breaks, in the order of the model's `order`."""

    items: tf.Tensor
    scores: tf.Tensor
    relaxed: tf.Tensor


@register("knowledge_based")
class KnowledgeBased(tf.keras.Model):
    """Answers with the items that satisfy the constraints, and relaxes them one after the other until k are found.

    Constraints are told apart by column: `like:c`, an item has at least one of the liked attributes of column c;
    `refuse:c`, it has none of the refused ones; `range:r`, its number r is known and in the range. A column about which
    nothing is said is no constraint. With the constraints j = 0 … N − 1 in the order in which they are relaxed, an item
    that breaks the set J costs Σ_{j in J} 2^j, so what breaks only constraints that are relaxed early comes before
    anything that breaks a later one. s_i = −cost_i + p_i, with p_i in [0, 1) the share of the items that are less
    popular, so that the order of equal costs is that of popularity. What is not in `relaxation` is never relaxed:
    s_i = −∞.

    As a retriever it takes the constraints from the history (`derive`). Of each column the `likes` attributes that most
    of the last L items have are liked, ties by the earlier one, and the range of a number holds the middle `middle` of
    those that are known of them. Refused are the attributes that none of all M watched items has, though M items drawn
    by popularity would have brought at least `refuse_after` of them.

    Source: Felfernig and Burke 2008, "Constraint-based recommender systems: technologies and research issues", §4
    (relaxation); the derivation from a history is this model's own.

    Args:
      num_items: I, item rows, the two reserved ones included.
      attributes: names of the attributes of each column, such as `{"genres": ["Comedy", "Drama"]}`; A in all.
      numbers: names of the columns of numbers; R of them.
      relaxation: the constraints that may be relaxed, the first one first; None for all: the ranges, then what is
        liked, then what is refused, each from the last column to the first. N of all constraints is at most 16.
      history_length: L ≥ 1.
      likes: attributes liked of each column.
      refuse_after: above 0, see there.
      middle: in (0, 1].

    Call: a `Query`, of which only `history` is used → scores float32 `[B, I]`. Without a known item in the history
    there is no constraint, and the order is that of popularity.

    Raises:
      ShortlistError: for an argument out of range.

    Example:
      >>> model = KnowledgeBased(num_items=5, attributes={"genres": ["Comedy", "War"]}, numbers=["year"])
      >>> genres = np.array([[0, 0], [0, 0], [1, 0], [1, 1], [1, 0]])
      >>> model.set_items(genres, np.array([[0], [0], [1950], [1990], [2000]]), np.array([0, 0, 5, 3, 1]))
      >>> asked = model.constraints({"genres": ["Comedy"]}, {"genres": ["War"]}, {"year": (1980, None)})
      >>> answer = model.recommend(asked, k=3)
      >>> answer.items.numpy(), model.explain(answer.relaxed).numpy()
      (array([[4, 2, 3]], dtype=int32), array([[b'', b'range:year', b'refuse:genres']], dtype=object))
    """

    def __init__(
        self,
        num_items: int,
        attributes: Mapping[str, Sequence[str]],
        numbers: Sequence[str] = (),
        relaxation: Sequence[str] | None = None,
        history_length: int = 10,
        likes: int = 5,
        refuse_after: float = 3.0,
        middle: float = 0.8,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_items = require_integer("num_items", num_items, FIRST_ID + 1)
        columns = {name: list(values) for name, values in attributes.items()}
        self.attributes: dict[str, list[str]] = self._no_dependency(columns)
        self.numbers = tuple(numbers)
        rule = "`attributes` must name at least one column, and at least one attribute of each."
        require(bool(attributes) and all(self.attributes.values()), rule, attributes=dict(attributes))
        every = [
            *(f"range:{name}" for name in reversed(self.numbers)),
            *(f"{kind}:{name}" for kind in ("like", "refuse") for name in reversed(self.attributes)),
        ]
        rule = f"`attributes` and `numbers` must make at most {MOST} constraints: two a column, one a number."
        require(len(every) <= MOST, rule, attributes=list(self.attributes), numbers=self.numbers)
        self.relaxation = None if relaxation is None else tuple(relaxation)
        relaxed = every if relaxation is None else list(relaxation)
        known = set(relaxed) <= set(every) and len(set(relaxed)) == len(relaxed)
        require(known, f"`relaxation` must name constraints once each, of {', '.join(every)}.", relaxation=relaxation)
        self.order = (*relaxed, *(name for name in every if name not in relaxed))
        self.soft = len(relaxed)
        self.history_length = require_integer("history_length", history_length)
        self.likes = require_integer("likes", likes)
        self.refuse_after, self.middle = require_number("refuse_after", refuse_after), require_number("middle", middle)
        require(self.refuse_after > 0, "`refuse_after` must be above 0.", refuse_after=refuse_after)
        require(0 < self.middle <= 1, "`middle` must be in (0, 1].", middle=middle)

        constant = {"initializer": "zeros", "trainable": False}
        width = sum(map(len, self.attributes.values()))
        self.has = self.add_weight("has", (self.num_items, width), **constant)  # [I, A]
        self.number = self.add_weight("number", (self.num_items, len(self.numbers)), **constant)  # [I, R]
        self.popularity = self.add_weight("popularity", (self.num_items,), **constant)  # p
        self.frequency = self.add_weight("frequency", (width,), **constant)  # of attributes, items drawn by popularity
        self.built = True

    def set_items(self, has: np.ndarray, number: np.ndarray, count: np.ndarray) -> None:
        """Sets what is known of the items.

        Args:
          has: `[I, A]`, above 0 where an item has an attribute, in the order of `attributes`.
          number: `[I, R]`, NaN where unknown, in the order of `numbers`.
          count: `[I]`, at least 0, how popular an item is.

        Raises:
          ShortlistError: if they don't fit the model.
        """
        has, number, count = np.asarray(has) > 0, np.asarray(number, np.float32), np.asarray(count, np.float64)
        for name, value, shape in (
            ("has", has, self.has.shape),
            ("number", number, self.number.shape),
            ("count", count, self.popularity.shape),
        ):
            rule = f"`{name}` must be of shape {list(shape)}, one row an item."
            require(value.shape == tuple(shape), rule, shape=value.shape)
        require(bool((count >= 0).all()), "`count` must be at least 0.", lowest=float(count.min()))
        count = np.where(np.arange(self.num_items) < FIRST_ID, 0, count)
        self.has.assign(has.astype(np.float32))
        self.number.assign(number)
        steps = 2 ** (EXACT - 1 - len(self.order))
        below = np.searchsorted(np.sort(count[FIRST_ID:]), count) / (self.num_items - FIRST_ID)
        self.popularity.assign(np.floor(np.minimum(below, 1 - 1 / steps) * steps) / steps)
        self.frequency.assign(count @ has / max(count.sum(), 1e-9))

    def constraints(
        self,
        like: Mapping[str, Sequence[str]] | None = None,
        refuse: Mapping[str, Sequence[str]] | None = None,
        between: Mapping[str, tuple[float | None, float | None]] | None = None,
    ) -> Constraints:
        """The constraints of one request by name.

        Raises:
          ShortlistError: for a name that the model does not have.
        """
        pairs = [(column, value) for column, values in self.attributes.items() for value in values]
        place = {pair: n for n, pair in enumerate(pairs)}
        wanted = np.zeros((1, len(place)), np.int8)
        for name, sign, said in (("refuse", -1, refuse), ("like", 1, like)):
            for column, values in (said or {}).items():
                for value in values:
                    have = ", ".join(self.attributes.get(column, self.attributes))
                    rule = f"`{name}` must name attributes by their column; there are {have}."
                    require((column, value) in place, rule, **{name: {column: value}})
                    wanted[0, place[column, value]] = sign
        ends = np.full((1, len(self.numbers), 2), np.nan, np.float32)
        for column, pair in (between or {}).items():
            rule = f"`between` must name columns of numbers, of {', '.join(self.numbers) or 'none'}."
            require(column in self.numbers, rule, between=column)
            ends[0, self.numbers.index(column)] = [np.nan if end is None else end for end in pair]
        return Constraints(tf.constant(wanted), tf.constant(ends))

    def derive(self, query: Query) -> Constraints:
        """The constraints that a history speaks for."""
        held, seen = self._held(query["history"])
        expected = tf.reduce_sum(seen, axis=1, keepdims=True) * self.frequency
        refused = tf.cast((held == 0) & (expected >= self.refuse_after), tf.int8)
        (history,) = last_n(query["history"], self.history_length)  # [B, L]
        recent, seen = self._held(history)
        liked = []
        for values in self._columns(recent):
            most = tf.math.top_k(values, min(self.likes, values.shape[1])).indices  # [B, likes]
            best = tf.reduce_max(tf.one_hot(most, values.shape[1], dtype=tf.int32), axis=1)
            liked.append(tf.cast((best > 0) & (values > 0), tf.int8))
        wanted = tf.concat(liked, axis=1) - refused
        number = tf.transpose(tf.gather(self.number, history), [0, 2, 1])  # [B, R, L]
        known = (seen[:, tf.newaxis] > 0) & tf.math.is_finite(number)
        ascending = tf.sort(tf.where(known, number, np.inf), axis=-1)
        last = tf.reduce_sum(tf.cast(known, tf.int32), axis=-1, keepdims=True) - 1  # [B, R, 1]
        share = tf.constant([(1 - self.middle) / 2, (1 + self.middle) / 2])
        place = tf.cast(tf.round(share * tf.cast(last, tf.float32)), tf.int32)  # [B, R, 2]
        padded = tf.pad(ascending, [[0, 0], [0, 0], [0, 1]])
        ends = tf.gather(padded, tf.maximum(place, 0), batch_dims=2)
        return Constraints(wanted, tf.where(last >= 0, ends, np.nan))

    def broken(self, constraints: Constraints) -> tf.Tensor:
        """Which constraints each item breaks, bool `[B, N, I]`, in the order of `order`."""
        found = {}
        for name, wanted, has in zip(
            self.attributes, self._columns(constraints.wanted), self._columns(self.has), strict=True
        ):
            liked, refused = (tf.cast(wanted == sign, tf.float32) for sign in (1, -1))  # [B, A_c]
            any_liked = tf.reduce_any(liked > 0, axis=1, keepdims=True)
            found[f"like:{name}"] = any_liked & (tf.linalg.matmul(liked, has, transpose_b=True) == 0)
            found[f"refuse:{name}"] = tf.linalg.matmul(refused, has, transpose_b=True) > 0
        for n, name in enumerate(self.numbers):
            low, high = (constraints.between[:, n, end, tf.newaxis] for end in (0, 1))  # [B, 1]
            number = self.number[tf.newaxis, :, n]  # [1, I]
            inside = (tf.math.is_nan(low) | (number >= low)) & (tf.math.is_nan(high) | (number <= high))
            unknown = tf.math.is_nan(number) & ~(tf.math.is_nan(low) & tf.math.is_nan(high))
            found[f"range:{name}"] = ~inside | unknown
        return tf.stack([found[name] for name in self.order], axis=1)

    def score(self, constraints: Constraints) -> tf.Tensor:
        """float32 `[B, I]`: p − cost; −∞ for what breaks a constraint that is never relaxed."""
        return self._score(self.broken(constraints))

    def recommend(self, constraints: Constraints, k: tf.Tensor | int, exclude: tf.Tensor | None = None) -> Answer:
        """The k best items; `exclude` int32 `[B, E]`, item rows never to return, 0 for padding."""
        broken = self.broken(constraints)
        items, scores = masked_top_k(self._score(broken), k, exclude)
        relaxed = tf.gather(tf.transpose(broken, [0, 2, 1]), items, batch_dims=1)  # [B, k, N]
        return Answer(items, scores, relaxed & (items >= FIRST_ID)[..., tf.newaxis])

    def explain(self, relaxed: tf.Tensor) -> tf.Tensor:
        """The names of the relaxed constraints, joined by ", ": bool `[..., N]` → string `[...]`."""
        names = tf.constant([f"{name}, " for name in self.order])
        text = tf.strings.reduce_join(tf.where(relaxed, names, ""), axis=-1)
        return tf.strings.regex_replace(text, ", $", "")

    def score_items(self, query: Query) -> tf.Tensor:
        """float32 `[B, I]`, for the constraints that the history speaks for."""
        return self.score(self.derive(query))

    def call(self, inputs: Query) -> tf.Tensor:
        return self.score_items(inputs)

    def get_config(self) -> dict[str, Any]:
        return constructor_arguments(self)

    def _score(self, broken: tf.Tensor) -> tf.Tensor:
        cost = tf.constant(2.0 ** np.arange(len(self.order)), tf.float32)
        total = tf.linalg.matvec(tf.cast(broken, tf.float32), cost, transpose_a=True)  # [B, I]
        never = tf.reduce_any(broken[:, self.soft :], axis=1)
        return tf.where(never, -np.inf, self.popularity - total)

    def _held(self, history: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """How many items of `history` `[B, L]` have each attribute, float32 `[B, A]`, and which are known, `[B, L]`."""
        seen = tf.cast(history >= FIRST_ID, tf.float32)
        return tf.linalg.matvec(tf.gather(self.has, history), seen, transpose_a=True), seen

    def _columns(self, values: tf.Tensor) -> list[tf.Tensor]:
        """Splits `[..., A]` by column."""
        return tf.split(values, [len(names) for names in self.attributes.values()], axis=-1)
