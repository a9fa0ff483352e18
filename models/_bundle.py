"""The served graph: both stages behind string ids, in nothing but TensorFlow's own operations."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from shortlist.models._base import FIRST_ID, OOV, Query, masked_top_k
from shortlist.models._shortlist import Proposals, Shortlist
from shortlist.models._transform import IdLookup

ABSENT = -1  # a number that was not given; text that was not given is ""
FALLBACK = "popularity"

USER = tf.TensorSpec([None], tf.string, "user")
HISTORY = tf.TensorSpec([None, None], tf.string, "history")
HISTORY_TIME = tf.TensorSpec([None, None], tf.int64, "history_time")
EXCLUDE = tf.TensorSpec([None, None], tf.string, "exclude")
TIME = tf.TensorSpec([None], tf.int64, "time")
K = tf.TensorSpec([None], tf.int32, "k")
FEATURES = {
    "user": tf.io.FixedLenFeature([], tf.string, ""),
    "history": tf.io.RaggedFeature(tf.string),
    "history_time": tf.io.RaggedFeature(tf.int64),
    "exclude": tf.io.RaggedFeature(tf.string),
    "time": tf.io.FixedLenFeature([], tf.int64, ABSENT),
    "k": tf.io.FixedLenFeature([], tf.int64, ABSENT),
}
"""The features of an example that this graph reads; each may be left out, and any other is ignored."""


@dataclass(frozen=True)
class Stored:
    """What known users did: row u of the user table did entries `splits[u]` to `splits[u + 1]`, oldest first.

    `splits` int64 `[U + 1]`; `item` int32 `[N]`, none unknown; `time` int64 `[N]`; `positive` bool `[N]`.
    """

    splits: np.ndarray
    item: np.ndarray
    time: np.ndarray
    positive: np.ndarray


class Request(NamedTuple):
    """A request with ids as rows: the query, `exclude` int32 `[B, E]`, `k` int32 `[B]` and whether it has a history."""

    query: Query
    exclude: tf.Tensor
    k: tf.Tensor
    known: tf.Tensor


class Servable(tf.Module):
    """Retrieves and ranks for string ids.

    A request's history is its known items; if it has none, what is stored of its user; if that is nothing either, the
    most watched items of the last years answer, unranked. Never returned: the history, what is stored of the user, and
    `exclude`.

    Args:
      shortlist: the first stage, of loaded sources.
      ranker: an object with `score(features float32 [B, K, F])` → odds float32 `[B, K]`.
      item_file, user_file: the vocabularies, one id a line.
      title_file: titles in the order of the items, for whoever reads the bundle's assets.
      item_ids: string `[I]`, "" for the reserved rows.
      stored: what known users did.
      now: the time of a request that gives none, seconds since 1970.
      default_k: the k of a request that gives none.
    """

    def __init__(
        self,
        shortlist: Shortlist,
        ranker: Any,
        item_file: str,
        user_file: str,
        title_file: str,
        item_ids: np.ndarray,
        stored: Stored,
        now: int,
        default_k: int = 10,
    ):
        super().__init__(name="bundle")
        self.shortlist, self.ranker = shortlist, ranker
        self.item_rows, self.user_rows = IdLookup(item_file), IdLookup(user_file)
        self.titles = tf.saved_model.Asset(title_file)
        self.item_ids = tf.Variable(item_ids, trainable=False, dtype=tf.string)
        self.splits = tf.Variable(stored.splits, trainable=False, dtype=tf.int64)
        self.stored_item = tf.Variable(stored.item, trainable=False, dtype=tf.int32)
        self.stored_time = tf.Variable(stored.time, trainable=False, dtype=tf.int64)
        self.stored_positive = tf.Variable(stored.positive, trainable=False, dtype=tf.bool)
        self.now, self.default_k = now, default_k
        names = [name for name in shortlist.sources if name in shortlist.features.vectors]
        if names:
            self.vectors = shortlist.features.vectors[names[0]]  # [I, D], of length 1
            spec = [tf.TensorSpec([None], tf.string, "item"), K]
            self.similar_items = tf.function(self._similar_items, input_signature=spec, autograph=False)

    @property
    def interface(self) -> dict[str, Callable[..., Any]]:
        """The functions to be saved as signatures, by name."""
        names = ("serving_default", "recommend", "retrieve", "rank", "similar_items")
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "examples")], autograph=False)
    def serving_default(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        given = tf.io.parse_example(examples, FEATURES)
        history = given["history"].to_tensor("")  # [B, L]
        width = tf.shape(history)[1]
        times = given["history_time"].to_tensor(ABSENT)
        lacking = [[0, 0], [0, tf.maximum(width - tf.shape(times)[1], 0)]]
        times = tf.pad(times, lacking, constant_values=ABSENT)[:, :width]
        k = tf.cast(tf.clip_by_value(given["k"], tf.int32.min, tf.int32.max), tf.int32)
        return self._recommend(given["user"], history, times, given["exclude"].to_tensor(""), given["time"], k)

    @tf.function(input_signature=[USER, HISTORY, EXCLUDE, TIME, K], autograph=False)
    def recommend(
        self, user: tf.Tensor, history: tf.Tensor, exclude: tf.Tensor, time: tf.Tensor, k: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        return self._recommend(user, history, _absent(history), exclude, time, k)

    @tf.function(input_signature=[USER, HISTORY, EXCLUDE, TIME, K], autograph=False)
    def retrieve(
        self, user: tf.Tensor, history: tf.Tensor, exclude: tf.Tensor, time: tf.Tensor, k: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        request = self._request(user, history, _absent(history), exclude, time, k)
        proposals = self.shortlist.propose(request.query, request.exclude)
        return self._answer(request, proposals, *self.shortlist.cut(proposals))

    @tf.function(
        input_signature=[USER, HISTORY, TIME, tf.TensorSpec([None, None], tf.string, "candidates")], autograph=False
    )
    def rank(self, user: tf.Tensor, history: tf.Tensor, time: tf.Tensor, candidates: tf.Tensor) -> dict[str, tf.Tensor]:
        """Scores candidates behind the request's own shortlist: those that are on it score as in `recommend`."""
        _same_batch(user, candidates=candidates)
        request = self._request(user, history, _absent(history), tf.zeros_like(history)[:, :0], time, _absent(time))
        proposals = self.shortlist.propose(request.query, request.exclude)
        rows = self.item_rows(candidates)  # [B, C]
        best, _ = self.shortlist.cut(proposals)  # [B, K]
        new = _first(rows, tf.concat([best, rows], axis=1)) == self.shortlist.size + tf.range(tf.shape(rows)[1])
        order = tf.gather(self.shortlist.order(proposals), rows, batch_dims=1)
        order, place = tf.math.top_k(tf.where(new & (rows >= FIRST_ID), order, -np.inf), tf.shape(rows)[1])
        rest = tf.where(order > -np.inf, tf.gather(rows, place, batch_dims=1), 0)
        items = tf.concat([best, rest], axis=1)  # [B, K + C]
        odds = self.ranker.score(self.shortlist.describe(request.query, proposals, items)[0])
        scores = tf.gather(odds, _first(rows, items), batch_dims=1)
        scores = tf.where(request.known, scores, tf.gather(self.shortlist.popularity, rows))
        return {"scores": tf.where(rows >= FIRST_ID, scores, 0.0)}

    def _similar_items(self, item: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]:
        _same_batch(item, k=k)
        rows = self.item_rows(item)
        k = self._counts(k) * tf.cast(rows >= FIRST_ID, tf.int32)
        cosine = tf.linalg.matmul(tf.gather(self.vectors, rows), self.vectors, transpose_b=True)  # [B, I]
        items, scores = masked_top_k(cosine, _widest(k), rows[:, tf.newaxis])  # [B, M]
        shown = (items >= FIRST_ID) & (tf.range(_widest(k)) < k[:, tf.newaxis])
        return {
            "items": tf.gather(self.item_ids, tf.where(shown, items, 0)),
            "scores": tf.where(shown, scores, 0.0),
            "count": tf.reduce_sum(tf.cast(shown, tf.int32), axis=1),
        }

    def _counts(self, k: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(tf.where(k == ABSENT, self.default_k, k), 0, self.item_ids.shape[0] - FIRST_ID)

    def _request(
        self, user: tf.Tensor, history: tf.Tensor, times: tf.Tensor, exclude: tf.Tensor, time: tf.Tensor, k: tf.Tensor
    ) -> Request:
        _same_batch(user, history=history, exclude=exclude, time=time, k=k)
        users = tf.maximum(self.user_rows(user), OOV)
        time = tf.where(time == ABSENT, tf.constant(self.now, tf.int64), time)
        own = self.item_rows(history)  # [B, L]
        own_time = tf.where(times == ABSENT, time[:, tf.newaxis], times)
        told = tf.reduce_any(own >= FIRST_ID, axis=1, keepdims=True)  # [B, 1]

        start = tf.gather(self.splits, users)[:, tf.newaxis]
        length = tf.gather(self.splits, users + 1)[:, tf.newaxis] - start
        position = tf.range(tf.maximum(tf.reduce_max(length), 0))  # [S]
        inside = position < length  # [B, S]
        position = tf.where(inside, start + position, 0)
        stored = tf.where(inside, tf.gather(self.stored_item, position), 0)
        used = inside & tf.gather(self.stored_positive, position) & ~told

        keep = tf.concat([used, own >= FIRST_ID], axis=1)
        rows = tf.concat([stored, own], axis=1)
        stamps = tf.concat([tf.gather(self.stored_time, position), own_time], axis=1)
        query = {
            "user": users,
            "history": tf.ragged.boolean_mask(rows, keep).to_tensor(),
            "history_time": tf.ragged.boolean_mask(stamps, keep).to_tensor(),
            "time": time,
        }
        exclude = tf.concat([rows, self.item_rows(exclude)], axis=1)
        return Request(query, exclude, self._counts(k), tf.reduce_any(keep, axis=1, keepdims=True))

    @tf.function(input_signature=[USER, HISTORY, HISTORY_TIME, EXCLUDE, TIME, K], autograph=False)
    def _recommend(
        self, user: tf.Tensor, history: tf.Tensor, times: tf.Tensor, exclude: tf.Tensor, time: tf.Tensor, k: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        request = self._request(user, history, times, exclude, time, k)
        proposals = self.shortlist.propose(request.query, request.exclude)
        items, fused = self.shortlist.cut(proposals)
        odds = self.ranker.score(self.shortlist.describe(request.query, proposals, items)[0])
        return self._answer(request, proposals, items, tf.where(request.known, odds, fused))

    def _answer(self, request: Request, proposals: Proposals, items: tf.Tensor, key: tf.Tensor) -> dict[str, tf.Tensor]:
        """The shortlist `items` by `key`, both `[B, K]`, and what follows it, as far as the largest k goes."""
        size, k = self.shortlist.size, request.k[:, tf.newaxis]
        key, order = tf.math.top_k(tf.where(items >= FIRST_ID, key, -np.inf), size)
        best = tf.gather(items, order, batch_dims=1)
        length = tf.reduce_sum(tf.cast(best >= FIRST_ID, tf.int32), axis=1, keepdims=True)  # [B, 1]
        widest = _widest(request.k)

        def following() -> tf.Tensor:
            return masked_top_k(self.shortlist.order(proposals), widest, tf.concat([request.exclude, best], axis=1))[0]

        nothing = tf.zeros([tf.shape(k)[0], widest], tf.int32)
        rest = tf.cond(tf.reduce_any(k > length), following, lambda: nothing)
        place = tf.range(widest)  # [M]
        past = place - length  # [B, M]
        column = tf.where(past < 0, place, size + past)
        found = tf.gather(tf.concat([best, rest], axis=1), column, batch_dims=1)
        shown = (found >= FIRST_ID) & (place < k)
        found = tf.where(shown, found, 0)
        scores = tf.gather(key, tf.minimum(column, size - 1), batch_dims=1)
        scores = tf.where(past < 0, scores, -1.0 - tf.cast(past, tf.float32))
        scores = tf.where(request.known, scores, tf.gather(self.shortlist.popularity, found))
        sources = tf.where(request.known, self._sources(proposals, found), FALLBACK)
        return {
            "items": tf.gather(self.item_ids, found),
            "scores": tf.where(shown, scores, 0.0),
            "sources": tf.where(shown, sources, ""),
            "count": tf.reduce_sum(tf.cast(shown, tf.int32), axis=1),
        }

    def _sources(self, proposals: Proposals, items: tf.Tensor) -> tf.Tensor:
        """Who proposed each item, best rank first, joined by "+"; the first source for what nobody proposed."""
        names = tf.constant(list(self.shortlist.sources))
        quota = tf.constant(list(self.shortlist.quota.values()), tf.float32)
        ranks = tf.stack([tf.gather(table, items, batch_dims=1) for table in proposals.ranks], axis=-1)  # [B, M, S]
        ranks = tf.where(ranks <= quota, ranks, np.inf)
        order = tf.argsort(ranks, stable=True)
        proposed = tf.gather(ranks, order, batch_dims=2) < np.inf
        plus = tf.constant(["", *["+"] * (len(self.shortlist.sources) - 1)])
        text = tf.strings.reduce_join(tf.where(proposed, plus + tf.gather(names, order), ""), axis=-1)
        return tf.where(proposed[..., 0], text, names[0])


def _absent(like: tf.Tensor) -> tf.Tensor:
    return tf.fill(tf.shape(like), tf.constant(ABSENT, tf.int32 if like.shape.rank == 1 else tf.int64))


def _first(items: tf.Tensor, among: tf.Tensor) -> tf.Tensor:
    """Where each of `items` `[B, C]` first stands in `among` `[B, N]`, int32 `[B, C]`."""
    same = tf.cast(items[:, :, tf.newaxis] == among[:, tf.newaxis], tf.int32)  # [B, C, N]
    return tf.argmax(same, axis=-1, output_type=tf.int32)


def _widest(k: tf.Tensor) -> tf.Tensor:
    return tf.maximum(tf.reduce_max(k), 1)


def _same_batch(first: tf.Tensor, **others: tf.Tensor) -> None:
    for name, value in others.items():
        tf.debugging.assert_equal(
            tf.shape(value)[0], tf.shape(first)[0], f"`{name}` must have one row a request, as many as the first input."
        )
