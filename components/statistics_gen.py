"""StatisticsGen: what is in each column of each table, and the shape of the interaction matrix."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shortlist.components.artifacts import Examples, Statistics
from shortlist.components.pipeline import Component

TABLES = ("interactions", "items", "users")
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
DOMAIN = 100
"""Text columns with at most so many values are listed in full."""
_FREQUENT = 20


class StatisticsGen(Component):
    """Describes every column, and the interactions as a matrix of users and items.

    For numbers: mean, population standard deviation, minimum, maximum and linear quantiles of the finite values. For
    text and lists of text: the most frequent values with their counts, all of them when they are at most 100. For the
    matrix: density = distinct (user, item) pairs / (users · items), and the share of rows with a timestamp that
    another row of the same user has as well.

    Example:
      >>> pipeline.add(StatisticsGen(), examples)
    """

    output = Statistics

    def run(self, out: Path, examples: Examples) -> None:
        tables = {table: _table(examples / f"{table}.parquet") for table in TABLES}
        columns = ["user", "item", "timestamp"]
        matrix = _matrix(pq.read_table(examples / "interactions.parquet", columns=columns))
        matrix["catalogue"] = tables["items"]["rows"]
        (out / "statistics.json").write_text(
            json.dumps({"tables": tables, "matrix": matrix}, indent=1, ensure_ascii=False, allow_nan=False)
        )


def _table(path: Path) -> dict[str, Any]:
    schema = pq.read_schema(path)
    columns = {name: _column(pq.read_table(path, columns=[name])[name]) for name in schema.names}
    return {"rows": pq.read_metadata(path).num_rows, "columns": columns}


def _column(values: pa.ChunkedArray) -> dict[str, Any]:
    kind = values.type
    about: dict[str, Any] = {"type": str(kind), "nulls": values.null_count}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = pc.fill_null(pc.list_value_length(values), 0)
        values = pc.list_flatten(values)
        about |= {"empty": pc.sum(pc.equal(lengths, 0)).as_py() or 0, "values": len(values)}
        kind = values.type
    values = values.drop_null()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind):
        about |= _most_frequent(values)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        about |= _numbers(values.cast(pa.float64(), safe=False), kind)
        about |= _most_frequent(values) if not pa.types.is_decimal(kind) else {}
    elif pa.types.is_temporal(kind):
        ends = pc.min_max(values).as_py()
        about |= {"minimum": _text(ends["min"]), "maximum": _text(ends["max"])}
    return about


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _numbers(values: pa.ChunkedArray, kind: pa.DataType) -> dict[str, Any]:
    finite = values.filter(pc.is_finite(values))
    ends = pc.min_max(finite).as_py()
    whole = pa.types.is_integer(kind)
    cut = pc.quantile(finite, list(QUANTILES)).to_pylist()
    return {
        "not_finite": len(values) - len(finite),
        "minimum": int(ends["min"]) if whole and len(finite) else ends["min"],
        "maximum": int(ends["max"]) if whole and len(finite) else ends["max"],
        "mean": pc.mean(finite).as_py(),
        "standard_deviation": pc.stddev(finite, ddof=0).as_py(),
        "quantiles": {str(q): value for q, value in zip(QUANTILES, cut, strict=True)} if len(finite) else {},
    }


def _most_frequent(values: pa.ChunkedArray) -> dict[str, Any]:
    if pa.types.is_floating(values.type):
        values = values.filter(pc.is_finite(values))
    counted = pc.value_counts(values)
    table = pa.table({"value": counted.field("values"), "count": counted.field("counts")})
    listed = len(table) if len(table) <= DOMAIN and not pa.types.is_floating(values.type) else _FREQUENT
    frequent = table.sort_by([("count", "descending"), ("value", "ascending")]).slice(0, listed)
    pairs = [list(pair) for pair in zip(frequent["value"].to_pylist(), frequent["count"].to_pylist(), strict=True)]
    return {"distinct": len(table), "most_frequent": pairs}


def _matrix(table: pa.Table) -> dict[str, Any]:
    rows = len(table)
    every = pc.CountOptions(mode="all")
    users, items, pairs = (
        table.group_by(list(keys)).aggregate([("user", "count", every)])["user_count"].to_numpy()
        for keys in (("user",), ("item",), ("user", "item"))
    )
    timed = table.filter(pc.is_valid(table["timestamp"])).group_by(["user", "timestamp"])
    sharing = timed.aggregate([("user", "count", every)])["user_count"].to_numpy()
    ends = pc.min_max(table["timestamp"]).as_py()
    return {
        "rows": rows,
        "users": len(users),
        "items": len(items),
        "density": len(pairs) / (len(users) * len(items)),
        "rows_per_user": _spread(users),
        "rows_per_item": _spread(items),
        "first_timestamp": ends["min"],
        "last_timestamp": ends["max"],
        "tied": float(sharing[sharing > 1].sum() / sharing.sum()) if len(sharing) else None,
    }


def _spread(counts: Sequence[int] | np.ndarray) -> dict[str, Any]:
    cut = np.quantile(counts, QUANTILES)
    return {
        "minimum": int(np.min(counts)),
        "maximum": int(np.max(counts)),
        "mean": float(np.mean(counts)),
        "quantiles": {str(q): float(value) for q, value in zip(QUANTILES, cut, strict=True)},
    }
