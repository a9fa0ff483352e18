"""Strings to table rows: vocabularies, bucket boundaries and quantiles, fitted on the training part only."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pydantic

from shortlist import ShortlistError
from shortlist.components._categories import FIRST_ID, category, is_number, lookup, one_line, vocabulary, with_nan
from shortlist.components._config import Config
from shortlist.components._request_columns import RequestColumns
from shortlist.components.artifacts import NEW, Encoded, Splits
from shortlist.components.pipeline import Component

_CATEGORY, _NUMBER = "category_", "number_"


class TransformConfig(Config):
    """Settings of `Transform`.

    Args:
      fit_on: "train", or "all" to fit on every part (for a model that is to be served, never for one to be measured).
      min_count: items with fewer rows are out of vocabulary.
      year_buckets: number of buckets of the items' year, of equal share.
      quantiles: number of quantiles kept of a number that is to be normalized.
      categories: text columns of the items, and of the users where they have them too, that the ranker tells apart.
      numbers: columns of numbers of the items that it sees.
      user_categories: text columns of the users, which a request may say.
      user_numbers: columns of numbers of the users.
      time_contexts: contexts that the time decides: daypart (quarters of the day from midnight), weekday, weekend
        (Saturday and Sunday), season (of the northern half). They stand beside the data's own `context_*` columns.
      time_zone: where the users are, such as Europe/Vienna. MovieLens doesn't say, so UTC's evening may be a morning.
      query_words: the most frequent words searched for (the column `query`) that are told apart; 0 leaves them out.
      query_length: words of one search that are kept, the first ones.

    Of the default names of columns, those that the source has are taken; any other name must be there.
    """

    fit_on: Literal["train", "all"] = "train"
    min_count: int = pydantic.Field(1, ge=1)
    year_buckets: int = pydantic.Field(20, ge=1, le=1000)
    quantiles: int = pydantic.Field(101, ge=2, le=10_001)
    categories: tuple[str, ...] = ("language", "channel")
    numbers: tuple[str, ...] = ("length",)
    user_categories: tuple[str, ...] = ("gender", "occupation", "country", "place", "language")
    user_numbers: tuple[str, ...] = ("age",)
    time_contexts: tuple[Literal["daypart", "weekday", "weekend", "season"], ...] = ()
    time_zone: str = "UTC"
    query_words: int = pydantic.Field(20_000, ge=0)
    query_length: int = pydantic.Field(16, ge=1, le=1000)

    @pydantic.field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(
                f"`time_zone` must be a name of the IANA data base, such as Europe/Vienna. Received: {value!r}."
            ) from None
        return value

    def columns(self, items: pa.Schema) -> tuple[list[str], list[str]]:
        """The categories and the numbers that the items have.

        Raises:
          ShortlistError: if a declared column is not there, or of another type.
        """
        found: list[list[str]] = []
        for setting, fits, kind in (("categories", pa.types.is_string, "text"), ("numbers", is_number, "numbers")):
            names = getattr(self, setting)
            if names == type(self).model_fields[setting].default:
                names = tuple(name for name in names if name in items.names and fits(items.field(name).type))
            for name in names:
                if name not in items.names:
                    have = ", ".join(items.names)
                    raise ShortlistError(
                        f"`transform.{setting}` must name columns that the items have: {have}. Received: {name}."
                    )
                if not fits(items.field(name).type) or name in ("item", "title"):
                    raise ShortlistError(
                        f"`transform.{setting}` must name columns of {kind} that describe items. "
                        f"Received: {name}, {items.field(name).type}."
                    )
            found.append(list(dict.fromkeys(names)))
        return found[0], found[1]


class Transform(Component):
    """Maps every part of the splits to table rows, with a state fitted on `train` alone.

    Item and user vocabularies are ordered by count, ties by a hash of the id, so neither the order of a file nor the
    magnitude of an id means anything. Row 0 is padding, row 1 is out of vocabulary. The same maps are Keras layers in
    the served graph: `shortlist.models._transform`. After `RefreshGen` the state is fitted as before, on what it was
    fitted on; items and users that are new get rows behind the others, and every item is described as it is now.
    """

    output = Encoded

    def __init__(self, config: TransformConfig | None = None, name: str = ""):
        self.config: TransformConfig = config or TransformConfig()
        super().__init__(self.config, name)

    def run(self, out: Path, splits: Splits) -> None:
        """See `Encoded` for what is written.

        Raises:
          ShortlistError: if no item is left in the vocabulary.
        """
        parts = {name: pq.read_table(splits / f"{name}.parquet") for name in splits.names}
        info = splits.read_json("splits.json")
        fitted = pa.concat_tables(parts.values()) if self.config.fit_on == "all" else parts["train"]
        items, users = vocabulary(fitted["item"], self.config.min_count), vocabulary(fitted["user"], 1)
        refreshed = (splits / f"{NEW}.parquet").exists()
        if refreshed:
            parts[NEW] = pq.read_table(splits / f"{NEW}.parquet")
        if not len(items):
            raise ShortlistError(
                f"`transform.min_count` leaves no item: none of the {fitted.num_rows:,} training rows' items has that "
                f"many rows. Lower it. Received: min_count={self.config.min_count}."
            )
        catalogue = _take_by_id(pq.read_table(splits / f"{'fitted_' if refreshed else ''}items.parquet"), "item", items)
        genre_lists = catalogue["genres"].combine_chunks()
        genres = pa.array(sorted(set(genre_lists.flatten().to_pylist())), pa.string())
        categories, numbers = self.config.columns(catalogue.schema)
        values = {name: vocabulary(one_line(catalogue[name]).drop_null(), 1) for name in categories}
        values = {name: vocabulary for name, vocabulary in values.items() if len(vocabulary)}
        years = catalogue["year"].fill_null(0).to_numpy().astype(np.int16)
        known_years = years[years > 0]
        user_table = pq.read_table(splits / "users.parquet").sort_by("user")
        shared = {name: v for name, v in values.items() if name in user_table.column_names}
        request = RequestColumns(self.config, fitted, user_table, shared)
        searches = request.write(out, parts)
        listed: Any = np.ones(len(items), bool)
        if refreshed:
            today = pq.read_table(splits / "items.parquet")
            items = _behind(items, today["item"].filter(today["listed"]))
            users = _behind(users, parts[NEW]["user"])
            catalogue = _take_by_id(today, "item", items)
            listed, genre_lists = catalogue["listed"], _known(catalogue["genres"], genres)
            years = catalogue["year"].fill_null(0).to_numpy().astype(np.int16)

        for name, part in parts.items():
            encoded = pa.table(
                {
                    "user_key": lookup(part["user"], user_table["user"], 0),
                    "user": lookup(part["user"], users, FIRST_ID),
                    "item": lookup(part["item"], items, FIRST_ID),
                    "timestamp": part["timestamp"],
                    "rating": with_nan(part["rating"]),
                    "watch_time": with_nan(part["watch_time"]),
                    "positive": _positive(part, info["positive_threshold"]),
                    "watched": pc.equal(part["event"], "watch"),
                    **request.of_rows(part, searches),
                }
            )
            order = np.argsort(encoded["user_key"].to_numpy(), kind="stable")  # the splits' order within a user is kept
            pq.write_table(encoded.take(order), out / f"{name}.parquet")

        reserved = pa.nulls(FIRST_ID, pa.string()).fill_null("")
        rows = pa.table(
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
        pq.write_table(rows, out / "items.parquet")
        own = {"id": user_table["user"], "user": lookup(user_table["user"], users, FIRST_ID)}
        pq.write_table(pa.table({**own, **request.of_users(user_table)}), out / "users.parquet")
        named = {_CATEGORY + name: v for name, v in values.items()}
        for name, lines in {"items": items, "users": users, "genres": genres, **named}.items():
            (out / f"{name}.txt").write_text("".join(f"{value}\n" for value in lines.to_pylist()), "utf-8")
        times = fitted["timestamp"].drop_null().to_numpy()
        share = np.linspace(0, 1, self.config.quantiles)
        state = {
            "fitted_on": self.config.fit_on,
            "items": len(items),
            "users": len(users),
            "genres": genres.to_pylist(),
            "categories": list(values),
            "shared_categories": list(shared),
            "numbers": numbers,
            "request": request.state,
            "time_zone": self.config.time_zone,
            "positive_threshold": info["positive_threshold"],
            "time": {"min": int(times.min()), "max": int(times.max())} if len(times) else None,
            "time_quantiles": np.quantile(times, share).tolist() if len(times) else None,
            "year_boundaries": _boundaries(known_years, self.config.year_buckets),
        }
        (out / "state.json").write_text(json.dumps(state, indent=2))
        for name in ("splits.json", "source.json"):
            shutil.copy(splits / name, out / name)


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
