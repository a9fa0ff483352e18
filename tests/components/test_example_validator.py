import time

import pyarrow as pa
import pytest
from data_cases import write

from shortlist import ShortlistError
from shortlist.components._batches import BATCH
from shortlist.components._engine import EngineConfig, engine_of
from shortlist.components.example_gen import DataConfig, ExampleGen
from shortlist.components.example_validator import ExampleValidator, ValidatorConfig
from shortlist.components.pipeline import Pipeline
from shortlist.components.schema_gen import SchemaConfig, SchemaGen
from shortlist.components.statistics_gen import StatisticsGen

LOG = {"user": ["u1", "u2"], "item": ["a", "b"], "timestamp": [1, 2], "rating": [1.0, 6.0], "clicks": [1, 9]}
ITEMS = {"item": ["a", "b"], "title": ["A", "B"], "genres": [["War"], ["Drama", "Noir"]]}
IDS = 'feature { name: "user" type: BYTES } feature { name: "item" type: BYTES } '


def validate(tmp_path, log=LOG, interactions="", items="", fail=True):
    """Runs the validator on `log`, with the features of curated schemas besides the ids: in one piece and by row."""
    folder = tmp_path / "curated"
    folder.mkdir()
    if interactions:
        (folder / "interactions.pbtxt").write_text(IDS + interactions)
    if items:
        (folder / "items.pbtxt").write_text('feature { name: "item" type: BYTES } ' + items)
    source = f"parquet:{write(tmp_path / 'log.parquet', log)}"
    config = DataConfig(source=source, items=write(tmp_path / "items.parquet", ITEMS))
    results = []
    for name, rows in (("run", BATCH), ("by_row", 1)):
        pipeline = Pipeline(tmp_path / name, engine=engine_of(EngineConfig(batch=rows)))
        examples = pipeline.add(ExampleGen(config))
        schema = SchemaGen(SchemaConfig(path=folder if interactions or items else None))
        schema = pipeline.add(schema, pipeline.add(StatisticsGen(), examples), examples)
        pipeline.add(ExampleValidator(ValidatorConfig(fail=fail)), examples, schema)
        results.append(pipeline.run()["ExampleValidator"].read_json("anomalies.json"))
    assert results[0] == results[1]
    return results[0]


def found(tmp_path, column: str, **settings) -> list[tuple]:
    anomalies = validate(tmp_path, fail=False, **settings)
    return [(a["severity"], a["rows"], a["message"]) for a in anomalies if a["column"] == column]


def test_examples_fit_the_schema_inferred_from_them(tmp_path):
    assert validate(tmp_path) == []


@pytest.mark.parametrize(
    ("column", "feature", "expected"),
    [
        (
            "rating",
            "type: FLOAT float_domain { min: 0.5 max: 5 }",
            [("error", 1, "must be at most 5. Received: 6.0 in 1 row.")],
        ),
        ("rating", "type: FLOAT float_domain { min: 1 max: 6 }", []),
        (
            "clicks",
            "type: INT int_domain { min: 2 max: 8 }",
            [
                ("error", 1, "must be at least 2. Received: 1 in 1 row."),
                ("error", 1, "must be at most 8. Received: 9 in 1 row."),
            ],
        ),
        ("clicks", "type: FLOAT", [("error", 2, "must be of type FLOAT. Received: int64.")]),
        (
            "watch_time",
            "type: FLOAT presence { min_fraction: 0.5 }",
            [("error", 2, "must be there in 1 of 2 rows. Received: 2 rows without it.")],
        ),
        (
            "device",
            "type: BYTES presence { min_count: 1 }",
            [("error", 2, "must be there, as the schema has it. Received: a table without it.")],
        ),
        (
            "device",
            "type: BYTES",
            [("warning", 2, "must be there, as the schema has it. Received: a table without it.")],
        ),
        (
            "event",
            'type: BYTES string_domain { value: "impression" }',
            [("error", 2, "has values that the schema doesn't know. Received: 'watch' in 2 places.")],
        ),
    ],
)
def test_interactions_against_a_curated_schema(tmp_path, column, feature, expected):
    assert found(tmp_path, column, interactions=f'feature {{ name: "{column}" {feature} }}') == expected


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ('string_domain { value: "War" value: "Drama" value: "Noir" }', []),
        (
            'string_domain { value: "War" }',
            [("error", 2, "has values that the schema doesn't know. Received: 'Drama', 'Noir' in 2 places.")],
        ),
        (
            'domain: "names"',
            [("error", 1, "has values that the schema doesn't know. Received: 'Noir' in 1 place.")],
        ),
        (
            'domain: "names" distribution_constraints { min_domain_mass: 0.6 }',
            [("warning", 1, "has values that the schema doesn't know. Received: 'Noir' in 1 place.")],
        ),
    ],
)
def test_new_genres(tmp_path, domain, expected):
    items = 'string_domain { name: "names" value: "War" value: "Drama" } '
    assert found(tmp_path, "genres", items=f'{items} feature {{ name: "genres" type: BYTES {domain} }}') == expected


