"""The TFX adapter without TFX: what it knows, what it writes down, and that it runs a step as the local runner does."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shortlist import ShortlistError
from shortlist import components as ours
from shortlist.components import _tfx, artifacts, tfx
from shortlist.components._engine import Engine, EngineConfig
from shortlist.components._feature_statistics import feature_statistics
from shortlist.components.artifacts import LINEAGE, Artifact
from shortlist.components.example_gen import DataConfig, ExampleGen
from shortlist.components.pipeline import Pipeline
from shortlist.components.schema_gen import SchemaGen
from shortlist.components.splitter import SplitConfig, Splitter
from shortlist.components.statistics_gen import StatisticsGen
from shortlist.components.trainer import Trainer
from shortlist.components.transform import Transform
from shortlist.trainers import tfx as pipelines
from shortlist.trainers.popularity import Config as PopularityConfig
from shortlist.trainers.two_stage import load_config, two_stage

DOCS = Path(__file__).resolve().parents[2] / "docs" / "tfx.md"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("log")
    rows = [(f"u{user}", f"i{(user + step) % 7}", 1000 * user + step) for user in range(6) for step in range(6)]
    users, items, times = zip(*rows, strict=True)
    table = pa.table({"user": users, "item": items, "timestamp": times, "rating": pa.array([1.0, 3.0] * 18)})
    pq.write_table(table, folder / "log.parquet")
    return f"parquet:{folder / 'log.parquet'}"


def steps(log: str) -> list[tuple[Any, dict[str, int]]]:
    """Steps, and where each takes its inputs from."""
    return [
        (ExampleGen(DataConfig(source=log)), {}),
        (StatisticsGen(), {"examples": 0}),
        (SchemaGen(), {"statistics": 1, "examples": 0}),
        (Splitter(SplitConfig(seed=3)), {"examples": 0}),
        (Transform(), {"splits": 3}),
        (Trainer(PopularityConfig(), "often", "shortlist.trainers.popularity:train"), {"encoded": 4}),
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def made(log: str, root: Path) -> list[Artifact]:
    """What the steps make when they run as TFX's executor runs them, from texts alone; nobody changes it."""
    made: list[Artifact] = []
    there = locally(log, root).steps.values()  # as they are in a pipeline
    for component, needs in zip((step.component for step in there), (needs for _, needs in steps(log)), strict=True):
        properties = _tfx.describe(component, {name: name for name in needs})
        assert all(isinstance(value, str) for value in properties.values())
        assert set(properties) == set(_tfx.PARAMETERS)
        uris = {name: str(made[number].uri) for name, number in needs.items()}
        out = root / component.name / _tfx.KINDS[component.output][1] / str(len(made))
        made.append(_tfx.execute(properties, uris, str(out)))
    return made


def locally(log: str, workdir: Path) -> Pipeline:
    p = Pipeline(workdir)
    nodes: list[Any] = []
    for component, needs in steps(log):
        nodes.append(p.add(component, **{name: nodes[number] for name, number in needs.items()}))
    return p


def test_a_step_has_the_same_fingerprint_and_files_as_in_a_local_run_and_goes_back_to_it(log, root, made, tmp_path):
    there = list(locally(log, tmp_path / "run").run().values())
    assert [a.fingerprint for a in made] == [a.fingerprint for a in there]
    for mine, local in zip(made, there, strict=True):
        names = {p.relative_to(local.uri) for p in local.uri.rglob("*") if p.is_file()}
        more = {p.relative_to(mine.uri) for p in mine.uri.rglob("*") if p.is_file()} - names
        assert names == {p.relative_to(mine.uri) for p in mine.uri.rglob("*") if p.is_file()} - more
        assert all(any(Path(path.parts[0]).match(pattern) for pattern in _tfx.ADDED) for path in more)
        tables = [name for name in names if name.suffix == ".parquet"]
        assert all((mine / str(name)).read_bytes() == (local / str(name)).read_bytes() for name in tables)

    assert pipelines.adopt(root, tmp_path / "back") == sorted(c.name for c, _ in steps(log))
    assert pipelines.adopt(root, tmp_path / "back") == []
    again = locally(log, tmp_path / "back")
    model = list(again.run().values())[-1]
    assert again.ran == []
    assert model.parents["encoded"].parents["splits"].names == made[3].names
    adopted = {p.relative_to(model.uri).parts[0] for p in model.uri.rglob("*")}
    assert adopted == {p.relative_to(there[-1].uri).parts[0] for p in there[-1].uri.rglob("*")}


