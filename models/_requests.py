"""What the signatures of a bundle share: their inputs, and how a number of answers becomes one tensor."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from shortlist.models._base import FIRST_ID, masked_top_k

ABSENT = -1  # a number that was not given; text that was not given is ""

USER = tf.TensorSpec([None], tf.string, "user")
HISTORY = tf.TensorSpec([None, None], tf.string, "history")
EXCLUDE = tf.TensorSpec([None, None], tf.string, "exclude")
TIME = tf.TensorSpec([None], tf.int64, "time")
K = tf.TensorSpec([None], tf.int32, "k")
CANDIDATES = tf.TensorSpec([None, None], tf.string, "candidates")
WEIGHT = tf.TensorSpec([None, None], tf.float32, "weights")
ITEM = tf.TensorSpec([None], tf.string, "item")


def signature(function: Callable[..., Any], *inputs: tf.TensorSpec) -> Any:
    """The concrete function of inputs by their names. A `tf.function` would be traced once more for being saved."""

    def answer(**given: tf.Tensor) -> Any:
        return function(**given)

    return tf.function(answer, autograph=False).get_concrete_function(**{spec.name: spec for spec in inputs})


def absent(like: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """A tensor as large as `like` that says nothing."""
    return tf.fill(tf.shape(like), tf.constant("" if dtype == tf.string else ABSENT, dtype))


def as_wide(values: tf.Tensor, width: tf.Tensor, filling: int = ABSENT) -> tf.Tensor:
    """`values` `[B, V]`, cut or filled up to `[B, width]`."""
    lacking = [[0, 0], [0, tf.maximum(width - tf.shape(values)[1], 0)]]
    return tf.pad(values, lacking, constant_values=tf.constant(filling, values.dtype))[:, :width]


def kept(keep: tf.Tensor, *tensors: tf.Tensor) -> list[tf.Tensor]:
    """Of each tensor `[B, S]` what bool `keep` `[B, S]` holds, in its order, and 0 to the right of it: `[B, W]`."""
    width = tf.shape(keep)[1]
    place = tf.ragged.boolean_mask(tf.broadcast_to(tf.range(width), tf.shape(keep)), keep).to_tensor(width)
    return [tf.gather(tf.pad(x, [[0, 0], [0, 1]]), place, batch_dims=1) for x in tensors]


def counts(k: tf.Tensor, default: int, rows: int) -> tf.Tensor:
    """What `k` asks for of a table with that many rows, the reserved ones included."""
    return tf.clip_by_value(tf.where(k == ABSENT, default, k), 0, rows - FIRST_ID)


def width_of(k: tf.Tensor) -> tf.Tensor:
    """M, the columns of an answer."""
    return tf.maximum(tf.reduce_max(k), 1)


def best_rows(scores: tf.Tensor, k: tf.Tensor, exclude: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """The best k `[B]` rows of a table by `scores` `[B, N]`: rows int32 `[B, M]`, 0 where none is, and the outputs
    that go with them."""
    rows, scores = masked_top_k(scores, width_of(k), exclude)  # [B, M]
    shown = (rows >= FIRST_ID) & (tf.range(width_of(k)) < k[:, tf.newaxis])
    count = tf.reduce_sum(tf.cast(shown, tf.int32), axis=1)
    return tf.where(shown, rows, 0), {"scores": tf.where(shown, scores, 0.0), "count": count}


def same_batch(first: tf.Tensor, **others: tf.Tensor) -> list[tf.Operation]:
    """Refuses a request whose inputs have different numbers of rows; the checks, for what is to wait for them."""
    return [
        tf.debugging.assert_equal(
            tf.shape(value)[0], tf.shape(first)[0], f"`{name}` must have one row a request, as many as the first input."
        )
        for name, value in others.items()
    ]
