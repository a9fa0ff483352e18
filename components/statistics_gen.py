"""StatisticsGen: what is in each column of each table, and the shape of the interaction matrix."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shortlist.components._analysis import Counts, Together
from shortlist.components._column_statistics import DOMAIN, SHARES, ColumnStatistics
from shortlist.components._engine import Analyse, Rows, Shuffle, Source
from shortlist.components.artifacts import Examples, Statistics
from shortlist.components.pipeline import Component

__all__ = ["DOMAIN", "TABLES", "StatisticsGen"]
TABLES = ("interactions", "items", "users")


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
        paths = {table: examples / f"{table}.parquet" for table in TABLES}
        jobs = [Analyse(describing(pq.read_schema(path)), [Rows(path)]) for path in paths.values()]
        found = self.engine.run(out, *jobs, *matrix_jobs(paths["interactions"]))
        rows = {table: pq.read_metadata(path).num_rows for table, path in paths.items()}
        tables = {name: {"rows": rows[name], "columns": about} for name, about in zip(TABLES, found, strict=False)}
        matrix = matrix_of(tables["interactions"], *found[len(TABLES) :])
        matrix["catalogue"] = rows["items"]
        (out / "statistics.json").write_text(
            json.dumps({"tables": tables, "matrix": matrix}, indent=1, ensure_ascii=False, allow_nan=False)
        )


def describing(schema: pa.Schema) -> Together:
    """The analyses of the columns of a table."""
    return Together({field.name: ColumnStatistics(field.name, field.type) for field in schema})


def matrix_jobs(interactions: Source) -> tuple[Analyse, Shuffle, Shuffle]:
    """What has to be known of the matrix beside its columns."""
    counts = Together({"user": Counts("user"), "item": Counts("item")})
    return (
        Analyse(counts, [Rows(interactions, ["user", "item"])]),
        Shuffle(Rows(interactions, ["user", "item"]), ("user", "item"), count_pairs),
        Shuffle(Rows(interactions, ["user", "timestamp"]), ("user", "timestamp"), count_sharing),
    )


def count_pairs(table: pa.Table) -> int:
    """How many different rows there are."""
    return table.group_by(table.column_names).aggregate([]).num_rows


def count_sharing(table: pa.Table) -> tuple[int, int]:
    """How many rows with a timestamp there are, and how many of them share it with another one of the user."""
    timed = table.filter(pc.is_valid(table["timestamp"])).group_by(["user", "timestamp"])
    rows = timed.aggregate([("user", "count", pc.CountOptions(mode="all"))])["user_count"].to_numpy()
    return int(rows.sum()), int(rows[rows > 1].sum())


def matrix_of(
    about: dict[str, Any], counts: dict[str, pa.Table], pairs: Sequence[int], sharing: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """The shape of the matrix, from the statistics of the interactions and the results of `matrix_jobs`."""
    users, items = (counts[name]["count"].to_numpy() for name in ("user", "item"))
    timed, shared = np.sum(sharing, axis=0)
    times = about["columns"]["timestamp"]
    return {
        "rows": about["rows"],
        "users": len(users),
        "items": len(items),
        "density": sum(pairs) / (len(users) * len(items)),
        "rows_per_user": _spread(users),
        "rows_per_item": _spread(items),
        "first_timestamp": times["minimum"],
        "last_timestamp": times["maximum"],
        "tied": float(shared / timed) if timed else None,
    }


def _spread(counts: np.ndarray) -> dict[str, Any]:
    cut = np.quantile(counts, SHARES)
    return {
        "minimum": int(np.min(counts)),
        "maximum": int(np.max(counts)),
        "mean": float(np.mean(counts)),
        "quantiles": {str(q): float(value) for q, value in zip(SHARES, cut, strict=True)},
    }