def test_what_tfx_looks_for_lies_beside_our_files(made, tmp_path):
    examples, statistics, schema, splits, encoded, model = made
    _tfx.link_parts(encoded, tmp_path / "beside")
    (part, *_) = encoded.names
    assert (tmp_path / "beside" / f"Split-{part}" / f"{part}.parquet").exists()
    assert not (encoded / f"Split-{part}").exists()
    for made in (examples, splits):
        for name, (file,) in _tfx.parts_of(made).items():
            assert (made / f"Split-{name}" / file).read_bytes() == (made / file).read_bytes()
    assert list(_tfx.parts_of(splits)) == list(artifacts.Splits.NAMES)
    assert (schema / "schema.pbtxt").read_text() == (schema / "interactions.pbtxt").read_text()
    assert (statistics / "Split-items" / "FeatureStats.pb").exists()
    served = {p.relative_to(model / "serving") for p in (model / "serving").rglob("*")}
    assert served == {p.relative_to(model / "Format-Serving") for p in (model / "Format-Serving").rglob("*")}


def test_every_public_component_and_every_artifact_is_known_and_described():
    page = DOCS.read_text("utf-8")
    (mapping,) = (part for part in page.split("\n## ") if part.startswith("The mapping"))
    rows = [line for line in mapping.splitlines() if line.startswith("| `")]
    described = {name: row for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    for name in tfx.component_names():
        output = getattr(ours, name).output
        type_name, key = _tfx.KINDS[output]
        _, _, keys, types, *_ = described[name].split("|")
        assert f"`{key}`" in keys
        assert f"`{'shortlist.' if type_name in _tfx.OWN else ''}{type_name}`" in types
        if output in _tfx.BESIDE:
            assert all(f"`{word}`" in keys + types for word in _tfx.BESIDE[output])
    assert set(described) >= {*ours.__all__} - {"Pipeline"}
    assert set(_tfx.KINDS) == {kind for kind in Artifact.__subclasses__() if kind.__module__.startswith("shortlist.")}


def test_every_step_of_a_run_can_be_written_down_and_made_again():
    changes = {"cluster.timeout": 7, "engine.batch": 9, "data.source": "simulated"}
    for step in two_stage(load_config(overrides=changes)).steps.values():
        component = step.component
        again = _tfx.revive(_tfx.describe(component, {}))
        assert vars(again).keys() == vars(component).keys()
        for name, value in vars(component).items():
            assert again.engine.config == value.config if name == "engine" else vars(again)[name] == value


def test_without_tfx_the_install_line_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tfx", None)
    tfx._classes.cache_clear()
    expected = r"need TFX on Python 3\.10: pip install 'shortlist\[tfx\]'.* Received: no module tfx"
    for ask in (
        lambda: tfx.Splitter,
        lambda: tfx.wrap(Splitter()),
        lambda: pipelines.run(load_config(), tmp_path),
        lambda: pipelines.compile_for_kubeflow(load_config(), "gs://b", "image", tmp_path / "p.yaml"),
    ):
        with pytest.raises(ShortlistError, match=expected):
            ask()
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = tfx.Nothing


def test_a_step_refuses_other_code_and_other_artifacts(made, tmp_path):
    component = Splitter()
    component.engine = Engine(EngineConfig(batch=7))
    properties = _tfx.describe(component, {"examples": "examples"})
    assert _tfx.revive(properties).config == component.config
    assert _tfx.revive(properties).engine.config == component.engine.config
    code = {**json.loads(properties["code"]), "shortlist.components.splitter": "another"}
    with pytest.raises(ShortlistError, match=r"must run the code .* Received: another shortlist\.components\.splitter"):
        _tfx.revive({**properties, "code": json.dumps(code)})

    with pytest.raises(ShortlistError, match=r"`examples` must be an artifact of shortlist, of type Examples.* Splits"):
        _tfx.execute(properties, {"examples": str(made[3].uri)}, str(tmp_path / "root/Splitter/x/9"))
    with pytest.raises(ShortlistError, match=rf"a folder without {LINEAGE}"):
        _tfx.opened(str(tmp_path), [artifacts.Model], "model")
    for uri in ("s3://bucket/root", "gs://no-such-bucket/root"):
        with pytest.raises(ShortlistError, match=rf"must be a folder that is mounted.* Received: {uri}"):
            _tfx.local(uri)
    assert _tfx.local("file:///a/b") == _tfx.local("/a/b") == Path("/a/b")
    with pytest.raises(ShortlistError, match="root of a TFX pipeline"):
        pipelines.adopt(tmp_path / "nothing", tmp_path / "run")


def test_a_given_artifact_has_no_place_in_ml_metadata(made, tmp_path):
    p = Pipeline(tmp_path)
    p.given("earlier", made[0])
    with pytest.raises(ShortlistError, match=r"`warm_start` takes artifacts of an earlier run.* Received: earlier"):
        tfx.wrap_pipeline(p)


def test_feature_statistics_by_hand():
    number = {"type": "float", "nulls": 1, "minimum": 1.0, "maximum": 3.0, "mean": 2.0, "standard_deviation": 0.5}
    text = {"type": "list<item: string>", "nulls": 1, "empty": 2, "values": 5, "distinct": 2}
    columns = {
        "rating": {**number, "quantiles": {"0.5": 1.5}, "not_finite": 0},
        "genres": {**text, "most_frequent": [["War", 3], ["Drama", 2]]},
        "time": {"type": "timestamp[s]", "nulls": 4},
    }
    (data,) = feature_statistics("items", {"rows": 4, "columns": columns}).datasets
    rating, genres, time = data.features
    assert (data.name, data.num_examples, rating.type, genres.type) == ("items", 4, rating.FLOAT, genres.STRING)
    stats = rating.num_stats
    assert (stats.common_stats.num_non_missing, stats.common_stats.num_missing) == (3, 1)
    assert (stats.min, stats.max, stats.mean, stats.std_dev, stats.median) == (1, 3, 2, 0.5, 1.5)
    assert [b.label for b in genres.string_stats.rank_histogram.buckets] == ["War", "Drama"]
    assert [v.frequency for v in genres.string_stats.top_values] == [3, 2]
    common = genres.string_stats.common_stats
    assert (common.num_non_missing, common.num_missing, common.tot_num_values) == (3, 1, 5)
    assert time.string_stats.common_stats.num_missing == 4


def test_run_fn_makes_the_model_that_our_trainer_makes(made, tmp_path):
    encoded, model = made[4:]
    out = tmp_path / "root" / "Theirs" / "model" / "1"
    given = {"model": "popularity", "name": "often", "settings": {"window_days": None}}
    args: dict[str, Any] = {"transform_graph_path": str(encoded.uri), "base_model": None, "hyperparameters": None}
    pipelines.run_fn(SimpleNamespace(**args, custom_config=given, serving_model_dir=str(out / "Format-Serving")))
    assert json.loads((out / LINEAGE).read_text())["fingerprint"] == model.fingerprint
    assert (out / "Format-Serving" / "saved_model.pb").exists()

    for wrong, message in (
        ({}, "must have a `model`"),
        ({"model": "popularity", "epochs": 3}, "must have a `model`, and may have name, settings"),
        ({"model": "nothing"}, "`model` must be one of"),
        ({"model": "popularity", "settings": {"years": 3}}, r"`years` is not a setting of `custom_config`"),
    ):
        with pytest.raises(ShortlistError, match=message):
            pipelines.run_fn(SimpleNamespace(**args, custom_config=wrong, serving_model_dir=str(out)))
    none = SimpleNamespace(**{**args, "transform_graph_path": None}, custom_config=given, serving_model_dir=str(out))
    with pytest.raises(ShortlistError, match="`transform_graph` must be that of shortlist's Transform"):
        pipelines.run_fn(none)


def test_tuner_fn_searches_retrievers_and_run_fn_reads_what_it_found(made, tmp_path, monkeypatch):
    encoded = made[4]
    results = SimpleNamespace(components=SimpleNamespace(TunerFnResult=SimpleNamespace))
    monkeypatch.setattr(pipelines, "imported", lambda name: results)
    args = {"transform_graph_path": str(encoded.uri), "working_dir": str(tmp_path / "search")}
    space = {"neighbours": {"type": "int", "range": [1, 3]}}
    given = {"model": "item_knn", "trials": 2, "objective": "ndcg@5", "space": space}
    result = pipelines.tuner_fn(SimpleNamespace(**args, custom_config=given))
    result.tuner.search(**result.fit_kwargs)
    (best,) = result.tuner.get_best_hyperparameters()
    assert 1 <= best.values["neighbours"] <= 3
    assert [trial.status for trial in result.tuner.oracle.trials.values()] == ["COMPLETED"] * 2
    assert pipelines.found_settings("item_knn", best.values) == dict(best.values)
    with pytest.raises(ShortlistError, match=r"must name a retriever.* Received: weighted_logistic"):
        pipelines.tuner_fn(SimpleNamespace(**args, custom_config={"model": "weighted_logistic"}))