def test_the_first_few_of_what_is_wrong_are_shown(tmp_path):
    log = {"user": list("abcdef"), "item": ["a"] * 6, "timestamp": [1] * 6, "rating": [9.0, 8, 9, 7, 6, 1]}
    log["device"] = ["x", "y", "x", "z", "w", "tv"]
    schema = """feature { name: "rating" type: FLOAT float_domain { max: 5 } }
    feature { name: "device" type: BYTES string_domain { value: "tv" } }"""
    messages = {a["column"]: a["message"] for a in validate(tmp_path, log, schema, fail=False)}
    assert messages["rating"] == "must be at most 5. Received: 9.0, 8.0, 9.0, … in 5 rows."
    assert messages["device"].endswith("doesn't know. Received: 'x', 'y', 'z', … in 5 places.")


def test_columns_that_the_schema_does_not_know_are_warned_of(tmp_path):
    anomalies = validate(tmp_path, interactions='feature { name: "rating" type: FLOAT }')
    assert {(a["column"], a["severity"]) for a in anomalies if a["message"] == "is not in the schema."} == {
        (column, "warning") for column in ("timestamp", "event", "watch_time", "query", "clicks")
    }


def test_times_outside_1970_to_today_are_errors(tmp_path):
    tomorrow = (int(time.time()) // 86_400 + 2) * 86_400
    log = {"user": list("abcd"), "item": list("abcd"), "timestamp": pa.array([-1, int(time.time()), tomorrow, None])}
    assert found(tmp_path, "timestamp", log=log) == [
        ("error", 1, "must not lie before 1970. Received: -1, the first of 1 row."),
        ("error", 1, f"must not lie after today (UTC). Received: {tomorrow}, the first of 1 row."),
    ]


def test_repeats_and_missing_titles_are_warnings(tmp_path):
    log = {"user": ["u"] * 4, "item": ["a", "a", "a", "z"], "timestamp": [1, 2, 1, 1]}
    assert [(a["column"], a["severity"], a["rows"], a["message"]) for a in validate(tmp_path, log=log)] == [
        ("item", "warning", 1, "repeats a user and an item with the same event at another time in 1 row, all kept."),
        ("item", "warning", 1, "repeated an earlier row exactly in 1 row, dropped when they were read."),
        ("title", "warning", 1, "is missing for 1 of 3 items."),
    ]


def test_the_first_error_stops_the_run_and_leaves_nothing(tmp_path):
    features = 'feature { name: "clicks" type: INT int_domain { min: 2 } } feature { name: "rating" type: INT }'
    with pytest.raises(ShortlistError) as error:
        validate(tmp_path, interactions=features)
    assert str(error.value) == (
        "`clicks` of interactions must be at least 2. Received: 1 in 1 row. 1 other error found. Correct the data or "
        "the schema, or list the errors without stopping: --set validator.fail=false."
    )
    assert not list((tmp_path / "run" / "artifacts" / "ExampleValidator").rglob("lineage.json"))
    assert (tmp_path / "run" / "artifacts" / "SchemaGen").exists()
