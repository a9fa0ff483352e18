"""Where interactions come from: `Tables`, what every reader returns, and the readers of CSV and Parquet files."""

import contextlib
import difflib
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from shortlist import ShortlistError
from shortlist.components._batches import batches
from shortlist.components._tables import INTERACTIONS, ITEMS, RANKING, USERS, conform, first, listed, require, show

KNOWN = {"source": INTERACTIONS, "interactions": INTERACTIONS, "items": ITEMS, "users": USERS, "path": RANKING}
REQUIRED = {"source": ("user", "item"), "interactions": ("user", "item"), "items": ("item",), "users": ("user",)}


@dataclass(frozen=True)
class Stored:
    """The interactions of a Parquet file, not read, and our names of its columns, see `renamed`."""

    path: Path
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Tables:
    """What a reader found, not yet checked. `about` has the keys name, licence, citation and homepage."""

    interactions: pa.Table | Stored
    items: pa.Table | None
    users: pa.Table | None
    about: Mapping[str, str]

    def all_interactions(self) -> pa.Table:
        """In memory."""
        if isinstance(self.interactions, pa.Table):
            return self.interactions
        path, columns = self.interactions.path, self.interactions.columns
        return renamed(pa.concat_tables(readable(batches(path), path, "source")), columns)


@contextlib.contextmanager
def opened(path: Path, setting: str) -> Iterator[BinaryIO]:
    """Opens a file that the user named.

    Raises:
      ShortlistError: if it isn't there, is a folder, is empty or cannot be read.
    """
    try:
        if path.is_dir():
            raise ShortlistError(f"`{setting}` must be one file, not a folder. Received: {path}.")
        if path.stat().st_size == 0:
            raise ShortlistError(f"`{setting}` must not be empty. Received: {path}, a file of 0 bytes.")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise ShortlistError(
            f"`{setting}` must be a file that can be read. Received: {path}: {error.strerror}. Check the path."
        ) from None


def digest(path: Path, setting: str) -> str:
    """The sha256 of a file that the user named."""
    total = hashlib.sha256()
    with opened(path, setting) as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def read_files(kind: str, files: Mapping[str, Path], columns: Mapping[str, str]) -> Tables:
    """Reads interactions, and items and users beside them, from CSV or Parquet files.

    Args:
      kind: "csv" or "parquet", the form of the interactions; that of the others follows from their suffix.
      files: "source", the interactions, and if there are any "items" and "users".
      columns: our name of a column to its name in the files.

    Raises:
      ShortlistError: for a file that cannot be read, a name in `columns` that no table has, and a table without the
        ids that it must have or without rows.
    """
    raw = {
        setting: _raw(file, setting, columns, kind if setting == "source" else "") for setting, file in files.items()
    }
    _refuse_unused(columns, {files[setting].name: table.column_names for setting, table in raw.items()})
    tables = {setting: _named(table, columns, files[setting], setting) for setting, table in raw.items()}
    source = Stored(files["source"], columns) if kind == "parquet" else tables["source"]
    about = {"name": files["source"].name, "licence": "not stated", "citation": "not stated", "homepage": "not stated"}
    return Tables(source, tables.get("items"), tables.get("users"), about)


def read_table(path: Path, setting: str, columns: Mapping[str, str]) -> pa.Table:
    """One file of "interactions" or "items", CSV or, by its suffix, Parquet; see `read_files`.

    What `columns` has for columns that the file does not have means nothing.
    """
    return _named(_raw(path, setting, columns), columns, path, setting)


def _raw(path: Path, setting: str, columns: Mapping[str, str], form: str = "") -> pa.Table:
    with opened(path, setting):
        return _READ[form or _form(path)](path, setting, columns)


def _named(raw: pa.Table, columns: Mapping[str, str], path: Path, setting: str) -> pa.Table:
    """With our names; refused without the ids that the table must have, or without rows."""
    table = renamed(raw, columns)
    require(table, REQUIRED[setting], raw.column_names, path.name)
    if len(table) == 0:
        raise ShortlistError(f"`{setting}` must hold at least one row. Received: {path}, a table without rows.")
    return table


