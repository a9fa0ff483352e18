"""What a step that several replicas share needs from the others; alone, all of it is the identity."""

from typing import Any

import tensorflow as tf


def replicas() -> int:
    """How many replicas take a step together; under parameter servers each worker steps by itself."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def rows_of(table: Any, rows: tf.Tensor) -> tf.Tensor:
    """`tf.nn.embedding_lookup` in a table, which fetches the rows alone however it is distributed.

    Of one that each replica has a copy of, TensorFlow would read the whole, and the next update would copy it: a step
    would cost what the table is large. So the replica's own copy is asked.
    """
    own = table._get() if isinstance(table, tf.distribute.DistributedValues) else table
    return tf.nn.embedding_lookup(own, rows)


def total(number: Any) -> tf.Tensor:
    """The sum over the replicas of a number, which each has its own of, as float32: how large their batch is."""
    number = tf.cast(number, tf.float32)
    if replicas() == 1:
        return number
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, number)


def gathered(values: tf.Tensor) -> tf.Tensor:
    """The values `[B_r, ...]` of all replicas behind each other, `[B, ...]`.

    A gradient goes back to the replica that the values came from, as the sum of those of all replicas.

    It is made of sums alone, to which each replica brings its values between zeros: TensorFlow's `all_gather` refuses
    sparse gradients, and what has no device of its own, as in the processes of `MultiWorkerMirroredStrategy`.
    """
    return values if replicas() == 1 else _gathered(values)


@tf.custom_gradient
def _gathered(values: tf.Tensor) -> tuple[tf.Tensor, Any]:
    context = tf.distribute.get_replica_context()
    own, number = tf.shape(values)[0], context.replica_id_in_sync_group
    sizes = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.one_hot(number, replicas(), own, 0))  # [R]
    first = tf.reduce_sum(sizes[:number])
    around = [[first, tf.reduce_sum(sizes) - first - own], *[[0, 0]] * (values.shape.rank - 1)]

    def back(gradient: Any) -> tf.Tensor:
        every = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.convert_to_tensor(gradient))  # [B, ...]
        return every[first : first + own]

    return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.pad(values, around)), back
