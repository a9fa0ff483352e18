"""Maximal marginal relevance: a shortlist in an order that repeats itself less."""

import tensorflow as tf

from shortlist.models._base import FIRST_ID


def mmr_order(items: tf.Tensor, vectors: tf.Tensor, diversity: tf.Tensor, steps: tf.Tensor) -> tf.Tensor:
    """Orders shortlists by maximal marginal relevance.

    One item after another, the one of the largest (1 − λ) (1 − place / n) − λ max cos(item, one before it): n items
    stand at the places from 0; of the first one there is no cosine. A tie goes to the earlier place.

    Source: Carbonell and Goldstein 1998. Relevance is the place there, since odds and cosines have no common scale.

    Args:
      items: int32 `[B, K]`, best first, 0 past the last one.
      vectors: item vectors float32 `[I, D]`, of length 1, or 0 for an item that resembles none.
      diversity: λ float32 `[B]`, in [0, 1]; 0 leaves a row as it is.
      steps: how many items are chosen so; the rest of the row follows in its order.

    Returns:
      Places in `items`, int32 `[B, K]`.
    """
    there = items >= FIRST_ID
    size = tf.shape(items)[1]
    place = tf.range(size)[tf.newaxis]  # [1, K]
    length = tf.reduce_sum(tf.cast(there, tf.float32), axis=1, keepdims=True)
    relevance = 1.0 - tf.cast(place, tf.float32) / length  # [B, K]
    own, weight = tf.gather(vectors, items), diversity[:, tf.newaxis]  # [B, K, D], [B, 1]

    def choose(step: tf.Tensor, turn: tf.Tensor, nearest: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        left = there & (turn == size)
        value = tf.where(left, (1.0 - weight) * relevance - weight * nearest, -float("inf"))
        best = tf.argmax(value, axis=1, output_type=tf.int32)  # [B]
        cosine = tf.linalg.matvec(own, tf.gather(own, best, batch_dims=1))  # [B, K]
        turn = tf.where(left & (place == best[:, tf.newaxis]), step, turn)
        return step + 1, turn, tf.maximum(nearest, cosine)

    start = tf.constant(0), tf.fill(tf.shape(items), size), tf.fill(tf.shape(items), -1.0)
    turn = tf.while_loop(lambda step, *_: step < steps, choose, start)[1]
    return tf.argsort(turn, stable=True)  # what had no turn keeps its order


def nearest_watched(items: tf.Tensor, history: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
    """Of each of `items` int32 `[B, M]` the item of `history` int32 `[B, L]` with the largest cosine, int32 `[B, M]`.

    0 where there is none, or none with a cosine above 0; a tie goes to the earlier of the history. `vectors` are those
    of `mmr_order`.
    """
    cosine = tf.linalg.matmul(tf.gather(vectors, items), tf.gather(vectors, history), transpose_b=True)  # [B, M, L]
    watched = (history >= FIRST_ID)[:, tf.newaxis] & (items >= FIRST_ID)[..., tf.newaxis]
    cosine = tf.pad(tf.where(watched, cosine, 0.0), [[0, 0], [0, 0], [1, 0]])  # the first one is nothing, of cosine 0
    return tf.gather(tf.pad(history, [[0, 0], [1, 0]]), tf.argmax(cosine, axis=-1), batch_dims=1)
