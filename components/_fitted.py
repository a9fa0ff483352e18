"""What `Transform` learns of the splits, and how it encodes a batch of rows by it: what all its engines share.

`analyses` says what has to be known of the interactions, in parts that merge (`shortlist.components._analysis`); `fit`
makes the state of it, the tables of items and users in memory; its `encoder` is a pure function of a batch of rows and
can be pickled; `write` writes all of an `Encoded` but the parts.
"""

import json
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shortlist import ShortlistError
from shortlist.components import _request_columns
from shortlist.components._analysis import Counts, Quantiles, Together, count
from shortlist.components._categories import FIRST_ID, ascending, category, lookup, one_line, vocabulary, with_nan
from shortlist.components._request_columns import WORDS, RequestColumns
from shortlist.components.artifacts import NEW, Splits

_CATEGORY, _NUMBER = "category_", "number_"

Analysed = Callable[[Together, Sequence[str]], Mapping[str, Any]]
"""Runs an analysis over the rows of some parts: its results by name."""


def part_names(splits: Splits) -> tuple[str, ...]:
    """All parts that there are to encode: after a refresh also what came since."""
    return (*splits.names, *([NEW] if (splits / f"{NEW}.parquet").exists() else []))


def analyses(config: Any, columns: Sequence[str]) -> Together:
    """What has to be known of the interactions to fit on, whose `columns` these are."""
    own = {"item": Counts("item"), "user": Counts("user"), "timestamp": Quantiles("timestamp")}
    return Together({**own, **_request_columns.analyses(config, columns)})


def fit(config: Any, splits: Splits, analysed: Analysed) -> "Fitted":
    """The state.

    Args:
      config: `TransformConfig`.
      splits: the parts, which are not read here but for their columns.
      analysed: looks at their rows.

    Raises:
      ShortlistError: if no item is left in the vocabulary, and for settings that the tables don't fit.
    """
    fitting = splits.names if config.fit_on == "all" else ("train",)
    analysis = analyses(config, pq.read_schema(splits / "train.parquet").names)
    found = analysed(analysis, fitting)
    texts = [found[WORDS]["value"]] if WORDS in found else []
    if texts and (others := [name for name in part_names(splits) if name not in fitting]):
        texts.append(analysed(Together({WORDS: Counts(WORDS)}), others)[WORDS]["value"])
    searches = ascending(pa.chunked_array([c for t in texts for c in t.chunks], pa.string()).unique())
    new = None
    if NEW in part_names(splits):
        new = vocabulary(analysed(Together({"user": Counts("user")}), [NEW])["user"])
    return Fitted(config, splits, found, searches, new)


@dataclass(frozen=True)
class Encoder:
    """Rows of interactions as rows of tables, see `Encoded`; a row's depend on nothing but the row and these.

    Attributes:
      users: all ids in ascending order: a `user_key` is a place here.
      user_rows: int32, of each its row in the vocabulary.
      items: the vocabulary.
      request: what a request says besides.
      positive_threshold: the lowest rating of a positive; None makes every watch one.
    """

    users: pa.Array
    user_rows: pa.Array
    items: pa.Array
    request: RequestColumns
    positive_threshold: float | None

    def __call__(self, batch: pa.Table) -> pa.Table:
        keys = self._keys(batch["user"])
        return pa.table(
            {
                "user_key": keys,
                "user": self.user_rows.take(keys),
                "item": lookup(batch["item"], self.items, FIRST_ID),
                "timestamp": batch["timestamp"],
                "rating": with_nan(batch["rating"]),
                "watch_time": with_nan(batch["watch_time"]),
                "positive": _positive(batch, self.positive_threshold),
                "watched": pc.equal(batch["event"], "watch"),
                **self.request.of_rows(batch),
            }
        )

    def _keys(self, ids: pa.ChunkedArray) -> pa.Array:
        """The places of users, looked for between the first and the last of them: in a sorted part those are few."""
        if not len(ids):
            return pa.array([], pa.int32())
        ends = pc.min_max(ids).as_py()
        low, high = (place(self.users, ends[end]) for end in ("min", "max"))
        return lookup(ids, self.users.slice(low, high + 1 - low), low)


def place(ascending: pa.Array, value: str) -> int:
    """How many of the ids, in ascending order, come before a value."""
    return bisect_left(range(len(ascending)), value, key=lambda i: ascending[i].as_py())


