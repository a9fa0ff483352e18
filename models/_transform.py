"""The maps of `shortlist.components.Transform` as layers of a graph, so that what is served is what was trained."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import tensorflow as tf

from shortlist.models._base import FIRST_ID, KINDS, OOV, PAD
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


class IdNames(tf.keras.layers.Layer):
    """The way back from `IdLookup`: table rows to ids, "" for the reserved ones.

    Args:
      vocabulary_file: as there.

    Call: int32 `[...]` → string `[...]`.
    """

    def __init__(self, vocabulary_file: str):
        super().__init__()
        index = tf.lookup.TextFileIndex
        lines = tf.lookup.TextFileInitializer(vocabulary_file, tf.int64, index.LINE_NUMBER, tf.string, index.WHOLE_LINE)
        self.table = tf.lookup.StaticHashTable(lines, "")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.table.lookup(tf.cast(inputs, tf.int64) - FIRST_ID)


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


def split_words(texts: tf.Tensor) -> tf.RaggedTensor:
    """The words of texts `[N]`, `[N, (W)]`: runs of letters and digits of any script, in lower case."""
    lower = tf.strings.lower(texts, "utf-8")
    return tf.strings.split(tf.strings.regex_replace(lower, r"[^\pL\pN]+", " "))


class Words(tf.keras.layers.Layer):
    """Texts to rows of a vocabulary of words: the first `length` words, padded with 0; an unknown word is 1.

    Args:
      vocabulary_file: as for `IdLookup`.
      length: T.

    Call: string `[N]` → int32 `[N, T]`.
    """

    def __init__(self, vocabulary_file: str, length: int):
        super().__init__()
        self.rows, self.length = IdLookup(vocabulary_file), length

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        words = split_words(inputs)[:, : self.length]
        return self.rows(words.to_tensor("", [None, self.length]))


class TimeContext(tf.keras.layers.Layer):
    """What a time is in a dimension: the row of its condition, from 2 on, in the order of their vocabulary.

    Args:
      dimension: "daypart" (quarters of the day from midnight), "weekday" (from Monday), "weekend" (workday, weekend) or
        "season" (winter, spring, summer, autumn of the northern half, by whole months from December).
      time_zone: an IANA name; its offsets until 2037 are in the graph, summer times included.

    Call: int64 `[N]`, seconds since 1970 → int32 `[N]`.
    """

    def __init__(self, dimension: str, time_zone: str = "UTC"):
        super().__init__()
        self.dimension = dimension
        changes, offsets = utc_offsets(time_zone)
        self.changes, self.offsets = tf.constant(changes, tf.int64), tf.constant(offsets, tf.int64)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        inputs = tf.cast(inputs, tf.int64)
        local = inputs + tf.gather(self.offsets, tf.searchsorted(self.changes, inputs, side="right"))
        day = tf.math.floordiv(local, 86_400)
        if self.dimension == "daypart":
            place = (local - day * 86_400) // 21_600
        elif self.dimension == "season":
            place = (_month(day) % 12) // 3
        else:
            place = tf.math.floormod(day + 3, 7)  # 1970 began on a Thursday
            place = place if self.dimension == "weekday" else tf.cast(place >= 5, tf.int64)
        return FIRST_ID + tf.cast(place, tf.int32)


def _month(day: tf.Tensor) -> tf.Tensor:
    """1 to 12, of days since 1970: years that begin in March, whose months have 153 days in every five."""
    day = day + 719_468  # since March 1 of the year 0
    of_era = tf.math.floormod(day, 146_097)
    year = (of_era - of_era // 1_460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    from_march = (5 * of_year + 2) // 153
    return (from_march + 2) % 12 + 1


@cache
def utc_offsets(time_zone: str) -> tuple[np.ndarray, np.ndarray]:
    """When the offset of a time zone changes, from 1970 to 2037, and its offsets: int64 seconds `[N]` and `[N + 1]`."""
    zone = ZoneInfo(time_zone)

    def offset(instant: int) -> int:
        return int(
            (datetime.fromtimestamp(instant, timezone.utc).astimezone(zone).utcoffset() or timedelta()).total_seconds()
        )

    days = range(0, int(datetime(2038, 1, 1, tzinfo=timezone.utc).timestamp()), 86_400)
    each = [offset(day) for day in days]
    changes, offsets = [], [each[0]]
    for day, before, after in zip(days[1:], each, each[1:], strict=False):
        if before != after:
            low, high = day - 86_400, day  # the first second of the new offset lies in (low, high]
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if offset(middle) == after else (middle, high)
            changes.append(high)
            offsets.append(after)
    return np.array(changes, np.int64), np.array(offsets, np.int64)


class RequestReader(tf.Module):
    """Reads what a request says beside user, history and time, as `Transform` does for a row of the data.

    What it does not say is, for a column of the user, what is stored of the user; for a context that the time decides,
    that of its time; else missing.

    Args:
      columns: the `request` of an `Encoded` artifact's `state.json`.
      folder: that artifact, for the vocabularies.
      stored: the columns of the users by row, int32 or float32 `[U]`.
      time_zone: of the contexts that the time decides.
    """

    def __init__(
        self, columns: Mapping[str, Any], folder: str, stored: Mapping[str, np.ndarray], time_zone: str = "UTC"
    ):
        super().__init__(name="request")
        self.kinds = {name: info["kind"] for name, info in columns.items()}
        self.maps: dict[str, tf.keras.layers.Layer] = {}
        self.times: dict[str, TimeContext] = {}
        for name, info in columns.items():
            if info["kind"] == "tokens":
                self.maps[name] = Words(f"{folder}/{info['file']}.txt", info["length"])
            elif info["kind"] == "category":
                self.maps[name] = IdLookup(f"{folder}/{info['file']}.txt")
            if info.get("from_time"):
                self.times[name] = TimeContext(name.removeprefix("context_"), time_zone)
        self.stored = {
            name: tf.Variable(values, trainable=False, dtype=KINDS[self.kinds[name]].dtype)
            for name, values in stored.items()
        }

    @property
    def features(self) -> dict[str, tuple[tf.io.FixedLenFeature, tf.TensorSpec]]:
        """How a `tf.Example` holds each, and the tensor `[B]` that it becomes; "" and -1 for what is not said."""
        found = {}
        for name, kind in self.kinds.items():
            dtype, absent = (tf.float32, -1.0) if kind == "number" else (tf.string, "")
            found[name] = (tf.io.FixedLenFeature([], dtype, absent), tf.TensorSpec([None], dtype, name))
        return found

    def __call__(self, given: Mapping[str, tf.Tensor], users: tf.Tensor, time: tf.Tensor) -> dict[str, tf.Tensor]:
        """The columns of a `Query`, of what is `given` and the rows of the `users` and the time, `[B]`."""
        found = {}
        for name, kind in self.kinds.items():
            value = given[name]
            if kind == "number":
                found[name] = tf.where(value == -1.0, tf.gather(self.stored[name], users), value)
                continue
            rows = self.maps[name](value)
            if name in self.stored:
                rows = tf.where(rows == PAD, tf.gather(self.stored[name], users), rows)
            elif name in self.times:
                rows = tf.where(rows < FIRST_ID, self.times[name](time), rows)
            elif kind == "category":
                rows = tf.where(rows < FIRST_ID, PAD, rows)
            found[name] = rows
        return found


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
        if self.time is not None and time_quantiles:
            self.time.set_boundaries([time_quantiles])
