"""Ratings with context in the layouts of CARSKit: a column a dimension, or a column of 0 and 1 a condition."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from shortlist import ShortlistError
from shortlist.components._sources import Tables, opened
from shortlist.components._tables import first, listed, numbers, require, show

MISSING = ("", "na", "n/a", "null", "none", "-1")
PREFIX = "context_"
OURS = {
    "user": ("user", "userid", "user_id"),
    "item": ("item", "itemid", "item_id"),
    "rating": ("rating",),
    "timestamp": ("timestamp",),
}


def read_carskit(path: Path, columns: Mapping[str, str], contexts: Sequence[str], unrated_zero: bool) -> Tables:
    """Reads ratings with context.

    The wide layout has a column a dimension, such as `userid,itemid,rating,Time,Location`; the binary one a column a
    condition, such as `Time:Weekend`, with 1 in at most one of a dimension's columns. NA, NULL, -1 and nothing are a
    missing condition, in any case of letters. Columns are parted by tab, semicolon or comma, whichever the first line
    has.

    Args:
      path: the file.
      columns: our name of a column to its name in the file, such as {"user": "visitor"}.
      contexts: the dimensions; without any, all columns that are not of the user, item, rating or time.
      unrated_zero: leave out rows rated 0.

    Raises:
      ShortlistError: for a file or column that cannot be read, and a value that its layout doesn't have.
    """
    table = _read(path)
    found = {ours: theirs for ours in OURS if (theirs := _column(table, ours, columns))}
    for ours, theirs in columns.items():
        if ours not in OURS:
            raise ShortlistError(
                f"`columns.{ours}` must be one of {', '.join(OURS)}; name dimensions by `contexts`. Received: {theirs}."
            )
    kept = {ours: table[theirs] for ours, theirs in found.items()}
    require(pa.table(kept), ("user", "item", "rating"), table.column_names, path.name)
    missing = pc.is_in(pc.utf8_lower(pc.utf8_trim_whitespace(kept["rating"])), pa.array(MISSING))
    rating = numbers(pc.if_else(missing, pa.scalar(None, pa.string()), kept["rating"]), "rating", path.name)
    if unrated_zero:
        rating = pc.if_else(pc.equal(rating, 0), pa.scalar(None, pa.float32()), rating)
    rated = pc.is_valid(rating)
    if not pc.any(rated).as_py():
        raise ShortlistError(f"`source` must hold at least one rating. Received: {path}, {len(table):,} rows.")
    rest = [name for name in table.column_names if name not in found.values()]
    binary = [name for name in rest if ":" in name]
    dimensions = list(dict.fromkeys(name.partition(":")[0] for name in binary)) or rest
    for name in contexts:
        if name not in dimensions:
            raise ShortlistError(
                f"`contexts` must name dimensions of {path.name}: {listed(dimensions)}. Received: {show(name)}."
            )
    taken = list(contexts) or dimensions
    read = {n: _from_binary(table, n, binary, path) if binary else _from_wide(table[n]) for n in taken}
    others = {name: table[name] for name in rest if name not in taken and name not in binary}
    interactions = pa.table({**kept, "rating": rating, **{PREFIX + n: v for n, v in read.items()}, **others})
    about = {"name": path.name, "licence": "not stated", "citation": "not stated", "homepage": "not stated"}
    return Tables(interactions.filter(rated), None, None, about)


def _read(path: Path) -> pa.Table:
    with opened(path, "source") as file:
        head = file.readline().decode("utf-8", "replace")
    delimiter = max("\t;,", key=head.count)  # the first of those that are as frequent
    try:
        options = pa.csv.ParseOptions(delimiter=delimiter)
        with pa.csv.open_csv(path, parse_options=options) as reader:
            names = reader.schema.names
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ShortlistError(f"`source` must name each column once. Received: {show(twice)} twice in {path}.")
        convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
        table = pa.csv.read_csv(path, parse_options=options, convert_options=convert)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        reason = show(" ".join(str(error).split()), 160)
        raise ShortlistError(
            f"`source` must be a table in UTF-8 with the same columns in every line. Received: {path}: {reason}."
        ) from None
    return table.rename_columns([name.strip() for name in names])


def _column(table: pa.Table, ours: str, columns: Mapping[str, str]) -> str | None:
    if ours in columns:
        if columns[ours] not in table.column_names:
            raise ShortlistError(
                f"`columns.{ours}` must be a column of the source. Received: {show(columns[ours])}; the columns are "
                f"{listed(table.column_names)}."
            )
        return columns[ours]
    return next((name for name in table.column_names if name.lower() in OURS[ours]), None)


def _from_wide(column: pa.ChunkedArray) -> pa.ChunkedArray:
    text = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.is_in(pc.utf8_lower(text), pa.array(MISSING)), pa.scalar(None, pa.string()), text)


def _from_binary(table: pa.Table, dimension: str, binary: Sequence[str], path: Path) -> pa.Array:
    own = [name for name in binary if name.partition(":")[0] == dimension]
    conditions = _from_wide(pa.chunked_array([pa.array([name.partition(":")[2] for name in own], pa.string())]))
    flags = []
    for name in own:
        column = pc.utf8_trim_whitespace(table[name])
        odd = first(pc.invert(pc.is_in(column, pa.array(["0", "1"]))))
        if odd >= 0:
            raise ShortlistError(
                f"`{name}` of {path.name} must be 0 or 1. Received: {show(column[odd].as_py())} in data row {odd + 1}."
            )
        flags.append(pc.equal(column, "1").to_numpy())
    on = np.stack(flags, axis=1)  # [N, conditions]
    if (on.sum(axis=1) > 1).any():
        row = int(np.argmax(on.sum(axis=1) > 1))
        raise ShortlistError(
            f"`{dimension}` of {path.name} must have one condition at most. Received: "
            f"{listed([own[c] for c in np.flatnonzero(on[row])])} in data row {row + 1}."
        )
    return conditions.combine_chunks().take(pa.array(on.argmax(axis=1), mask=~on.any(axis=1)))