class Fitted:
    """A fitted `Transform`.

    Args:
      config: `TransformConfig`.
      splits: for the tables of items and users.
      found: the results of `analyses`.
      searches: every text that is searched for in any part.
      new_users: after a refresh, the users of what came since, else None.

    Attributes:
      encoder: encodes the parts.
    """

    def __init__(
        self,
        config: Any,
        splits: Splits,
        found: Mapping[str, Any],
        searches: pa.Array,
        new_users: pa.Array | None,
    ):
        refreshed = new_users is not None
        threshold = splits.read_json("splits.json")["positive_threshold"]
        items = vocabulary(found["item"], config.min_count, config.top)
        users = vocabulary(found["user"])
        if not len(items):
            rows = pc.sum(found["item"]["count"]).as_py() or 0
            raise ShortlistError(
                f"`transform.min_count` leaves no item: none of the {rows:,} training rows' items has that "
                f"many rows. Lower it. Received: min_count={config.min_count}."
            )
        catalogue = _take_by_id(pq.read_table(splits / f"{'fitted_' if refreshed else ''}items.parquet"), "item", items)
        genre_lists = catalogue["genres"].combine_chunks()
        genres = pa.array(sorted(set(genre_lists.flatten().to_pylist())), pa.string())
        categories, numbers = config.columns(catalogue.schema)
        values = {name: vocabulary(count(one_line(catalogue[name]))) for name in categories}
        values = {name: vocabulary for name, vocabulary in values.items() if len(vocabulary)}
        years = catalogue["year"].fill_null(0).to_numpy().astype(np.int16)
        known_years = years[years > 0]
        user_table = pq.read_table(splits / "users.parquet").sort_by("user").combine_chunks()
        shared = {name: v for name, v in values.items() if name in user_table.column_names}
        request = RequestColumns(config, found, user_table, shared, searches)
        listed: Any = np.ones(len(items), bool)
        if new_users is not None:
            today = pq.read_table(splits / "items.parquet")
            items = _behind(items, today["item"].filter(today["listed"]))
            users = _behind(users, new_users)
            catalogue = _take_by_id(today, "item", items)
            listed, genre_lists = catalogue["listed"], _known(catalogue["genres"], genres)
            years = catalogue["year"].fill_null(0).to_numpy().astype(np.int16)

        user_ids = user_table["user"].combine_chunks()
        user_rows = lookup(user_table["user"], users, FIRST_ID)
        self.encoder = Encoder(user_ids, user_rows, items, request, threshold)
        reserved = pa.nulls(FIRST_ID, pa.string()).fill_null("")
        self._items = pa.table(
            {
                "id": pa.concat_arrays([reserved, items]),
                "title": pa.concat_arrays([reserved, catalogue["title"].fill_null("").combine_chunks()]),
                "year": np.concatenate([np.zeros(FIRST_ID, np.int16), years]),
                "added": _reserved(_added(catalogue), 0),
                "genres": pa.concat_arrays(
                    [pa.array([[]] * FIRST_ID, pa.list_(pa.int32())), _lookup_lists(genre_lists, genres)]
                ),
                **{_CATEGORY + n: _reserved(category(one_line(catalogue[n]), v), 0) for n, v in values.items()},
                **{_NUMBER + n: _reserved(with_nan(catalogue[n]), np.nan) for n in numbers},
                "listed": _reserved(listed, False),
            }
        )
        self._users = pa.table({"id": user_ids, "user": user_rows, **request.of_users(user_table)})
        named = {_CATEGORY + name: v for name, v in values.items()}
        self._vocabularies = {"items": items, "users": users, "genres": genres, **named}
        times = found["timestamp"]
        share = np.linspace(0, 1, config.quantiles)
        self.state = {
            "fitted_on": config.fit_on,
            "items": len(items),
            "users": len(users),
            "genres": genres.to_pylist(),
            "categories": list(values),
            "shared_categories": list(shared),
            "numbers": numbers,
            "request": request.state,
            "time_zone": config.time_zone,
            "positive_threshold": threshold,
            "time": {"min": int(times.minimum), "max": int(times.maximum)} if times.count else None,
            "time_quantiles": times.quantiles(share) if times.count else None,
            "year_boundaries": _boundaries(known_years, config.year_buckets),
        }

    def write(self, out: Path) -> None:
        """Writes all of an `Encoded` but the parts, and what is copied from the splits."""
        pq.write_table(self._items, out / "items.parquet")
        pq.write_table(self._users, out / "users.parquet")
        for name, lines in self._vocabularies.items():
            (out / f"{name}.txt").write_text("".join(f"{value}\n" for value in lines.to_pylist()), "utf-8")
        self.encoder.request.write(out)
        (out / "state.json").write_text(json.dumps(self.state, indent=2))


def _added(catalogue: pa.Table) -> np.ndarray:
    """Seconds since 1970, 0 where the items don't say."""
    if "added" not in catalogue.column_names:
        return np.zeros(len(catalogue), np.int64)
    return catalogue["added"].fill_null(0).to_numpy()


def _lookup_lists(lists: pa.ListArray, values: pa.Array) -> pa.ListArray:
    lists = pc.fill_null(lists, pa.scalar([], lists.type))
    return pa.ListArray.from_arrays(lists.offsets, lookup(pa.chunked_array([lists.values]), values, FIRST_ID))


def _behind(known: pa.Array, ids: pa.ChunkedArray) -> pa.Array:
    """The known ids, and behind them the others in their order."""
    ids = pc.unique(ids)
    return pa.concat_arrays([known, ids.filter(pc.invert(pc.is_in(ids, value_set=known)))])


def _known(lists: pa.ChunkedArray, values: pa.Array) -> pa.ListArray:
    """Lists of values without those that are not among `values`."""
    lists = pc.fill_null(lists.combine_chunks(), pa.scalar([], lists.type))
    flat, of = pc.list_flatten(lists), pc.list_parent_indices(lists).to_numpy()
    there = pc.is_in(flat, value_set=values)
    counts = np.bincount(of[there.to_numpy(zero_copy_only=False)], minlength=len(lists))
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32()), flat.filter(there))


def _take_by_id(table: pa.Table, column: str, ids: pa.Array) -> pa.Table:
    return table.take(pc.index_in(ids, value_set=table[column].combine_chunks()))


def _reserved(values: Any, fill: float) -> np.ndarray:
    """The values, behind those of the reserved rows."""
    values = np.asarray(values)
    return np.concatenate([np.full(FIRST_ID, fill, values.dtype), values])


def _positive(part: pa.Table, threshold: float | None) -> pa.ChunkedArray:
    watched = pc.equal(part["event"], "watch")
    if threshold is None:
        return watched
    lowest = pa.scalar(threshold, pa.float32())  # as the ratings are: 0.7 as float32 lies below 0.7 as float64
    return pc.and_(watched, pc.greater_equal(part["rating"], lowest).fill_null(False))


def _boundaries(values: np.ndarray, buckets: int) -> list[float]:
    if not len(values):
        return []
    return np.unique(np.quantile(values, np.linspace(0, 1, buckets + 1)[1:-1])).tolist()
