"""ExampleValidator: compares the tables with the schema, and with what no log of interactions can contain."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tensorflow_metadata.proto.v0 import schema_pb2

from shortlist import ShortlistError
from shortlist.components._batches import batches, rows_of
from shortlist.components._config import Config
from shortlist.components._engine import Rows, Shuffle
from shortlist.components._progress import console
from shortlist.components._tables import counted, show
from shortlist.components.artifacts import Anomalies, Examples, Schema
from shortlist.components.pipeline import Component
from shortlist.components.schema_gen import feature_type, read_schema
from shortlist.components.statistics_gen import TABLES, count_pairs

_DAY = 86_400
SHOWN = 3
"""Values that a message shows."""
KEYS = ("user", "item", "event")
"""Columns in which two rows of the interactions are alike that differ in time."""


class ValidatorConfig(Config):
    """What happens when something is wrong.

    Args:
      fail: stop at errors; if false, they are only listed.
    """

    fail: bool = True


class ExampleValidator(Component):
    """Lists what is wrong with the examples.

    Errors: a column of the schema that is missing, of another type or null too often (`presence`); values outside a
    domain (text: more often than 1 − `min_domain_mass`, by default at all); timestamps before 1970 or after today
    (UTC). Warnings: columns that the schema doesn't know, the same user, item and event at several times, duplicates
    dropped by ExampleGen, items without a title.

    Raises:
      ShortlistError: at the first error, with the number of the others; nothing is written then.

    Example:
      >>> pipeline.add(ExampleValidator(ValidatorConfig(fail=False)), examples, schema)
    """

    output = Anomalies
    config: ValidatorConfig

    def __init__(self, config: ValidatorConfig | None = None, name: str = ""):
        super().__init__(config or ValidatorConfig(), name)

    def run(self, out: Path, examples: Examples, schema: Schema) -> None:
        size = self.engine.config.batch
        found = [a for t in TABLES for a in _against(read_schema(schema / f"{t}.pbtxt", t), examples, t, size)]
        (pairs,) = self.engine.run(out, Shuffle(Rows(examples / "interactions.parquet", KEYS), KEYS, count_pairs))
        found += [*_times(examples, size), *_repeated(examples, sum(pairs)), *_untitled(examples)]
        errors = [anomaly for anomaly in found if anomaly["severity"] == "error"]
        if errors and self.config.fail:
            first, others = errors[0], len(errors) - 1
            more = f" {counted(others, 'other error')} found." if others else ""
            raise ShortlistError(
                f"`{first['column']}` of {first['table']} {first['message']}{more} Correct the data or the schema, or "
                "list the errors without stopping: --set validator.fail=false."
            )
        for anomaly in found:
            message = f"          {anomaly['severity']}: {anomaly['table']}.{anomaly['column']} {anomaly['message']}"
            console.print(message, style="dim", highlight=False, markup=False)
        (out / "anomalies.json").write_text(json.dumps(found, indent=2, ensure_ascii=False))


def _anomaly(table: str, column: str, severity: str, rows: int, message: str) -> dict[str, Any]:
    return {"table": table, "column": column, "severity": severity, "rows": rows, "message": message}


def _against(schema: schema_pb2.Schema, examples: Examples, table: str, size: int) -> list[dict[str, Any]]:
    path = examples / f"{table}.parquet"
    columns, rows = pq.read_schema(path), pq.read_metadata(path).num_rows
    shared = {domain.name: list(domain.value) for domain in schema.string_domain}
    found: list[dict[str, Any] | _Column] = []
    checks: dict[str, _Column] = {}
    for feature in schema.feature:
        name = feature.name
        if name not in columns.names:
            severity = "error" if feature.presence.min_count or feature.presence.min_fraction else "warning"
            message = "must be there, as the schema has it. Received: a table without it."
            found.append(_anomaly(table, name, severity, rows, message))
            continue
        kind = columns.field(name).type
        if feature_type(kind) != feature.type:
            expected = schema_pb2.FeatureType.Name(feature.type)
            found.append(_anomaly(table, name, "error", rows, f"must be of type {expected}. Received: {kind}."))
            continue
        checks[name] = _Column(feature, kind, shared)
        found.append(checks[name])
    for batch in batches(path, list(checks), size) if checks else ():
        for name, check in checks.items():
            check.add(batch[name])
    known = {feature.name for feature in schema.feature}
    new = [_anomaly(table, n, "warning", rows, "is not in the schema.") for n in columns.names if n not in known]
    return [a for one in found for a in (one.found(table) if isinstance(one, _Column) else [one])] + new


def _beyond(compare: Callable[..., Any], bound: pa.Scalar, values: pa.ChunkedArray) -> pa.ChunkedArray:
    return compare(values.cast(bound.type, safe=False), bound)


@dataclass
class _Rule:
    """What the values of a column must not be; how many are, and the first of them."""

    breaks: Callable[[pa.ChunkedArray], pa.ChunkedArray]
    count: int = 0
    shown: pa.Array | None = None

    def add(self, values: pa.ChunkedArray, different: bool = False) -> None:
        outside = values.filter(self.breaks(values))
        self.count += len(outside)
        if len(outside) and (self.shown is None or len(self.shown) <= SHOWN):
            more = [] if self.shown is None else [self.shown]
            joined = pa.chunked_array([*more, *(outside.chunks if different else outside.slice(0, SHOWN + 1).chunks)])
            self.shown = (pc.unique(joined) if different else joined.combine_chunks()).slice(0, SHOWN + 1)

    @property
    def some(self) -> str:
        """The first of them, as a message shows them."""
        assert self.shown is not None
        shown = ", ".join(show(value) for value in self.shown.slice(0, SHOWN).to_pylist())
        return f"{shown}, …" if len(self.shown) > SHOWN else shown


class _Column:
    """A column of a table against what the schema says of its values, batch after batch."""

    def __init__(self, feature: schema_pb2.Feature, kind: pa.DataType, shared: dict[str, list[str]]):
        self.feature, self.rows, self.nulls, self.values = feature, 0, 0, 0
        self.lists, inner = pa.types.is_list(kind), kind.value_type if pa.types.is_list(kind) else kind
        self.domain: _Rule | None = None
        self.limits: list[tuple[str, _Rule]] = []
        limits = feature.WhichOneof("domain_info")
        if limits in ("string_domain", "domain"):
            allowed = list(feature.string_domain.value) if limits == "string_domain" else shared[feature.domain]
            known = pa.array(allowed, inner)
            self.domain = _Rule(lambda values: pc.invert(pc.is_in(values, known)))
        elif limits in ("float_domain", "int_domain") and not pa.types.is_temporal(inner):
            domain, exact = getattr(feature, limits), pa.float32() if limits == "float_domain" else pa.int64()
            for side, word, beyond in (("min", "at least", pc.less), ("max", "at most", pc.greater)):
                if domain.HasField(side):
                    bound = pa.scalar(getattr(domain, side), exact)
                    rule = _Rule(partial(_beyond, beyond, bound))
                    self.limits.append((f"{word} {getattr(domain, side):g}", rule))

    def add(self, column: pa.ChunkedArray) -> None:
        self.rows += len(column)
        self.nulls += column.null_count
        flat = (pc.list_flatten(column) if self.lists else column).drop_null()
        self.values += len(flat)
        if self.domain:
            self.domain.add(flat, different=True)
        for _, rule in self.limits:
            rule.add(flat)

    def found(self, table: str) -> list[dict[str, Any]]:
        """What is wrong with it."""
        found, name, needed = [], self.feature.name, self.feature.presence
        present = self.rows - self.nulls
        if present < needed.min_fraction * self.rows or present < needed.min_count:
            least = max(needed.min_count, math.ceil(needed.min_fraction * self.rows))
            without = counted(self.nulls, "row")
            message = f"must be there in {least:,} of {counted(self.rows, 'row')}. Received: {without} without it."
            found.append(_anomaly(table, name, "error", self.nulls, message))
        if self.domain and self.domain.count:
            outside = self.domain.count
            tolerated = outside <= (1 - self.feature.distribution_constraints.min_domain_mass) * self.values
            shown = f"{self.domain.some} in {counted(outside, 'place')}"
            message = f"has values that the schema doesn't know. Received: {shown}."
            found.append(_anomaly(table, name, "warning" if tolerated else "error", outside, message))
        for limit, rule in self.limits:
            if rule.count:
                message = f"must be {limit}. Received: {rule.some} in {counted(rule.count, 'row')}."
                found.append(_anomaly(table, name, "error", rule.count, message))
        return found


def _times(examples: Examples, size: int) -> list[dict[str, Any]]:
    end = (int(time.time()) // _DAY + 1) * _DAY
    rules = {
        "before 1970": _Rule(lambda stamps: pc.less(stamps, 0)),
        "after today (UTC)": _Rule(lambda stamps: pc.greater_equal(stamps, end)),
    }
    for batch in batches(examples / "interactions.parquet", ["timestamp"], size):
        for rule in rules.values():
            rule.add(batch["timestamp"].drop_null())
    found = []
    for name, rule in rules.items():
        if rule.shown is not None:
            first = rule.shown[0].as_py()
            message = f"must not lie {name}. Received: {first}, the first of {counted(rule.count, 'row')}."
            found.append(_anomaly("interactions", "timestamp", "error", rule.count, message))
    return found


def _repeated(examples: Examples, different: int) -> list[dict[str, Any]]:
    again = rows_of(examples / "interactions.parquet") - different
    dropped = examples.read_json("source.json")["duplicates_dropped"]
    found = []
    if again:
        message = (
            f"repeats a user and an item with the same event at another time in {counted(again, 'row')}, all kept."
        )
        found.append(_anomaly("interactions", "item", "warning", again, message))
    if dropped:
        message = f"repeated an earlier row exactly in {counted(dropped, 'row')}, dropped when they were read."
        found.append(_anomaly("interactions", "item", "warning", dropped, message))
    return found


def _untitled(examples: Examples) -> list[dict[str, Any]]:
    titles = pq.read_table(examples / "items.parquet", columns=["title"])["title"]
    if not titles.null_count:
        return []
    message = f"is missing for {titles.null_count:,} of {len(titles):,} items."
    return [_anomaly("items", "title", "warning", titles.null_count, message)]
