"""Small artifacts, written by hand in the layouts of components/artifacts.py."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shortlist.components.artifacts import Encoded, Splits
from shortlist.components.transform import Transform, TransformConfig

Row = dict[str, Any]
INTERACTIONS = pa.schema(
    {
        "user": pa.string(),
        "item": pa.string(),
        "timestamp": pa.int64(),
        "event": pa.string(),
        "rating": pa.float32(),
        "watch_time": pa.float32(),
        "query": pa.string(),
    }
)
ITEMS = pa.schema({"item": pa.string(), "title": pa.string(), "year": pa.int16(), "genres": pa.list_(pa.string())})


def row(user: str, item: str, timestamp: int | None, **other: Any) -> Row:
    return {"user": user, "item": item, "timestamp": timestamp, "event": "watch", **other}


def write_splits(
    folder: Path,
    parts: dict[str, list[Row]],
    items: list[Row] = (),
    positive_threshold: float | None = None,
    item_columns: dict[str, pa.DataType] | None = None,
    user_columns: dict[str, dict[str, Any]] | None = None,
) -> Splits:
    """A `Splits`; parts that are not given are empty, items that are not given have no content.

    `item_columns` are the types of further columns of the items, `user_columns` the values of those of the users.
    Interactions have the columns `context_*` of their rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = {name: sorted(parts.get(name, []), key=lambda r: r["user"]) for name in Splits.NAMES}
    everything = [r for part in rows.values() for r in part]
    described = {r["item"] for r in items}
    contexts = sorted({name for r in everything for name in r if name.startswith("context_")})
    interactions = pa.schema([*INTERACTIONS, *(pa.field(name, pa.string()) for name in contexts)])
    rest = [{"item": i} for i in dict.fromkeys(r["item"] for r in everything) if i not in described]
    for name, part in rows.items():
        pq.write_table(pa.Table.from_pylist(part, interactions), folder / f"{name}.parquet")
    schema = pa.schema([*ITEMS, *(pa.field(*column) for column in (item_columns or {}).items())])
    pq.write_table(pa.Table.from_pylist([*items, *rest], schema), folder / "items.parquet")
    ids = list(dict.fromkeys(r["user"] for r in reversed(everything)))
    own = {}
    for name, values in (user_columns or {}).items():
        numbers = any(isinstance(value, int | float) for value in values.values())
        own[name] = pa.array(map(values.get, ids), pa.float64() if numbers else pa.string())
    pq.write_table(pa.table({"user": pa.array(ids, pa.string()), **own}), folder / "users.parquet")
    info = {"strategy": "per_user_time", "seed": 0, "positive_threshold": positive_threshold}
    (folder / "splits.json").write_text(json.dumps(info))
    (folder / "source.json").write_text("{}")
    return Splits(folder, "splits")


def encode(splits: Splits, **config: Any) -> Encoded:
    """What Transform makes of `splits`, beside it."""
    folder = splits.uri.with_name(f"{splits.uri.name}_encoded")
    folder.mkdir(exist_ok=True)
    Transform(TransformConfig(**config)).run(folder, splits)
    return Encoded(folder, "encoded")


def columns(encoded: Encoded, name: str) -> dict[str, np.ndarray]:
    """The columns of `<name>.parquet`."""
    table = pq.read_table(encoded / f"{name}.parquet")
    return {c: table[c].to_numpy() for c in table.column_names}


def example_lines(batch: dict[str, np.ndarray]) -> list[tuple]:
    """The examples as the oracle writes them; the padding is checked and cut off."""
    found = []
    for user, history, times, time, label in zip(*batch.values(), strict=True):
        length = int((history > 0).sum())
        assert not history[length:].any()
        assert not times[length:].any()
        found.append((user, tuple(history[:length]), tuple(times[:length]), time, label))
    return found