def read_ranking(path: Path) -> pa.Table:
    """What a file of items and scores holds: item, user (null in a row of everybody) and score, float32.

    Raises:
      ShortlistError: for a file that cannot be read, has no such columns, or a row without an item or a score.
    """
    with opened(path, "path"):
        table = _READ[_form(path)](path, "path", {})
    for name in ("item", "score"):
        if name not in table.column_names:
            have = listed(table.column_names)
            raise ShortlistError(f"`{name}` must be a column of {path.name}. Received the columns: {have}. Rename one.")
    ranking = conform(table, RANKING, path.name).select(list(RANKING))
    missing = first(ranking["score"].is_null())
    if missing >= 0 or not len(ranking):
        received = f"none in data row {missing + 1}" if len(ranking) else "a table without rows"
        raise ShortlistError(f"`score` of {path.name} must be a number in every row. Received: {received}.")
    return ranking


def _form(path: Path) -> str:
    return "parquet" if path.suffix in (".parquet", ".pq") else "csv"


def _read_csv(path: Path, setting: str, columns: Mapping[str, str]) -> pa.Table:
    parse = pa.csv.ParseOptions(newlines_in_values=True)
    try:
        with pa.csv.open_csv(path, parse_options=parse) as reader:
            names = reader.schema.names
        meant = [*((n, n) for n in names), *columns.items()]
        known = [theirs for ours, theirs in meant if ours in KNOWN[setting] or ours.startswith("context_")]
        convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(known, pa.string()))
        table = pa.csv.read_csv(path, parse_options=parse, convert_options=convert)
    except (pa.ArrowInvalid, UnicodeDecodeError, OSError) as error:
        raise _unreadable(path, setting, "a CSV file in UTF-8", error) from None
    for field in table.schema:
        if pa.types.is_binary(field.type):
            raise _unreadable(path, setting, "a CSV file in UTF-8", f"other bytes in the column {field.name}")
    return _unique_names(table, path, setting)


def _read_parquet(path: Path, setting: str, columns: Mapping[str, str]) -> pa.Table:
    """The table, of the interactions its first rows: see `Stored`."""
    with _whole_parquet(path, setting), pq.ParquetFile(path) as file:
        table = next(batches(path)) if setting == "source" else file.read()
        return _unique_names(table.replace_schema_metadata(None), path, setting)


def readable(tables: Iterable[pa.Table], path: Path, setting: str) -> Iterator[pa.Table]:
    """The tables of a Parquet file that the user named, whose pages are first looked at here."""
    with _whole_parquet(path, setting):
        iterator = iter(tables)
    while True:
        with _whole_parquet(path, setting):
            table = next(iterator, None)
        if table is None:
            return
        yield table.replace_schema_metadata(None)


@contextlib.contextmanager
def _whole_parquet(path: Path, setting: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise _unreadable(path, setting, "a whole Parquet file", error) from None


_READ = {"csv": _read_csv, "parquet": _read_parquet}


def _unreadable(path: Path, setting: str, rule: str, error: object) -> ShortlistError:
    reason = show(" ".join(str(error).split()), 160)
    return ShortlistError(f"`{setting}` must be {rule}. Received: {path}: {reason}. Convert it, or fetch it again.")


def _unique_names(table: pa.Table, path: Path, setting: str) -> pa.Table:
    names = table.column_names
    for name in names:
        if names.count(name) > 1:
            raise ShortlistError(f"`{setting}` must name each column once. Received: {listed([name])} twice in {path}.")
    return table


def _refuse_unused(columns: Mapping[str, str], names: Mapping[str, list[str]]) -> None:
    every = list(dict.fromkeys(name for found in names.values() for name in found))
    for ours, theirs in columns.items():
        if theirs not in every:
            near = difflib.get_close_matches(theirs, every, n=1)
            hint = f" Did you mean {listed(near)}?" if near else ""
            raise ShortlistError(
                f"`columns.{ours}` must be a column of {' or '.join(names)}. Received: {show(theirs)}; the columns are "
                f"{listed(every)}.{hint}"
            )


def renamed(table: pa.Table, columns: Mapping[str, str]) -> pa.Table:
    """With our names; a column that has one of them but is not the one meant is left out."""
    mapped = {ours: theirs for ours, theirs in columns.items() if theirs in table.column_names}
    kept = [n for n in table.column_names if n not in mapped and n not in mapped.values()]
    return pa.table({**{o: table[t] for o, t in mapped.items()}, **{n: table[n] for n in kept}})
