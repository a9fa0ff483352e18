"""RefreshGen: the catalogue as it is today, and what users did since, behind the parts of an earlier run."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pydantic

from shortlist import ShortlistError
from shortlist.components._config import Config
from shortlist.components._sources import digest, read_table
from shortlist.components._tables import INTERACTIONS, ITEMS, completed, conform, drop_duplicates
from shortlist.components.artifacts import NEW, Encoded, Splits
from shortlist.components.pipeline import Component

FITTED = "fitted_items.parquet"


class RefreshConfig(Config):
    """What has changed since a run.

    Args:
      items: the whole catalogue of today, CSV or Parquet by its suffix: `item` and, where they have changed, title,
        year, added, genres and further columns. What it does not list is removed; a column that it does not have stays
        as the run knows it.
      interactions: what users did since, with the columns of the run's own interactions. Rows that the run, or the
        refresh before, has already are dropped, so a longer log will do.
      columns: as `DataConfig.columns`.
      most_removed: share of the run's items that may be missing from `items`. A file of new items alone is refused so.
    """

    items: Path
    interactions: Path | None = None
    columns: dict[str, str] = pydantic.Field(default_factory=dict)
    most_removed: float = pydantic.Field(0.5, ge=0, le=1)


class RefreshGen(Component):
    """Reads the files and checks them as `ExampleGen` does; the parts of the run are copied as they are.

    An item that the run's data didn't have, and whose `added` nobody says, came at the time of the newest known event.
    """

    output = Splits

    def __init__(self, config: RefreshConfig, name: str = ""):
        self.config: RefreshConfig = config
        super().__init__(config, name)

    def external(self) -> Any:
        files = {"items": self.config.items, "interactions": self.config.interactions}
        return {setting: digest(path.expanduser(), f"--{setting}") for setting, path in files.items() if path}

    def run(self, out: Path, splits: Splits, encoded: Encoded, earlier: Splits | None = None) -> None:
        """See `Splits` for what is written. `encoded` is what the run made of `splits`; `earlier`, of the refresh
        before, has further interactions.

        Raises:
          ShortlistError: for anything that `Examples` could not hold, and if too many items are removed.
        """
        parts = {name: pq.read_table(splits / f"{name}.parquet") for name in splits.names}
        new = self._interactions(parts, earlier)
        fitted = pq.read_table(splits / "items.parquet")
        times = [part["timestamp"].drop_null() for part in (*parts.values(), new)]
        newest = pc.max(pa.chunked_array([c for t in times for c in t.chunks], pa.int64())).as_py()
        known = pa.array((encoded / "items.txt").read_text("utf-8").split("\n")[:-1], pa.string())
        items, counts = self._items(fitted, known, newest)
        users = pq.read_table(splits / "users.parquet")
        everybody = completed(users, "user", new["user"], "the users")
        items_known = pa.concat_tables([items.select(["item"]).filter(items["listed"]), pa.table({"item": known})])
        unknown = pc.invert(pc.is_in(new["item"], value_set=items_known["item"].combine_chunks()))
        counts |= {
            "interactions": len(new),
            "users": len(pc.unique(new["user"])),
            "new_users": len(everybody) - len(users),
            "unknown_items": pc.sum(unknown).as_py() or 0,
        }
        for name in (*(f"{name}.parquet" for name in splits.names), "splits.json", "source.json"):
            shutil.copy(splits / name, out / name)
        for name, table in {NEW: new, "items": items, "users": everybody}.items():
            pq.write_table(table, out / f"{name}.parquet")
        shutil.copy(splits / "items.parquet", out / FITTED)
        (out / "refresh.json").write_text(json.dumps(counts, indent=2))

    def _items(self, fitted: pa.Table, known: pa.Array, newest: int | None) -> tuple[pa.Table, dict[str, int]]:
        """All items that there are or were, `listed` or not, and how many have changed."""
        path = self.config.items.expanduser()
        given = read_table(path, "items", self.config.columns)
        said = [name for name in given.column_names if name in fitted.column_names]
        listed = completed(conform(given, ITEMS, path.name), "item", fitted["item"].slice(0, 0), path.name)
        before = pc.index_in(listed["item"], value_set=fitted["item"].combine_chunks())  # null for what wasn't there
        columns: dict[str, Any] = {}
        for name in fitted.column_names:
            kind = fitted.schema.field(name).type
            if name in said:
                columns[name] = _as(listed[name], kind, name, path.name)
            else:
                columns[name] = fitted[name].take(before)
        removed = pc.invert(pc.is_in(known, value_set=listed["item"].combine_chunks()))
        gone = pc.sum(removed).as_py() or 0
        if gone > self.config.most_removed * len(known):
            raise ShortlistError(
                f"`--items` must be the whole catalogue, not only what is new: it lacks {gone:,} of the run's "
                f"{len(known):,} items, and they would never be returned again. If that is meant, give --most-removed "
                f"1. Received: {path}, with {len(listed):,} items."
            )
        same = pa.table(columns)
        was = fitted.take(before.fill_null(0))
        differs = np.zeros(len(same), bool)
        for name in said:
            differs |= np.array([a != b for a, b in zip(same[name].to_pylist(), was[name].to_pylist(), strict=True)])
        old = pc.is_in(listed["item"], value_set=known).to_numpy()
        if newest is not None and "added" in columns:
            absent = pc.and_(before.is_null(), columns["added"].is_null())
            columns["added"] = pc.if_else(absent, pa.scalar(newest, pa.int64()), columns["added"])
        rest = fitted.filter(pc.invert(pc.is_in(fitted["item"], value_set=listed["item"].combine_chunks())))
        there = [pa.array(np.full(len(listed), True)), pa.array(np.full(len(rest), False))]
        items = pa.concat_tables([pa.table(columns, schema=fitted.schema), rest])
        items = items.append_column("listed", pa.chunked_array(there))
        counts = {
            "items": len(listed),
            "added": int((~old).sum()),
            "removed": gone,
            "changed": int((old & differs).sum()),
        }
        return items.combine_chunks(), counts

    def _interactions(self, parts: dict[str, pa.Table], earlier: Splits | None) -> pa.Table:
        """What the run doesn't have, in the columns of its parts, by user and time."""
        like = parts["train"].schema
        tables = [] if earlier is None else [pq.read_table(earlier / f"{NEW}.parquet")]
        if self.config.interactions is not None:
            path = self.config.interactions.expanduser()
            read = conform(read_table(path, "interactions", self.config.columns), INTERACTIONS, path.name)
            columns = {}
            for field in like:
                there = field.name in read.column_names
                columns[field.name] = (
                    _as(read[field.name], field.type, field.name, path.name)
                    if there
                    else pa.nulls(len(read), field.type)
                )
            tables.append(pa.table(columns, schema=like))
        every = pa.concat_tables([table.select(like.names).cast(like) for table in (*parts.values(), *tables)])
        old = sum(map(len, parts.values()))
        every = every.append_column("_new", pa.array(np.arange(len(every)) >= old))
        kept = drop_duplicates(every)[0]
        new = kept.filter(kept["_new"]).drop(["_new"])
        return new.sort_by([("user", "ascending"), ("timestamp", "ascending")]).combine_chunks()


def _as(values: pa.ChunkedArray, kind: pa.DataType, column: str, where: str) -> pa.ChunkedArray:
    """The column in the type that the run has it in.

    Raises:
      ShortlistError: if it can't be.
    """
    try:
        return values.cast(kind)
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())[:160]
        raise ShortlistError(
            f"`{column}` of {where} must hold {kind}, as in the run: {reason}. Received: {values.type}."
        ) from None
