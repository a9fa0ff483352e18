import pyarrow as pa
import pytest
from data_cases import write
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from shortlist import ShortlistError
from shortlist.components.example_gen import DataConfig, ExampleGen
from shortlist.components.pipeline import Pipeline
from shortlist.components.schema_gen import SchemaConfig, SchemaGen
from shortlist.components.statistics_gen import StatisticsGen

LOG = {
    "user": ["u1", "u2", "u1"],
    "item": ["a", "b", "c"],
    "rating": [0.5, None, 4.5],
    "query": ["x", "y", "z"],
    "context_day": ["tue", "mon", "tue"],
    "clicks": [1, 2, None],
}
CURATED = """
feature { name: "user" type: BYTES }
feature { name: "item" type: BYTES }
feature { name: "rating" type: FLOAT float_domain { min: 1 max: 5 } }
"""


def build(tmp_path, **config) -> Pipeline:
    items = write(tmp_path / "items.parquet", {"item": ["a"], "title": ["A"], "genres": [["War", "Drama"]]})
    source = f"parquet:{write(tmp_path / 'log.parquet', LOG)}"
    pipeline = Pipeline(tmp_path / "run")
    examples = pipeline.add(ExampleGen(DataConfig(source=source, items=items)))
    pipeline.add(SchemaGen(SchemaConfig(**config)), pipeline.add(StatisticsGen(), examples), examples)
    return pipeline


def features(artifact, table: str) -> dict:
    schema = text_format.Parse((artifact / f"{table}.pbtxt").read_text(), schema_pb2.Schema())
    return {feature.name: feature for feature in schema.feature}


def test_what_is_inferred(tmp_path):
    artifact = build(tmp_path).run()["SchemaGen"]
    found = features(artifact, "interactions")
    kinds = {name: schema_pb2.FeatureType.Name(feature.type) for name, feature in found.items()}
    assert kinds == {
        "user": "BYTES",
        "item": "BYTES",
        "timestamp": "INT",
        "event": "BYTES",
        "rating": "FLOAT",
        "watch_time": "FLOAT",
        "query": "BYTES",
        "context_day": "BYTES",
        "clicks": "INT",
    }
    always = {name for name, feature in found.items() if feature.presence.min_fraction == 1}
    assert always == {"user", "item", "event", "query", "context_day"}
    domains = {name: list(f.string_domain.value) for name, f in found.items() if f.HasField("string_domain")}
    assert domains == {"event": ["watch", "impression"], "context_day": ["mon", "tue"]}
    assert (found["rating"].float_domain.min, found["rating"].float_domain.max) == (0.5, 4.5)
    items = features(artifact, "items")
    assert list(items["genres"].string_domain.value) == ["Drama", "War"]
    assert items["genres"].HasField("value_count")
    assert not items["title"].HasField("string_domain")
    assert list(features(artifact, "users")) == ["user"]


@pytest.mark.parametrize(("distinct", "listed"), [(100, 100), (101, 0)])
def test_only_text_with_few_values_gets_a_domain(tmp_path, distinct, listed):
    columns = {"user": ["u"] * distinct, "item": [str(i) for i in range(distinct)]}
    columns["place"] = pa.array([f"p{i}" for i in range(distinct)])
    pipeline = Pipeline(tmp_path / "run")
    examples = pipeline.add(ExampleGen(DataConfig(source=f"parquet:{write(tmp_path / 'log.parquet', columns)}")))
    pipeline.add(SchemaGen(), pipeline.add(StatisticsGen(), examples), examples)
    assert len(features(pipeline.run()["SchemaGen"], "interactions")["place"].string_domain.value) == listed


def test_curated_schemas_are_taken_and_the_rest_is_inferred(tmp_path):
    folder = tmp_path / "curated"
    folder.mkdir()
    (folder / "interactions.pbtxt").write_text(CURATED)
    pipeline = build(tmp_path, path=folder)
    artifact = pipeline.run()["SchemaGen"]
    found = features(artifact, "interactions")
    assert list(found) == ["user", "item", "rating"]
    assert found["rating"].float_domain.max == 5
    assert "genres" in features(artifact, "items")
    pipeline.run()
    assert pipeline.ran == []
    (folder / "interactions.pbtxt").write_text(CURATED.replace("max: 5", "max: 6"))
    assert features(pipeline.run()["SchemaGen"], "interactions")["rating"].float_domain.max == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("feature { nam: 3 }", "`interactions.pbtxt` must be the text form of a Schema. Received: {file}: 1:11 : "),
        (
            'feature { name: "user" type: BYTES }',
            "`interactions.pbtxt` must describe the column `item`. Received the columns: user.",
        ),
        (
            CURATED + 'feature { name: "item" type: BYTES }',
            "`item` in interactions.pbtxt must be described once. Received: 2 times.",
        ),
        (
            CURATED + 'feature { name: "event" }',
            "`event` in interactions.pbtxt must have a type: BYTES, INT or FLOAT. Received: none.",
        ),
        (
            CURATED + 'feature { name: "event" type: BYTES domain: "events" }',
            "`event` in interactions.pbtxt must have a domain that a string_domain of the file defines. "
            "Received: 'events'.",
        ),
        (
            CURATED + 'feature { name: "clicks" type: INT float_domain { min: 1 } }',
            "`clicks` in interactions.pbtxt must have a domain that fits its type. Received: float_domain for INT.",
        ),
        (
            CURATED + 'feature { name: "clicks" type: INT int_domain { min: 3 max: 2 } }',
            "`clicks` in interactions.pbtxt must have a range whose min is at most its max. Received: 3 to 2.",
        ),
    ],
)
def test_a_schema_that_contradicts_itself_is_refused(tmp_path, text, message):
    folder = tmp_path / "curated"
    folder.mkdir()
    file = folder / "interactions.pbtxt"
    file.write_text(text)
    with pytest.raises(ShortlistError) as error:
        build(tmp_path, path=folder).run()
    assert str(error.value).startswith(message.format(file=file))
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "run" / "artifacts" / "SchemaGen").rglob("lineage.json"))


@pytest.mark.parametrize("names", [[], ["interaction.pbtxt"]])
def test_a_folder_without_schemas_is_refused(tmp_path, names):
    folder = tmp_path / "curated"
    folder.mkdir()
    for name in names:
        (folder / name).write_text(CURATED)
    with pytest.raises(ShortlistError) as error:
        build(tmp_path, path=folder).run()
    assert str(error.value) == (
        "`schemas.path` must be a folder that holds interactions.pbtxt, items.pbtxt, users.pbtxt or some of them and "
        f"no other. Received: {folder} with {names[0] if names else 'no .pbtxt file'}."
    )
