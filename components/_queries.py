"""Encoded data as arrays, and the one query of a user and split (the rule that keeps the future out).

A query's history is every positive of that user in the earlier splits that is strictly earlier than the first
timestamp of the target split; the items removed as seen are those of all earlier splits, tied rows too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
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
                self._parts[name] = arrays(pq.read_table(self.artifact / f"{name}.parquet"))
        return in_order([self._parts[name] for name in splits])

    def fitted_rows(self) -> Rows:
        """The rows of the parts that the encoding was fitted on."""
        return self.rows(*(self.artifact.names if self.state["fitted_on"] == "all" else ("train",)))

    @cached_property
    def items(self) -> Rows:
        """By item row: `id` and `title` (objects), `year` int16, `added` int64, `genres` float32 `[I, G]` multi-hot,
        and the columns `category_<name>` int32 and `number_<name>` float32."""
        table = pq.read_table(self.artifact / "items.parquet")
        lists = table["genres"].combine_chunks()
        genres = np.zeros((len(table), len(self.state["genres"])), np.float32)
        lengths = np.diff(lists.offsets.to_numpy())
        genres[np.repeat(np.arange(len(table)), lengths), lists.values.to_numpy() - 2] = 1
        return {
            "id": table["id"].to_numpy(),
            "title": table["title"].to_numpy(),
            "year": table["year"].to_numpy(),
            "added": table["added"].to_numpy(),
            "genres": genres,
            **{n: table[n].to_numpy() for n in table.column_names if n.startswith(("category_", "number_"))},
        }

    @cached_property
    def closed(self) -> np.ndarray:
        """Bool `[I]`: the items that a refresh has taken out of the catalogue. They are known, and never returned."""
        listed = pq.read_table(self.artifact / "items.parquet", columns=["listed"])["listed"].to_numpy()
        return ~listed & (np.arange(self.num_items) >= 2)

    @cached_property
    def users(self) -> Rows:
        """By `user_key`: `id` (object), `user` int32 and the columns `user_<name>`, int32 or float32."""
        table = pq.read_table(self.artifact / "users.parquet")
        return {name: table[name].to_numpy() for name in table.column_names}

    @cached_property
    def searches(self) -> np.ndarray:
        """int32 `[N, T]`: the words of each text that is searched for, row 0 for none."""
        return np.load(self.artifact / "searches.npy")

    @property
    def kinds(self) -> dict[str, str]:
        """What a query says beside user, history and time, a kind by name; see `query_spec`."""
        return {name: info["kind"] for name, info in self.state["request"].items()}

    @property
    def contexts(self) -> dict[str, int]:
        """The contexts of a request, `context_<dimension>`, and how many rows a table of their conditions has."""
        return {name: info["size"] for name, info in self.state["request"].items() if name.startswith("context_")}

    def request(self, rows: Rows, at: np.ndarray) -> Rows:
        """What the requests of the rows `at` say beside user, history and time; see `Query`."""
        found = {}
        for name, kind in self.kinds.items():
            if kind == "tokens":
                found[name] = self.searches[rows[name][at]]
            else:
                found[name] = self.users[name][rows["user_key"][at]] if name.startswith("user_") else rows[name][at]
        return found

    def category(self, file: str, rows: np.ndarray) -> pa.Array:
        """The values of a category by their rows, of the vocabulary `file`; null for what is missing or unknown."""
        return pa.array([None, None, *self.vocabulary(file)], pa.string()).take(pa.array(rows))

    def vocabulary(self, file: str) -> list[str]:
        """The lines of a vocabulary; line n is row n + 2."""
        return (self.artifact / f"{file}.txt").read_text("utf-8").split("\n")[:-1]

    def year_bucket(self) -> np.ndarray:
        """int32 `[I]`: 0 for an unknown year, else 1 + its bucket."""
        years = self.items["year"]
        bucket = 1 + np.searchsorted(self.state["year_boundaries"], years, "right")
        return np.where(years > 0, bucket, 0).astype(np.int32)


def arrays(table: pa.Table) -> Rows:
    """The columns of a part, a missing time as `NO_TIME`."""
    part = {c: table[c].to_numpy() for c in table.column_names if c != "timestamp"}
    return {**part, "timestamp": table["timestamp"].fill_null(NO_TIME).to_numpy()}


def in_order(parts: Sequence[Rows]) -> Rows:
    """The rows of parts together, sorted by user, then time, ties in the order of the parts."""
    if len(parts) == 1:
        return parts[0]
    joined = {c: np.concatenate([part[c] for part in parts]) for c in parts[0]}
    order = np.lexsort((joined["timestamp"], joined["user_key"]))  # stable: ties stay in the order of the splits
    return {c: values[order] for c, values in joined.items()}


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths: row q is `values[offsets[q]:offsets[q + 1]]`."""

    offsets: np.ndarray
    values: np.ndarray

    def __getitem__(self, rows: slice) -> "Ragged":
        """Some rows that follow each other."""
        offsets = self.offsets[rows.start : rows.stop + 1]
        return Ragged(offsets - offsets[0], self.values[offsets[0] : offsets[-1]])

    def padded(self, start: int, stop: int, width: int | None = None) -> np.ndarray:
        """Rows `[stop - start, L]`, padded with 0 on the right; `width` is the least L."""
        lengths = np.diff(self.offsets[start : stop + 1])
        out = np.zeros((stop - start, max(width or 1, lengths.max(initial=0))), self.values.dtype)
        out[np.arange(out.shape[1]) < lengths[:, np.newaxis]] = self.values[self.offsets[start] : self.offsets[stop]]
        return out


