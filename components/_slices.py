"""Metrics of parts of the users and of the targets: who is served well, and with what."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shortlist.components._queries import EncodedData, Queries
from shortlist.components.metrics import FIRST_ID, Found, bootstrap_means

MOST = 20
"""Values of a column that become a slice each: the most frequent ones."""
THIRDS = ("low", "mid", "high")
SCHEMA = pa.schema(
    {
        "slice": pa.string(),
        "part": pa.string(),
        "system": pa.string(),
        "metric": pa.string(),
        "value": pa.float64(),
        "low": pa.float64(),
        "high": pa.float64(),
        "users": pa.int64(),
    }
)

Slices = Iterator[tuple[str, str, np.ndarray]]


def thirds(values: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """0, 1 or 2: the third of the rows, or of their weight, that each lies in by its value; equal values together.

    A row lies where the middle of all rows with its value lies, so that a third may be empty where many are equal.
    """
    weight = np.ones(len(values)) if weight is None else weight
    _, level = np.unique(values, return_inverse=True)
    held = np.bincount(level, weight)
    middle = np.cumsum(held) - held / 2
    return np.minimum(3 * middle / max(held.sum(), 1e-300), 2).astype(np.int64)[level]


def user_slices(data: EncodedData, queries: Queries, cold: int) -> Slices:
    """Of the queries: name, part and bool `[Q]`.

    `activity`: thirds of the users by the length of their history, low, mid and high. `cold_user`: none, short (fewer
    than `cold`) or warm by the same length. `user.<column>`: the most frequent values of each column of the users.
    """
    length = np.diff(queries.history.offsets)
    place = thirds(length)
    yield from (("activity", part, place == third) for third, part in enumerate(THIRDS))
    yield "cold_user", "none", length == 0
    yield "cold_user", "short", (length > 0) & (length < cold)
    yield "cold_user", "warm", length >= cold
    table = pq.read_table(data.artifact / "users.parquet")
    for name in [c for c in table.column_names if c not in ("id", "user")]:
        for part, has in _categories(_named(data, data.state["request"].get(name, {}).get("file"), table[name])):
            yield f"user.{name.removeprefix('user_')}", part, has[queries.user_key]


def target_slices(data: EncodedData, queries: Queries, counts: np.ndarray, cold: int) -> Slices:
    """Of the targets: name, part and bool `[N]`.

    `item_popularity`: head, mid and tail, each a third of all training watches, of the items of the catalogue.
    `cold_item`: new (not in the catalogue), few (fewer than `cold` training watches) or warm. `genre`, `item.decade`
    and `item.<column>`: the most frequent values. `context_<dimension>`: those of the target rows.
    """
    items = queries.targets.values
    known = items >= FIRST_ID
    place = np.append(np.zeros(FIRST_ID, np.int64), thirds(counts[FIRST_ID:], counts[FIRST_ID:]))[items]
    parts = ("tail", "mid", "head")
    yield from (("item_popularity", parts[third], known & (place == third)) for third in (2, 1, 0))
    yield "cold_item", "new", ~known
    yield "cold_item", "few", known & (counts[items] < cold)
    yield "cold_item", "warm", known & (counts[items] >= cold)
    genres = data.items["genres"]
    yield from (("genre", name, genres[items, g] > 0) for g, name in enumerate(data.state["genres"]))
    decade = data.items["year"][items] // 10 * 10
    yield from (("item.decade", f"{d}s", decade == d) for d in np.unique(decade[decade > 0]))
    table = pq.read_table(data.artifact / "items.parquet")
    for name in [c for c in table.column_names if c not in ("id", "title", "year", "added", "genres", "listed")]:
        shown = name.removeprefix("category_")
        parts_of = _categories(_named(data, name if name.startswith("category_") else None, table[name]))
        yield from ((f"item.{shown}", part, known & has[items]) for part, has in parts_of)
    rows = data.rows(queries.split)
    for name in [c for c in rows if c.startswith("context_")]:
        values = pa.chunked_array([rows[name][rows["positive"]]])
        named = _named(data, data.state["request"][name]["file"], values)
        yield from ((name, part, has) for part, has in _categories(named))


def slice_table(
    slices_of_users: Slices,
    slices_of_targets: Slices,
    found: Mapping[str, Found],
    cutoffs: Sequence[int],
    samples: int,
    seed: int,
) -> pa.Table:
    """Every ranking metric of every system in every slice, with its interval over the slice's users.

    In a slice of targets a user counts who has one of them, and the others are as good as not there: neither relevant
    nor removed from the list. A slice without a user is absent.

    Args:
      slices_of_users: see `user_slices`.
      slices_of_targets: see `target_slices`.
      found: by system, of the same queries.
      cutoffs: the k of every metric.
      samples: of the bootstrap.
      seed: of the bootstrap.

    Returns:
      Rows of `SCHEMA`.
    """
    whole = {name: own.metrics(cutoffs) for name, own in found.items()}
    tables = [SCHEMA.empty_table()]

    def add(name: str, part: str, values: Mapping[str, Mapping[str, np.ndarray]], keep: np.ndarray | slice) -> None:
        columns = [(system, metric) for system, own in values.items() for metric in own]
        table = np.stack([values[system][metric][keep] for system, metric in columns], axis=1)  # [Q, M]
        table = table[~np.isnan(table).all(axis=1)]
        if not len(table):
            return
        mean, low, high = bootstrap_means(table, samples, seed)
        systems, metrics = zip(*columns, strict=True)
        users = (~np.isnan(table)).sum(axis=0)
        ends = [pa.array([text] * len(columns), pa.string()) for text in (name, part)]
        tables.append(pa.table([*ends, systems, metrics, mean, low, high, users], schema=SCHEMA))

    for name, part, keep in slices_of_users:
        add(name, part, whole, keep)
    for name, part, keep in slices_of_targets:
        if keep.any():
            add(name, part, {system: own.metrics(cutoffs, keep) for system, own in found.items()}, slice(None))
    return pa.concat_tables(tables)


def _named(data: EncodedData, file: str | None, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of an encoded table, a category by the values of its vocabulary `file`."""
    return column if file is None else pa.chunked_array([data.category(file, column.to_numpy())])


def _categories(column: pa.ChunkedArray) -> Iterator[tuple[str, np.ndarray]]:
    """The most frequent values of a column of texts, truths, whole numbers or lists of them: name and bool `[rows]`."""
    column = column.combine_chunks()
    length = len(column)
    row = np.arange(length)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        row = np.repeat(row, pc.fill_null(pc.list_value_length(column), 0).to_numpy())
        column = column.flatten()
    types = (pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean, pa.types.is_integer)
    if not any(is_one(column.type) for is_one in types):
        return
    text = column.cast(pa.string())
    counted = sorted(text.drop_null().value_counts().to_pylist(), key=lambda c: (-c["counts"], c["values"]))[:MOST]
    for value in counted:
        has = np.zeros(length, bool)
        has[row[pc.fill_null(pc.equal(text, value["values"]), False).to_numpy(zero_copy_only=False)]] = True
        yield value["values"], has
