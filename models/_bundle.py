"""The served graph: both stages behind string ids, in nothing but TensorFlow's own operations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from shortlist.models._base import FIRST_ID, OOV, RankingQuery, masked_top_k
from shortlist.models._bundle_wals import WALSSignatures
from shortlist.models._diversity import mmr_order, nearest_watched
from shortlist.models._layers import features_first, features_last, last_n
from shortlist.models._requests import (
    ABSENT,
    CANDIDATES,
    EXCLUDE,
    HISTORY,
    ITEM,
    TIME,
    USER,
    K,
    absent,
    as_wide,
    best_rows,
    counts,
    kept,
    same_batch,
    signature,
    width_of,
)
from shortlist.models._shortlist import Proposals, Shortlist, among
from shortlist.models._transform import IdLookup, RequestReader

FALLBACK = "popularity"
WEIGHTS = {"watch_time": "history_watch_time", "rating": "history_rating"}
"""The feature of an example that says what each of its history weighs."""


@dataclass(frozen=True)
class Stored:
    """What known users did: row u of the user table did entries `splits[u]` to `splits[u + 1]`, oldest first.

    `splits` int64 `[U + 1]`; `item` int32 `[N]`, none unknown; `time` int64 `[N]`; `positive` and `watched` bool `[N]`,
    what is not watched was only shown; `weight` float32 `[N]`, watch time or rating, -1 if unknown.
    """

    splits: np.ndarray
    item: np.ndarray
    time: np.ndarray
    positive: np.ndarray
    watched: np.ndarray
    weight: np.ndarray


class Request(NamedTuple):
    """A request with ids as rows: the query, what may not or alone may be returned, int32 `[B, E]` and `[B, O]`,
    `quotas` int32 `[B]` by source, `diversity` float32 `[B]`, `k` int32 `[B]` and whether it has a history `[B, 1]`."""

    query: RankingQuery
    exclude: tf.Tensor
    only: tf.Tensor
    quotas: dict[str, tf.Tensor]
    diversity: tf.Tensor
    k: tf.Tensor
    known: tf.Tensor


class Servable(tf.Module):
    """Retrieves and ranks for string ids.

    A request's history is its known items; if it has none, what is stored of its user; if that is nothing either, the
    most watched items of the last years answer, unranked. Never returned: the history, what the user is known to have
    watched, `exclude`, and what the shortlist has closed. Items are alike by the vectors of the first source that has
    some, else by their genres; `similar_items` of one without a vector there asks the next.

    Args:
      shortlist: the first stage, of loaded sources.
      ranker: an object with `score(features float32 [B, K, F], items int32 [B, K], history int32 [B, L])` → `odds` and
        `expected`, float32 `[B, K]`.
      item_file, user_file: the vocabularies, one id a line.
      title_file: titles in the order of the items, for whoever reads the bundle's assets.
      item_ids: string `[I]`, "" for the reserved rows.
      stored: what known users did.
      now: the time of a request that gives none, seconds since 1970.
      default_k: the k of a request that gives none.
      reader: of what a request says besides.
      weight_from: "watch_time", "rating" or "none", what a history weighs.
      ranker_rows: the ranker's own row of every item, int32 `[I]`, where it has a table of them.
      unit: seconds; of the ranker's expected watch time, if it has learned it.
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
        reader: RequestReader | None = None,
        weight_from: str = "none",
        ranker_rows: np.ndarray | None = None,
        unit: float | None = None,
    ):
        super().__init__(name="bundle")
        self.reader = reader or RequestReader({}, "", {})
        self.weight_name, self.unit = WEIGHTS.get(weight_from), unit
        rows = np.arange(len(item_ids)) if ranker_rows is None else ranker_rows
        self.ranker_rows = tf.Variable(rows, trainable=False, dtype=tf.int32)
        self.shortlist, self.ranker = shortlist, ranker
        self.item_rows, self.user_rows = IdLookup(item_file), IdLookup(user_file)
        self.titles = tf.saved_model.Asset(title_file)
        self.item_ids = tf.Variable(item_ids, trainable=False, dtype=tf.string)
        self.splits = tf.Variable(stored.splits, trainable=False, dtype=tf.int64)
        self.stored_item = tf.Variable(stored.item, trainable=False, dtype=tf.int32)
        self.stored_time = tf.Variable(stored.time, trainable=False, dtype=tf.int64)
        self.stored_positive = tf.Variable(stored.positive, trainable=False, dtype=tf.bool)
        self.stored_watched = tf.Variable(stored.watched, trainable=False, dtype=tf.bool)
        self.stored_weight = tf.Variable(stored.weight, trainable=False, dtype=tf.float32)
        self.now, self.default_k = now, default_k
        vectors = [v for name in shortlist.sources if (v := shortlist.features.vectors.get(name)) is not None]
        self.tables = [*vectors, shortlist.features.genres]  # [I, D] each, of length 1
        self.alike = self.tables[0]
        asked = {name: spec for name, (_, spec) in self._parts().items()}
        self._proposed = tf.function(self._propose, autograph=False).get_concrete_function(asked)
        self._recommended = tf.function(self._recommend, autograph=False).get_concrete_function(asked)
        self.serving_default = signature(self._serving_default, tf.TensorSpec([None], tf.string, "examples"))
        self.recommend = self._short(lambda given: self._recommended(self._completed(given)), EXCLUDE, K)
        self.retrieve = self._short(self._retrieve, EXCLUDE, K)
        self.rank = self._short(self._rank, CANDIDATES)
        if vectors:
            self.similar_items = signature(self._similar_items, ITEM, K)
        folding = [source for source in shortlist.sources.values() if hasattr(source, "retriever")]
        folding = [source.retriever for source in folding if hasattr(source.retriever, "fold_in_history")]
        if folding:
            ids = self.item_rows, self.user_rows, self.item_ids, user_file
            self.wals = WALSSignatures(folding[0], *ids, default_k, shortlist.open)

    @property
    def interface(self) -> dict[str, Callable[..., Any]]:
        """The functions to be saved as signatures, by name."""
        names = ("serving_default", "recommend", "retrieve", "rank", "similar_items")
        own = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return own | (self.wals.interface if hasattr(self, "wals") else {})

    def _parts(self) -> dict[str, tuple[Any, tf.TensorSpec]]:
        """What a request may say: how an example holds it, and the tensor that it becomes."""
        one, more = [None], [None, None]
        parts: dict[str, tuple[Any, tf.TensorSpec]] = {
            "user": (tf.io.FixedLenFeature([], tf.string, ""), tf.TensorSpec(one, tf.string)),
            "history": (tf.io.RaggedFeature(tf.string), tf.TensorSpec(more, tf.string)),
            "history_time": (tf.io.RaggedFeature(tf.int64), tf.TensorSpec(more, tf.int64)),
            "exclude": (tf.io.RaggedFeature(tf.string), tf.TensorSpec(more, tf.string)),
            "time": (tf.io.FixedLenFeature([], tf.int64, ABSENT), tf.TensorSpec(one, tf.int64)),
            "k": (tf.io.FixedLenFeature([], tf.int64, ABSENT), tf.TensorSpec(one, tf.int32)),
            "include_only": (tf.io.RaggedFeature(tf.string), tf.TensorSpec(more, tf.string)),
            "diversity": (tf.io.FixedLenFeature([], tf.float32, float(ABSENT)), tf.TensorSpec(one, tf.float32)),
        }
        quota = (tf.io.FixedLenFeature([], tf.int64, ABSENT), tf.TensorSpec(one, tf.int64))
        parts |= {f"quota_{name}": quota for name in self.shortlist.sources}
        if self.weight_name:
            parts[self.weight_name] = (tf.io.RaggedFeature(tf.float32), tf.TensorSpec(more, tf.float32))
        if self.shortlist.features.columns.base_rate:
            parts["impressions"] = (tf.io.RaggedFeature(tf.string), tf.TensorSpec(more, tf.string))
            parts["impressions_time"] = (tf.io.RaggedFeature(tf.int64), tf.TensorSpec(more, tf.int64))
        return {**parts, **self.reader.features}

    @property
    def example_features(self) -> dict[str, Any]:
        """The features of an example that this graph reads; each may be left out, and any other is ignored."""
        return {name: feature for name, (feature, _) in self._parts().items()}

    def _serving_default(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        read = tf.io.parse_example(examples, self.example_features)
        given = {}
        for name, value in read.items():
            empty = "" if value.dtype == tf.string else ABSENT
            given[name] = value.to_tensor(empty) if isinstance(value, tf.RaggedTensor) else value
        for name, value in given.items():
            beside = name.partition("_")[0]
            if beside in ("history", "impressions") and name != beside:
                given[name] = as_wide(value, tf.shape(given[beside])[1])
        given["k"] = tf.cast(tf.clip_by_value(given["k"], tf.int32.min, tf.int32.max), tf.int32)
        return self._recommended(given)

    def _short(self, function: Callable[..., dict[str, tf.Tensor]], *inputs: tf.TensorSpec) -> Any:
        """A signature of some of the inputs and the contexts."""
        contexts = [spec for name, (_, spec) in self.reader.features.items() if name.startswith("context_")]

        def answer(user: tf.Tensor, **given: tf.Tensor) -> dict[str, tf.Tensor]:
            with tf.control_dependencies(same_batch(user, **given)):
                return function({name: tf.identity(value) for name, value in {"user": user, **given}.items()})

        return signature(answer, USER, HISTORY, TIME, *contexts, *inputs)

    def _propose(self, given: Mapping[str, tf.Tensor]) -> tuple[Request, Proposals]:
        request = self._request(given)
        proposals = self.shortlist.propose(request.query, request.exclude, request.only, request.quotas)
        return request, proposals

    def _retrieve(self, given: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        request, proposals = self._proposed(self._completed(given))
        return self._answer(request, proposals, *self.shortlist.cut(proposals)[:2])

    def _rank(self, given: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Scores candidates behind the request's own shortlist: those that are on it score as in `recommend`."""
        request, proposals = self._proposed(self._completed(given))
        rows = self._open_rows(self.item_rows(given["candidates"]), OOV)  # [B, C]
        found = self.ranker.score(*self._described(request, proposals, rows, self.shortlist.cut(proposals)[0]))
        scores = tf.where(request.known, found["odds"], tf.gather(self.shortlist.popularity, rows))
        answer = {"scores": tf.where(rows >= FIRST_ID, scores, 0.0)}
        if self.unit:
            answer["expected_watch_time"] = self._seconds(request, rows, found["expected"])
        return answer

    def _similar_items(self, item: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]:
        same_batch(item, k=k)
        rows = self.item_rows(item)
        k = self._counts(k) * tf.cast(rows >= FIRST_ID, tf.int32)
        cosine = self.shortlist.open(_cosines(rows, self.tables))  # [B, I]
        items, answer = best_rows(cosine, k, rows[:, tf.newaxis])
        return {"items": tf.gather(self.item_ids, items), **answer}

    def _open_rows(self, rows: tf.Tensor, instead: int) -> tf.Tensor:
        """Item rows, another in the place of one that is closed."""
        closed = self.shortlist.closed
        return rows if closed is None else tf.where(tf.gather(closed, rows), instead, rows)

    def _counts(self, k: tf.Tensor) -> tf.Tensor:
        return counts(k, self.default_k, self.item_ids.shape[0])

    def _completed(self, given: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """A request of a short form, with all that it doesn't say."""
        user, history = given["user"], given["history"]
        completed = {}
        for name, (_, spec) in self._parts().items():
            like = user if spec.shape.rank == 1 else history if name.startswith("history") else history[:, :0]
            completed[name] = given[name] if name in given else absent(like, spec.dtype)
        return completed

    def _request(self, given: Mapping[str, tf.Tensor]) -> Request:
        user, history, time = given["user"], given["history"], given["time"]
        users = tf.maximum(self.user_rows(user), OOV)
        time = tf.where(time == ABSENT, tf.constant(self.now, tf.int64), time)
        own = self.item_rows(history)  # [B, L]
        own_time = tf.where(given["history_time"] == ABSENT, time[:, tf.newaxis], given["history_time"])
        told = tf.reduce_any(own >= FIRST_ID, axis=1, keepdims=True)  # [B, 1]

        start = tf.gather(self.splits, users)[:, tf.newaxis]
        length = tf.gather(self.splits, users + 1)[:, tf.newaxis] - start
        position = tf.range(tf.maximum(tf.reduce_max(length), 0))  # [S]
        inside = position < length  # [B, S]
        position = tf.where(inside, start + position, 0)
        stored = tf.where(inside, tf.gather(self.stored_item, position), 0)
        used = inside & tf.gather(self.stored_positive, position) & ~told
        watched = inside & tf.gather(self.stored_watched, position)
        stamp = tf.gather(self.stored_time, position)

        keep = tf.concat([used, own >= FIRST_ID], axis=1)
        rows = tf.concat([stored, own], axis=1)
        stamps = tf.concat([stamp, own_time], axis=1)
        own_weight = given[self.weight_name] if self.weight_name else absent(history, tf.float32)
        weights = tf.concat([tf.gather(self.stored_weight, position), own_weight], axis=1)
        names = "history", "history_time", "history_weight"
        query = {"user": users, "time": time, **dict(zip(names, kept(keep, rows, stamps, weights), strict=True))}
        if "impressions" in given:
            shown, shown_time = self.item_rows(given["impressions"]), given["impressions_time"]
            shown_time = tf.where(shown_time == ABSENT, time[:, tf.newaxis], shown_time)
            shown_rows = tf.concat([stored, shown], axis=1)
            ignored = tf.concat([inside & ~watched, shown >= FIRST_ID], axis=1)
            shown_stamps = tf.concat([stamp, shown_time], axis=1)
            query["impressions"], query["impressions_time"] = kept(ignored, shown_rows, shown_stamps)
        query |= self.reader(given, users, time)
        quotas = {}
        for name, most in self.shortlist.quota.items():
            asked, bound = given[f"quota_{name}"], tf.constant(most, tf.int64)
            quotas[name] = tf.cast(tf.clip_by_value(tf.where(asked == ABSENT, bound, asked), 0, bound), tf.int32)
        diversity = given["diversity"]
        return Request(
            query,
            exclude=tf.concat([tf.where(watched, stored, 0), own, self.item_rows(given["exclude"])], axis=1),
            only=self.item_rows(given["include_only"]),
            quotas=quotas,
            diversity=tf.where(diversity > 0, tf.minimum(diversity, 1.0), 0.0),  # NaN is none
            k=self._counts(given["k"]),
            known=tf.reduce_any(keep, axis=1, keepdims=True),
        )

    def _described(
        self, request: Request, proposals: Proposals, items: tf.Tensor, best: tf.Tensor, ranks: Any = None
    ) -> tuple[tf.Tensor, ...]:
        """What the ranker is given of `items` `[B, C]` beside the shortlist `best`, `ranks` as for `describe`."""
        features, _ = self.shortlist.describe(request.query, proposals, items, best, ranks)
        return features, *(tf.gather(self.ranker_rows, rows) for rows in (items, request.query["history"]))

    def _seconds(self, request: Request, items: tf.Tensor, expected: tf.Tensor) -> tf.Tensor:
        """The expected watch time; 0 for no item, and -1 where nothing is known of the user."""
        seconds = tf.where(request.known, expected * (self.unit or 1.0), float(ABSENT))
        return tf.where(items >= FIRST_ID, seconds, 0.0)

    def _recommend(self, given: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        request, proposals = self._proposed(given)
        items, fused, ranks = self.shortlist.cut(proposals)
        found = in_halves(self.ranker.score, *self._described(request, proposals, items, items, ranks))
        key = tf.where(request.known, found["odds"], fused)
        return self._answer(request, proposals, items, key, found["expected"])

    def _answer(
        self,
        request: Request,
        proposals: Proposals,
        items: tf.Tensor,
        key: tf.Tensor,
        expected: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """The shortlist `items` by `key`, both `[B, K]`, and what follows it, as far as the largest k goes.

        What is ranked has expected watch times, and reasons.
        """
        k, widest = request.k[:, tf.newaxis], width_of(request.k)
        diverse, asked = tf.reduce_any(request.diversity > 0), tf.minimum(widest, self.shortlist.size)
        size = tf.where(diverse, self.shortlist.size, asked)  # what diversity chooses from, else what is asked for
        key, order = tf.math.top_k(tf.where(items >= FIRST_ID, key, -np.inf), size)
        best = tf.gather(items, order, batch_dims=1)
        length = tf.reduce_sum(tf.cast(best >= FIRST_ID, tf.int32), axis=1, keepdims=True)  # [B, 1]

        def diversified() -> list[tf.Tensor]:
            turn = mmr_order(best, self.alike, request.diversity, asked)
            return [tf.gather(values, turn, batch_dims=1) for values in (best, key, order)]

        best, key, order = tf.cond(diverse, diversified, lambda: [best, key, order])

        def following() -> tf.Tensor:
            scores = among(self.shortlist.order(proposals), request.only)
            return masked_top_k(scores, widest, tf.concat([request.exclude, best], axis=1))[0]

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
        answer = {}
        if expected is not None:
            history = last_n(request.query["history"], self.shortlist.features.history_length)[0]
            reasons = nearest_watched(found[:, :size], self._open_rows(history, 0), self.alike)
            answer["reasons"] = tf.gather(self.item_ids, as_wide(reasons, widest, 0))
        if expected is not None and self.unit:
            ordered = tf.gather(tf.gather(expected, order, batch_dims=1), tf.minimum(column, size - 1), batch_dims=1)
            seconds = tf.where(past < 0, self._seconds(request, found, ordered), float(ABSENT))
            answer["expected_watch_time"] = tf.where(shown, seconds, 0.0)
        return {
            **answer,
            "items": tf.gather(self.item_ids, found),
            "scores": tf.where(shown, scores, 0.0),
            "sources": tf.where(shown, sources, ""),
            "count": tf.reduce_sum(tf.cast(shown, tf.int32), axis=1),
        }

    def _sources(self, proposals: Proposals, items: tf.Tensor) -> tf.Tensor:
        """Who proposed each item, best rank first, joined by "+"; the first source for what nobody proposed."""
        names = tf.constant(list(self.shortlist.sources))
        quota = tf.constant(list(self.shortlist.quota.values()), tf.float32)
        ranks = tf.stack(self.shortlist.ranks(proposals, items), axis=-1)  # [B, M, S]
        ranks = tf.where(ranks <= quota, ranks, np.inf)
        order = tf.argsort(ranks, stable=True)
        proposed = tf.gather(ranks, order, batch_dims=2) < np.inf
        plus = tf.constant(["", *["+"] * (len(self.shortlist.sources) - 1)])
        text = tf.strings.reduce_join(tf.where(proposed, plus + tf.gather(names, order), ""), axis=-1)
        return tf.where(proposed[..., 0], text, names[0])


def in_halves(score: Callable[..., Any], features: tf.Tensor, rows: tf.Tensor, history: tf.Tensor) -> dict[str, Any]:
    """What `score` says of two halves of the candidates that do not wait for each other: two threads compute them,
    where one operation is too small to be shared."""
    values, middle = features_first(features), (tf.shape(rows)[1] + 1) // 2  # [F, B, K]
    parts = slice(middle), slice(middle, None)
    halves = [score(features_last(values[:, :, of]), rows[:, of], history) for of in parts]
    return {name: tf.concat([half[name] for half in halves], axis=1) for name in halves[0]}


def _cosines(rows: tf.Tensor, tables: Sequence[tf.Tensor]) -> tf.Tensor:
    """Of items int32 `[B]` with all, float32 `[B, I]`: by the first table, `[I, D]`, that has a vector of the item."""
    table, *others = tables
    own = tf.gather(table, rows)
    cosine = tf.linalg.matmul(own, table, transpose_b=True)
    if not others:
        return cosine
    there = tf.reduce_any(own != 0, axis=1, keepdims=True)
    return tf.cond(tf.reduce_all(there), lambda: cosine, lambda: tf.where(there, cosine, _cosines(rows, others)))
