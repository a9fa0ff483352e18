"""Encoded data as arrays, and the one query of a user and split (the rule that keeps the future out).

A query's history is every positive of that user in the earlier splits that is strictly earlier than the first
timestamp of the target split; the items removed as seen are those of all earlier splits, tied rows too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow.parquet as pq

from shortlist import ShortlistError
from shortlist.components.artifacts import Encoded

Rows = dict[str, np.ndarray]
NO_TIME = np.iinfo(np.int64).max
"""The timestamp of a row without one: strictly earlier than nothing, so it is never history."""


class EncodedData:
    """The arrays of an `Encoded` artifact, read when asked for."""

    def __init__(self, encoded: Encoded):
        self.artifact = encoded
        self.state = encoded.read_json("state.json")
        self.num_items = self.state["items"] + 2
        self.num_users = self.state["users"] + 2
        self._parts: dict[str, Rows] = {}

    def rows(self, *splits: str) -> Rows:
        """The rows of some splits as arrays, sorted by user, then time, ties in the order of the split."""
        for name in splits:
            if name not in self._parts:
                table = pq.read_table(self.artifact / f"{name}.parquet")
                part = {c: table[c].to_numpy() for c in table.column_names if c != "timestamp"}
                self._parts[name] = {**part, "timestamp": table["timestamp"].fill_null(NO_TIME).to_numpy()}
        if len(splits) == 1:
            return self._parts[splits[0]]
        joined = {c: np.concatenate([self._parts[s][c] for s in splits]) for c in self._parts[splits[0]]}
        order = np.lexsort((joined["timestamp"], joined["user_key"]))  # stable: ties stay in the order of the splits
        return {c: values[order] for c, values in joined.items()}

    def fitted_rows(self) -> Rows:
        """The rows of the parts that the encoding was fitted on."""
        return self.rows(*(self.artifact.names if self.state["fitted_on"] == "all" else ("train",)))

    @cached_property
    def items(self) -> Rows:
        """By item row: `id` and `title` (objects), `year` int16, `genres` float32 `[I, G]` multi-hot."""
        table = pq.read_table(self.artifact / "items.parquet")
        lists = table["genres"].combine_chunks()
        genres = np.zeros((len(table), len(self.state["genres"])), np.float32)
        lengths = np.diff(lists.offsets.to_numpy())
        genres[np.repeat(np.arange(len(table)), lengths), lists.values.to_numpy() - 2] = 1
        return {
            "id": table["id"].to_numpy(),
            "title": table["title"].to_numpy(),
            "year": table["year"].to_numpy(),
            "genres": genres,
        }

    @cached_property
    def users(self) -> Rows:
        """By `user_key`: `id` (object) and `user` int32."""
        table = pq.read_table(self.artifact / "users.parquet")
        return {"id": table["id"].to_numpy(), "user": table["user"].to_numpy()}

    def year_bucket(self) -> np.ndarray:
        """int32 `[I]`: 0 for an unknown year, else 1 + its bucket."""
        years = self.items["year"]
        bucket = 1 + np.searchsorted(self.state["year_boundaries"], years, "right")
        return np.where(years > 0, bucket, 0).astype(np.int32)


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths: row q is `values[offsets[q]:offsets[q + 1]]`."""

    offsets: np.ndarray
    values: np.ndarray

    def padded(self, start: int, stop: int, width: int | None = None) -> np.ndarray:
        """Rows `[stop - start, L]`, padded with 0 on the right; `width` is the least L."""
        lengths = np.diff(self.offsets[start : stop + 1])
        out = np.zeros((stop - start, max(width or 1, lengths.max(initial=0))), self.values.dtype)
        out[np.arange(out.shape[1]) < lengths[:, np.newaxis]] = self.values[self.offsets[start] : self.offsets[stop]]
        return out


@dataclass(frozen=True)
class Queries:
    """One query a user of a split, in the order of `user_key`: every array has one entry, or ragged row, a query."""

    split: str
    user_key: np.ndarray
    user: np.ndarray
    time: np.ndarray
    history: Ragged
    history_time: Ragged
    seen: Ragged
    targets: Ragged
    target_weight: Ragged

    def __len__(self) -> int:
        return len(self.user)

    def batches(self, size: int) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
        """Slices and padded tensors: a `Query` (see `shortlist.models._base`) plus `exclude` int32 `[B, E]`."""
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            yield (
                slice(start, stop),
                {
                    "user": self.user[start:stop],
                    "history": self.history.padded(start, stop),
                    "history_time": self.history_time.padded(start, stop),
                    "time": self.time[start:stop],
                    "exclude": self.seen.padded(start, stop),
                },
            )


def build_queries(data: EncodedData, split: str) -> Queries:
    """The queries of every user with a positive in `split`.

    A positive weighs its watch time, or where the data has none its rating, or 1 (`weight_source`).

    Raises:
      ShortlistError: if a user's rows in `split` have no time at all.
    """
    names = data.artifact.NAMES
    target = data.rows(split)
    positive = target["positive"]
    keys = np.unique(target["user_key"][positive])
    slot = np.full(len(data.users["id"]), -1, np.int32)
    slot[keys] = np.arange(len(keys))

    first = np.full(len(keys) + 1, NO_TIME)  # the last one stands for all users without a query
    rows = slot[target["user_key"]]
    np.minimum.at(first, rows, target["timestamp"])
    if timeless := int((first[:-1] == NO_TIME).sum()):
        raise ShortlistError(
            f"`timestamp` must be known for a row of every user in {split}, or nothing says what came before it. Give "
            "the times; without them, splits of ratings serve rating models only. "
            f"Received: {timeless:,} of {len(keys):,} users without."
        )

    before = data.rows(*names[: names.index(split)])
    row = slot[before["user_key"]]
    known = before["item"] >= 2
    seen = (row >= 0) & known
    history = seen & before["positive"] & (before["timestamp"] < first[row])
    wanted = positive & (rows >= 0)
    return Queries(
        split=split,
        user_key=keys.astype(np.int32),
        user=data.users["user"][keys],
        time=first[:-1],
        history=_ragged(row, history, before["item"], len(keys)),
        history_time=_ragged(row, history, before["timestamp"], len(keys)),
        seen=_ragged(row, seen, before["item"], len(keys)),
        targets=_ragged(rows, wanted, target["item"], len(keys)),
        target_weight=_ragged(rows, wanted, positive_weight(data, target), len(keys)),
    )


def weight_source(data: EncodedData) -> str:
    """What a positive weighs: "watch_time", "rating" (a proxy for it) or "none"."""
    train = data.rows("train")
    for name in ("watch_time", "rating"):
        if np.isfinite(train[name][train["positive"]]).any():
            return name
    return "none"


def positive_weight(data: EncodedData, rows: Rows) -> np.ndarray:
    """float32, one a row: the weight of a positive; 1 where the row has no value."""
    source = weight_source(data)
    if source == "none":
        return np.ones(len(rows["item"]), np.float32)
    return np.where(np.isfinite(rows[source]), rows[source], 1).astype(np.float32)


def _ragged(row: np.ndarray, keep: np.ndarray, values: np.ndarray, count: int) -> Ragged:
    lengths = np.bincount(row[keep], minlength=count)
    return Ragged(np.concatenate([[0], np.cumsum(lengths)]), values[keep])
