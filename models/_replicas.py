"""What a step that several replicas share needs from the others; alone, all of it is the identity."""

from typing import Any

import tensorflow as tf


def replicas() -> int:
    """How many replicas take a step together; under parameter servers each worker steps by itself."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def total(number: Any) -> tf.Tensor:
    """The sum over the replicas of a number, which each has its own of, as float32: how large their batch is."""
    number = tf.cast(number, tf.float32)
    if replicas() == 1:
        return number
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, number)


def gathered(values: tf.Tensor) -> tf.Tensor:
    """The values `[B_r, ...]` of all replicas behind each other, `[B, ...]`.

    A gradient goes back to the replica that the values came from, as the sum of those of all replicas. (That of
    TensorFlow's own `all_gather` refuses sparse ones.)
    """
    return values if replicas() == 1 else _gathered(values)


@tf.custom_gradient
def _gathered(values: tf.Tensor) -> tuple[tf.Tensor, Any]:
    context = tf.distribute.get_replica_context()
    own = tf.shape(values)[:1]

    def back(gradient: Any) -> tf.Tensor:
        every = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.convert_to_tensor(gradient))  # [B, ...]
        sizes = context.all_gather(own, axis=0)
        first = tf.reduce_sum(sizes[: context.replica_id_in_sync_group])
        return every[first : first + own[0]]

    return context.all_gather(values, axis=0), back
