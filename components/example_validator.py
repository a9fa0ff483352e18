"""ExampleValidator: compares the tables with the schema, and with what no log of interactions can contain."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tensorflow_metadata.proto.v0 import schema_pb2

from shortlist import ShortlistError
from shortlist.components._config import Config
from shortlist.components._progress import console
from shortlist.components._tables import counted, show
from shortlist.components.artifacts import Anomalies, Examples, Schema
from shortlist.components.pipeline import Component
from shortlist.components.schema_gen import feature_type, read_schema
from shortlist.components.statistics_gen import TABLES

_DAY = 86_400


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
        found = [a for t in TABLES for a in _against(read_schema(schema / f"{t}.pbtxt", t), examples, t)]
        found += [*_times(examples), *_repeated(examples), *_untitled(examples)]
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


def _against(schema: schema_pb2.Schema, examples: Examples, table: str) -> list[dict[str, Any]]:
    path = examples / f"{table}.parquet"
    columns, rows = pq.read_schema(path), pq.read_metadata(path).num_rows
    shared = {domain.name: list(domain.value) for domain in schema.string_domain}
    found = []
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
        found += _values(feature, pq.read_table(path, columns=[name])[name], shared, table)
    known = {feature.name for feature in schema.feature}
    new = [name for name in columns.names if name not in known]
    return found + [_anomaly(table, name, "warning", rows, "is not in the schema.") for name in new]


def _values(
    feature: schema_pb2.Feature, values: pa.ChunkedArray, shared: dict[str, list[str]], table: str
) -> list[dict[str, Any]]:
    found = []
    nulls, rows = values.null_count, len(values)
    present, needed = rows - nulls, feature.presence
    if present < needed.min_fraction * rows or present < needed.min_count:
        least = max(needed.min_count, math.ceil(needed.min_fraction * rows))
        message = f"must be there in {least:,} of {counted(rows, 'row')}. Received: {counted(nulls, 'row')} without it."
        found.append(_anomaly(table, feature.name, "error", nulls, message))
    flat = (pc.list_flatten(values) if pa.types.is_list(values.type) else values).drop_null()
    limits = feature.WhichOneof("domain_info")
    if limits in ("string_domain", "domain"):
        allowed = list(feature.string_domain.value) if limits == "string_domain" else shared[feature.domain]
        outside = flat.filter(pc.invert(pc.is_in(flat, pa.array(allowed, flat.type))))
        if len(outside):
            constraints = feature.distribution_constraints
            tolerated = len(outside) <= (1 - constraints.min_domain_mass) * len(flat)
            shown = _some(pc.unique(outside))
            message = f"has values that the schema doesn't know. Received: {shown} in {counted(len(outside), 'place')}."
            found.append(_anomaly(table, feature.name, "warning" if tolerated else "error", len(outside), message))
    elif limits in ("float_domain", "int_domain") and not pa.types.is_temporal(flat.type):
        domain, exact = getattr(feature, limits), pa.float32() if limits == "float_domain" else pa.int64()
        numbers = flat.cast(exact, safe=False)
        for side, word, beyond in (("min", "at least", pc.less), ("max", "at most", pc.greater)):
            bound = getattr(domain, side)
            outside = flat.filter(beyond(numbers, pa.scalar(bound, exact))) if domain.HasField(side) else []
            if len(outside):
                message = f"must be {word} {bound:g}. Received: {_some(outside)} in {counted(len(outside), 'row')}."
                found.append(_anomaly(table, feature.name, "error", len(outside), message))
    return found


def _some(values: Any) -> str:
    shown = ", ".join(show(value) for value in values.slice(0, 3).to_pylist())
    return f"{shown}, …" if len(values) > 3 else shown


def _times(examples: Examples) -> list[dict[str, Any]]:
    stamps = pq.read_table(examples / "interactions.parquet", columns=["timestamp"])["timestamp"].drop_null()
    end = (int(time.time()) // _DAY + 1) * _DAY
    found = []
    for rule, outside in (("before 1970", pc.less(stamps, 0)), ("after today (UTC)", pc.greater_equal(stamps, end))):
        wrong = stamps.filter(outside)
        if len(wrong):
            message = f"must not lie {rule}. Received: {wrong[0].as_py()}, the first of {counted(len(wrong), 'row')}."
            found.append(_anomaly("interactions", "timestamp", "error", len(wrong), message))
    return found


def _repeated(examples: Examples) -> list[dict[str, Any]]:
    keys = ["user", "item", "event"]
    table = pq.read_table(examples / "interactions.parquet", columns=keys)
    again = len(table) - len(table.group_by(keys).aggregate([]))
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
