"""The maps of `shortlist.components.Transform` as layers of a graph, so that what is served is what was trained."""

from collections.abc import Sequence

import tensorflow as tf

from shortlist.models._base import FIRST_ID, OOV, PAD
from shortlist.models._layers import QuantileNormalization


class IdLookup(tf.keras.layers.Layer):
    """Ids to table rows: "" is 0, an id on line n of the vocabulary (from 0) is n + 2, any other is 1.

    The file is an asset: an exported graph carries it inside.

    Args:
      vocabulary_file: path of a text file, one id a line, at least one, as `Transform` writes it.

    Call: string `[...]` → int32 `[...]`.
    """

    def __init__(self, vocabulary_file: str):
        super().__init__()
        index = tf.lookup.TextFileIndex
        lines = tf.lookup.TextFileInitializer(vocabulary_file, tf.string, index.WHOLE_LINE, tf.int64, index.LINE_NUMBER)
        self.table = tf.lookup.StaticHashTable(lines, OOV - FIRST_ID)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        rows = tf.cast(self.table.lookup(inputs) + FIRST_ID, tf.int32)
        return tf.where(inputs == "", PAD, rows)


class Buckets(tf.keras.layers.Layer):
    """Years to buckets: 0 where the year is 0 (unknown), else 1 + the number of boundaries up to it.

    Args:
      boundaries: ascending; may be empty.

    Call: int `[N]` → int32 `[N]`.
    """

    def __init__(self, boundaries: Sequence[float]):
        super().__init__()
        self.boundaries = tf.constant(boundaries, tf.float64, [len(boundaries)])

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        bucket = 1 + tf.searchsorted(self.boundaries, tf.cast(inputs, tf.float64), side="right")
        return tf.where(inputs > 0, bucket, 0)


class TransformLayers(tf.Module):
    """The state of a fitted `Transform`: `item` and `user` (ids), `year` (buckets), `time` (cumulative frequency).

    Args:
      item_file, user_file: `items.txt` and `users.txt` of an `Encoded` artifact.
      year_boundaries, time_quantiles: from its `state.json`; without quantiles `time` is None.
    """

    def __init__(
        self,
        item_file: str,
        user_file: str,
        year_boundaries: Sequence[float] = (),
        time_quantiles: Sequence[float] | None = None,
    ):
        super().__init__(name="transform")
        self.item, self.user = IdLookup(item_file), IdLookup(user_file)
        self.year = Buckets(year_boundaries)
        self.time = QuantileNormalization(1, len(time_quantiles)) if time_quantiles else None
        if self.time is not None:
            self.time.boundaries.assign([time_quantiles])
