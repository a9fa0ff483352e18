"""What all models share: the registry and the protocols by which one model takes another.

Ids inside a model are int32 rows of its tables. Behind a `Transform`, row 0 is padding and row 1 is "out of
vocabulary"; both are masked whenever items are recommended.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import tensorflow as tf

PAD, OOV, FIRST_ID = 0, 1, 2

Query = dict[str, tf.Tensor]
"""One row a request, everything known before it:

`user` int32 `[B]`; `history` int32 `[B, L]`, the positives so far, oldest first, padded with 0 on the right;
`history_time` int64 `[B, L]`, seconds since 1970; `time` int64 `[B]`, the time of the request. And what the data says
besides, by kind: a category `user_<column>` or `context_<dimension>` int32 `[B]`, 0 where it is missing; a number
`user_<column>` float32 `[B]`, NaN where it is missing; the words searched for, `query` int32 `[B, T]`, padded with 0.
"""

KINDS = {
    "category": tf.TensorSpec([None], tf.int32),
    "number": tf.TensorSpec([None], tf.float32),
    "tokens": tf.TensorSpec([None, None], tf.int32),
}
"""The kinds of what a query may say beside user, history and time."""

QUERY_SPEC: Query = {
    "user": tf.TensorSpec([None], tf.int32, "user"),
    "history": tf.TensorSpec([None, None], tf.int32, "history"),
    "history_time": tf.TensorSpec([None, None], tf.int64, "history_time"),
    "time": tf.TensorSpec([None], tf.int64, "time"),
}

RankingQuery = Query
"""A `Query`, and what only a ranker reads:

`history_weight` float32 `[B, L]`, the watch time or rating of each of `history`, -1 where unknown; `impressions` int32
`[B, M]`, items shown earlier and not watched, padded with 0, and `impressions_time` int64 `[B, M]`; `example_age`
float32 `[B]`, seconds by which a training example is older than the newest, 0 in serving.
"""


def query_spec(kinds: Mapping[str, str] | None = None) -> Query:
    """The input signature of a `Query`; `kinds` says what else there is, a kind by name."""
    further = {name: tf.TensorSpec(KINDS[k].shape, KINDS[k].dtype, name) for name, k in (kinds or {}).items()}
    return {**QUERY_SPEC, **further}


def ranking_spec(kinds: Mapping[str, str] | None = None) -> RankingQuery:
    """The input signature of a `RankingQuery`; `kinds` as for `query_spec`."""
    return {
        **query_spec(kinds),
        "history_weight": tf.TensorSpec([None, None], tf.float32, "history_weight"),
        "impressions": tf.TensorSpec([None, None], tf.int32, "impressions"),
        "impressions_time": tf.TensorSpec([None, None], tf.int64, "impressions_time"),
        "example_age": tf.TensorSpec([None], tf.float32, "example_age"),
    }


def ranking_query(query: Query, categories: Iterable[str] = ()) -> RankingQuery:
    """The query with what is absent for a ranker: weights of -1, no impressions, age 0, missing categories."""
    batch, history = tf.shape(query["user"])[:1], tf.shape(query["history"])
    nothing = tf.concat([batch, [0]], axis=0)
    absent = {
        "history_weight": tf.fill(history, -1.0),
        "impressions": tf.zeros(nothing, tf.int32),
        "impressions_time": tf.zeros(nothing, tf.int64),
        "example_age": tf.zeros(batch),
        **{name: tf.zeros(batch, tf.int32) for name in categories},
    }
    return {**absent, **query}


REGISTRY: dict[str, type] = {}

M = TypeVar("M", bound=type)


def register(name: str) -> Callable[[M], M]:
    """Class decorator: makes a model known under `name`, to `shortlist.models` and to Keras's loader.

    Raises:
      ValueError: if another class has the name already.
    """

    def decorate(cls: M) -> M:
        known = REGISTRY.setdefault(name, cls)
        if known.__qualname__ != cls.__qualname__ or known.__module__ != cls.__module__:
            raise ValueError(f"`name` must be new. Received: {name!r}, which is {known.__module__}.{known.__name__}.")
        REGISTRY[name] = cls
        cls.registered_name = name  # type: ignore[attr-defined]
        return tf.keras.utils.register_keras_serializable("shortlist", name)(cls)

    return decorate


def constructor_arguments(model: tf.keras.Model) -> dict[str, Any]:
    """The config of a model that keeps every argument of its constructor as an attribute of the same name."""
    parameters = inspect.signature(type(model).__init__).parameters.values()
    names = [p.name for p in parameters if p.name != "self" and p.kind is not p.VAR_KEYWORD]
    return {**{name: getattr(model, name) for name in names}, "name": model.name}


@runtime_checkable
class Retriever(Protocol):
    """A model that can propose items: it scores the whole catalogue for a query."""

    def score_items(self, query: Query) -> tf.Tensor:
        """Scores float32 `[B, I]`, higher is better, one column an item row (the two reserved rows included).

        −∞ leaves an item out of what is proposed."""
        ...


@runtime_checkable
class Factorized(Retriever, Protocol):
    """A retriever whose score is a dot product, so that an index of the items answers for it."""

    def embed_query(self, query: Query) -> tf.Tensor:
        """Query vectors float32 `[B, D]`."""
        ...

    def item_vectors(self) -> tf.Tensor:
        """Item vectors float32 `[I, D]`."""
        ...


def cell_indices(columns: tf.Tensor) -> tf.Tensor:
    """The number of its row beside each of `columns` int32 `[B, K]`: `[B, K, 2]`, as scatters into `[B, C]` want it."""
    row = tf.broadcast_to(tf.range(tf.shape(columns)[0])[:, tf.newaxis], tf.shape(columns))
    return tf.stack([row, columns], axis=-1)


SAMPLED, HIGH = 16, 2
"""`masked_top_k` looks at every 16th score for a bound above which lie about twice as many as are wanted."""


def masked_top_k(
    scores: tf.Tensor, k: tf.Tensor | int, exclude: tf.Tensor | None = None, first_id: int = FIRST_ID
) -> tuple[tf.Tensor, tf.Tensor]:
    """The k best allowed items a row, at any k and any number of exclusions.

    Args:
      scores: float `[B, I]`. An item with score −∞ is never returned.
      k: int, at least 1; may exceed the number of items.
      exclude: int `[B, E]`, E ≥ 0, item rows never to return; negative values are padding.
      first_id: rows below this one are reserved and never returned.

    Returns:
      `items` int32 `[B, k]` and `scores` float `[B, k]`, best first, ties by the lower row. Where fewer than k items
      are left, the rest is item 0 (or −1 when `first_id` is 0) with score −∞.
    """
    scores = tf.convert_to_tensor(scores)
    exclude = tf.zeros([tf.shape(scores)[0], 0], tf.int32) if exclude is None else tf.cast(exclude, tf.int32)
    items, values = _shared_top_k(scores.dtype, first_id)(scores, k, exclude)
    shape = [scores.shape[0], k if isinstance(k, int) else None]
    return tf.ensure_shape(items, shape), tf.ensure_shape(values, shape)


@functools.cache
def _shared_top_k(dtype: tf.DType, first_id: int) -> Any:
    """One function for all graphs that ask for it, so that a bundle has it once: to trace, to save and to load."""
    scores, others = (tf.TensorSpec([None, None], kind) for kind in (dtype, tf.int32))
    call = functools.partial(_masked_top_k, first_id=first_id)
    return tf.function(call, [scores, tf.TensorSpec([], tf.int32), others], autograph=False)


def _masked_top_k(scores: tf.Tensor, k: tf.Tensor, exclude: tf.Tensor, first_id: int) -> tuple[tf.Tensor, tf.Tensor]:
    rows, size = tf.shape(scores)[0], tf.shape(scores)[1]
    low = tf.constant(-np.inf, scores.dtype)
    never = tf.broadcast_to(tf.range(-1, first_id), [rows, first_id + 1])  # with one of padding, so that it isn't empty
    never = tf.concat([never, exclude], axis=1)  # [B, E]
    enough, least = k + tf.shape(never)[1], tf.minimum(k, size)

    where = tf.boolean_mask(cell_indices(never), (never >= 0) & (never < size))  # [N, 2]

    def left_out_after() -> tuple[tf.Tensor, tf.Tensor]:
        values, items = tf.math.top_k(scores, tf.minimum(enough, size))
        values, place = tf.math.top_k(tf.where(is_among(items, never), low, values), least)
        return values, tf.gather(items, place, batch_dims=1)

    def left_out_before() -> tuple[tf.Tensor, tf.Tensor]:
        fewer = tf.tensor_scatter_nd_update(scores, where, tf.fill(tf.shape(where)[:1], low))
        return tuple(tf.math.top_k(fewer, least))

    def of_all() -> tuple[tf.Tensor, tf.Tensor]:
        # The first finds as many more as there are exclusions; the second copies scores, cheaper where they are few.
        return tf.cond(100 * enough <= size, left_out_after, left_out_before)

    def nothing() -> tuple[tf.Tensor, tf.Tensor]:
        return tf.zeros([rows, 0], scores.dtype), tf.zeros([rows, 0], tf.int32)

    def of_high() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        # TensorFlow's `top_k` is slow at a number that it cannot pass over: most are below a bound that a sample gives.
        sampled = tf.maximum(HIGH * enough // SAMPLED, 1)
        bound = tf.math.top_k(scores[:, ::SAMPLED], sampled)[0][:, -1:]
        high = tf.tensor_scatter_nd_update(scores >= bound, where, tf.zeros(tf.shape(where)[:1], tf.bool))
        count = tf.reduce_sum(tf.cast(high, tf.int32), axis=1)  # [B]

        def best() -> tuple[tf.Tensor, tf.Tensor]:
            cells = tf.where(high)  # [H, 2], row by row
            rowwise = lambda x: tf.RaggedTensor.from_row_lengths(x, count, validate=False)  # noqa: E731
            values, place = tf.math.top_k(rowwise(tf.gather_nd(scores, cells)).to_tensor(low), least)
            items = rowwise(tf.cast(cells[:, 1], tf.int32)).to_tensor()
            return values, tf.gather(items, place, batch_dims=1)

        fits = (count >= least) & (count <= 2 * HIGH * enough)
        fits = tf.reduce_all(fits) & tf.reduce_any(fits)  # of no rows there is no widest
        return fits, *tf.cond(fits, best, nothing)

    found, *high = tf.cond(2 * HIGH * enough <= size, of_high, lambda: (tf.constant(False), *nothing()))
    values, items = tf.cond(found, lambda: tuple(high), of_all)  # one copy of `of_all`, which every graph has to read
    missing = [[0, 0], [0, k - least]]
    values = tf.pad(values, missing, constant_values=low)
    items = tf.pad(items, missing)
    return tf.where(values > low, items, 0 if first_id > 0 else -1), values


def is_among(items: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """Whether each of `items` int32 `[B, C]` is one of its row of `others` int32 `[B, E]`, E ≥ 1: bool `[B, C]`."""
    width = tf.shape(others)[1]
    ascending = -tf.math.top_k(-others, width)[0]
    at = tf.minimum(tf.searchsorted(ascending, items), width - 1)
    return tf.gather(ascending, at, batch_dims=1) == items
