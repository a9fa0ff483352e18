"""SchemaGen: what each table should look like, as a `tensorflow_metadata` Schema that a person can curate."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from shortlist import ShortlistError
from shortlist.components._config import Config
from shortlist.components._sources import digest
from shortlist.components._tables import EVENTS
from shortlist.components.artifacts import Examples, Schema, Statistics
from shortlist.components.pipeline import Component
from shortlist.components.statistics_gen import DOMAIN, TABLES

REQUIRED = {"interactions": ("user", "item"), "items": ("item",), "users": ("user",)}
_OPEN = {"user", "item", "title", "query"}
_FITS = {
    "string_domain": schema_pb2.BYTES,
    "domain": schema_pb2.BYTES,
    "int_domain": schema_pb2.INT,
    "float_domain": schema_pb2.FLOAT,
}


class SchemaConfig(Config):
    """Where the schema comes from.

    Args:
      path: a folder with curated `interactions.pbtxt`, `items.pbtxt` and `users.pbtxt`, such as the edited copy of an
        earlier run's; a table without a file there gets an inferred schema. None infers all three.
    """

    path: Path | None = None


class SchemaGen(Component):
    """Infers a schema for each table, or takes the curated ones of a folder.

    Inferred: the type of each column; presence in every row where no value is missing; for text with at most 100
    distinct values, the values (ids, titles and queries excepted); for ratings, the range.

    Raises:
      ShortlistError: for a folder without schemas, and a schema that cannot be read or contradicts itself.

    Example:
      >>> schema = pipeline.add(SchemaGen(SchemaConfig(path="schemas")), statistics, examples)
    """

    output = Schema
    config: SchemaConfig

    def __init__(self, config: SchemaConfig | None = None, name: str = ""):
        super().__init__(config or SchemaConfig(), name)

    def external(self) -> Any:
        return {table: digest(path, "schemas.path") for table, path in self._curated().items()}

    def run(self, out: Path, statistics: Statistics, examples: Examples) -> None:
        curated = self._curated()
        found = statistics.read_json("statistics.json")["tables"]
        for table in TABLES:
            if table in curated:
                schema = read_schema(curated[table], table)
            else:
                schema = _inferred(pq.read_schema(examples / f"{table}.parquet"), found[table], table)
            (out / f"{table}.pbtxt").write_text(text_format.MessageToString(schema, as_utf8=True), encoding="utf-8")

    def _curated(self) -> dict[str, Path]:
        folder = self.config.path
        if folder is None:
            return {}
        found = {path.stem: path for path in sorted(folder.glob("*.pbtxt"))}
        if not found or not found.keys() <= set(TABLES):
            names = ", ".join(path.name for path in found.values()) or "no .pbtxt file"
            raise ShortlistError(
                f"`schemas.path` must be a folder that holds {', '.join(f'{t}.pbtxt' for t in TABLES)} or some of them "
                f"and no other. Received: {folder} with {names}."
            )
        return found


def read_schema(path: Path, table: str) -> schema_pb2.Schema:
    """Reads one table's schema.

    Raises:
      ShortlistError: if it is no text form of a Schema, lacks a column that the table must have, names a column
        twice, leaves a type out, or refers to a domain that isn't there.
    """
    try:
        schema = text_format.Parse(path.read_text(encoding="utf-8"), schema_pb2.Schema())
    except (text_format.ParseError, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ShortlistError(f"`{path.name}` must be the text form of a Schema. Received: {path}: {reason}.") from None
    names = [feature.name for feature in schema.feature]
    domains = {domain.name for domain in schema.string_domain}
    for name in REQUIRED[table]:
        if name not in names:
            raise ShortlistError(
                f"`{path.name}` must describe the column `{name}`. Received the columns: {', '.join(names)}."
            )
    for feature in schema.feature:
        limit = feature.WhichOneof("domain_info") or ""
        limits: Any = getattr(feature, limit, None)
        if names.count(feature.name) > 1:
            wrong = "must be described once", f"{names.count(feature.name)} times"
        elif feature.type == schema_pb2.TYPE_UNKNOWN:
            wrong = "must have a type: BYTES, INT or FLOAT", "none"
        elif feature.domain and feature.domain not in domains:
            wrong = "must have a domain that a string_domain of the file defines", repr(feature.domain)
        elif _FITS.get(limit, feature.type) != feature.type:
            wrong = "must have a domain that fits its type", f"{limit} for {schema_pb2.FeatureType.Name(feature.type)}"
        elif hasattr(limits, "max") and limits.HasField("min") and limits.HasField("max") and limits.min > limits.max:
            wrong = "must have a range whose min is at most its max", f"{limits.min} to {limits.max}"
        else:
            continue
        raise ShortlistError(f"`{feature.name}` in {path.name} {wrong[0]}. Received: {wrong[1]}.")
    return schema


def feature_type(kind: pa.DataType) -> int:
    """The FeatureType of an Arrow type: text is BYTES, whole numbers, flags and times are INT."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return feature_type(kind.value_type)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_temporal(kind):
        return schema_pb2.INT
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return schema_pb2.FLOAT
    return schema_pb2.STRUCT if pa.types.is_nested(kind) else schema_pb2.BYTES


def _inferred(columns: pa.Schema, found: dict[str, Any], table: str) -> schema_pb2.Schema:
    schema = schema_pb2.Schema()
    for column in columns:
        about = found["columns"][column.name]
        feature = schema.feature.add(name=column.name, type=feature_type(column.type))
        if about["nulls"] == 0:
            feature.presence.min_fraction = 1.0
            feature.presence.min_count = 1
        if pa.types.is_list(column.type):
            feature.value_count.min = 0
        if (table, column.name) == ("interactions", "rating") and about["minimum"] is not None:
            feature.float_domain.min, feature.float_domain.max = about["minimum"], about["maximum"]
        if (table, column.name) == ("interactions", "event"):
            feature.string_domain.value.extend(EVENTS)
        elif column.name not in _OPEN and feature.type == schema_pb2.BYTES and 0 < about.get("distinct", 0) <= DOMAIN:
            feature.string_domain.value.extend(sorted(value for value, _ in about["most_frequent"]))
    return schema