@dataclass(frozen=True)
class Queries:
    """One query a user of a split, in the order of `user_key`: every array has one entry, or ragged row, a query.

    `request` is what it says besides: that of the user's first row in the split. `context` is what only a ranker reads,
    see `RankingQuery` of `shortlist.models._base`; `shown` are the rows of the split with a known item, for whoever
    learns from impressions: `item`, `watched` (a positive), `weight` and `time`.
    """

    split: str
    user_key: np.ndarray
    user: np.ndarray
    time: np.ndarray
    history: Ragged
    history_time: Ragged
    seen: Ragged
    targets: Ragged
    target_weight: Ragged
    request: Mapping[str, np.ndarray] = field(default_factory=dict)
    context: Mapping[str, np.ndarray | Ragged] = field(default_factory=dict)
    shown: Mapping[str, Ragged] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, rows: slice) -> "Queries":
        """Some queries that follow each other."""
        fields = {name: value for name, value in vars(self).items() if name != "split"}
        cut: dict[str, Any] = {
            name: {key: own[rows] for key, own in value.items()} if isinstance(value, Mapping) else value[rows]
            for name, value in fields.items()
        }
        return Queries(self.split, **cut)

    def batches(self, size: int) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
        """Slices and padded tensors: a `Query` (see `shortlist.models._base`) plus `exclude` int32 `[B, E]`."""
        for rows, batch in self.ranking_batches(size):
            yield rows, {key: value for key, value in batch.items() if key not in self.context}

    def ranking_batches(self, size: int) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
        """As `batches`, with what only a ranker reads: a `RankingQuery` plus `exclude`."""
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
                    **{key: value[start:stop] for key, value in self.request.items()},
                    **{
                        key: value.padded(start, stop) if isinstance(value, Ragged) else value[start:stop]
                        for key, value in self.context.items()
                    },
                },
            )


def build_queries(data: EncodedData, split: str, of_all: bool = False) -> Queries:
    """The queries of every user with a positive in `split`, or `of_all` that have a row there.

    A positive weighs its watch time, or where the data has none its rating, or 1 (`weight_source`). What was watched
    is removed as seen; what was only shown is not.

    Raises:
      ShortlistError: if a user's rows in `split` have no time at all.
    """
    names = data.artifact.NAMES
    target = data.rows(split)
    positive = target["positive"]
    keys = np.unique(target["user_key"] if of_all else target["user_key"][positive])
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
    mine = (row >= 0) & known
    seen = mine & before["watched"]
    earlier = mine & (before["timestamp"] < first[row])
    history, ignored = earlier & before["positive"], earlier & ~before["watched"]
    wanted, shown = positive & (rows >= 0), (rows >= 0) & (target["item"] >= 2)
    weight = positive_weight(data, target)
    context: dict[str, np.ndarray | Ragged] = {
        "history_weight": _ragged(row, history, known_weight(data, before), len(keys)),
        "impressions": _ragged(row, ignored, before["item"], len(keys)),
        "impressions_time": _ragged(row, ignored, before["timestamp"], len(keys)),
        "example_age": _example_age(split, first[:-1]),
    }
    return Queries(
        split=split,
        user_key=keys.astype(np.int32),
        user=data.users["user"][keys],
        time=first[:-1],
        history=_ragged(row, history, before["item"], len(keys)),
        history_time=_ragged(row, history, before["timestamp"], len(keys)),
        seen=_ragged(row, seen, before["item"], len(keys)),
        targets=_ragged(rows, wanted, target["item"], len(keys)),
        target_weight=_ragged(rows, wanted, weight, len(keys)),
        request=data.request(target, np.searchsorted(target["user_key"], keys)),
        context=context,
        shown={
            "item": _ragged(rows, shown, target["item"], len(keys)),
            "watched": _ragged(rows, shown, positive, len(keys)),
            "weight": _ragged(rows, shown, np.where(positive, weight, 0), len(keys)),
            "time": _ragged(rows, shown, target["timestamp"], len(keys)),
        },
    )


def _example_age(split: str, time: np.ndarray) -> np.ndarray:
    """Seconds between a training query and the newest one, float32; 0 in what is only measured, as in serving."""
    age = time.max(initial=0) - time if split == "rank_train" else np.zeros(len(time))
    return age.astype(np.float32)


def weight_source(data: EncodedData) -> str:
    """What a positive weighs: "watch_time", "rating" (a proxy for it) or "none"."""
    train = data.rows("train")
    for name in ("watch_time", "rating"):
        if np.isfinite(train[name][train["positive"]]).any():
            return name
    return "none"


def has_impressions(data: EncodedData) -> bool:
    """Whether the log says what was shown and not watched."""
    return not data.rows("train")["watched"].all()


def positive_weight(data: EncodedData, rows: Rows) -> np.ndarray:
    """float32, one a row: the weight of a positive; where the row has no value, the mean of those of `train`."""
    source = weight_source(data)
    if source == "none":
        return np.ones(len(rows["item"]), np.float32)
    train = data.rows("train")
    known = train[source][train["positive"] & np.isfinite(train[source])]
    return np.where(np.isnan(rows[source]), known.mean(), rows[source]).astype(np.float32)


def known_weight(data: EncodedData, rows: Rows) -> np.ndarray:
    """float32, one a row: its watch time or rating (`weight_source`), -1 where there is none."""
    source = weight_source(data)
    values = np.full(len(rows["item"]), np.nan, np.float32) if source == "none" else rows[source]
    return np.where(np.isfinite(values), values, -1).astype(np.float32)


def _ragged(row: np.ndarray, keep: np.ndarray, values: np.ndarray, count: int) -> Ragged:
    lengths = np.bincount(row[keep], minlength=count)
    return Ragged(np.concatenate([[0], np.cumsum(lengths)]), values[keep])
