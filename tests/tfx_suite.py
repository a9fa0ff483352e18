"""What `make test-tfx` runs, on Python 3.10 with TFX: pytest finds this file only when it is named.

Real ratings go through a whole pipeline of LocalDagRunner, twice; small ones through TFX's own components between ours.
"""

import json
import os
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pyarrow.parquet as pq
import pytest
import small_run
import tensorflow_data_validation
import yaml
from ml_metadata import proto
from ml_metadata.metadata_store import metadata_store
from tfx import v1
from tfx.orchestration import metadata

from shortlist.components._native import replay_program
from shortlist.components._tfx import KINDS, adopt
from shortlist.components.artifacts import LINEAGE
from shortlist.components.tfx import wrap_pipeline
from shortlist.trainers import tfx
from shortlist.trainers.two_stage import TwoStage, load_config, parse_overrides, two_stage

REAL = {"sources.two_tower.epochs": 4, "evaluation.samples": 500}


class Store:
    """What ML Metadata knows of a run's folder."""

    def __init__(self, folder: Path):
        config = metadata.sqlite_metadata_connection_config(str(folder / tfx.METADATA))
        self.store = metadata_store.MetadataStore(config)

    def states(self) -> list[str]:
        """The state of every execution, in their order."""
        executions = sorted(self.store.get_executions(), key=lambda e: e.id)
        return [proto.Execution.State.Name(e.last_known_state) for e in executions]

    def artifacts(self, type_name: str) -> list[Any]:
        return self.store.get_artifacts_by_type(type_name)


def small(folder: Path, **changes: Any) -> TwoStage:
    small_run.write_log(folder)
    settings = (f"data.items={folder / 'items.csv'}", *small_run.SETTINGS)
    return load_config(
        None, {**parse_overrides(settings), "data.source": f"parquet:{folder / 'log.parquet'}", **changes}
    )


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("data", ["demo", "tfds:movielens/latest-small"])
def test_real_ratings_run_twice_and_the_second_run_is_cached(data, request, tmp_path):
    given = {**REAL, "data.source": data}
    if data != "demo":
        given["data.archive_dir"] = str(request.getfixturevalue("archive_dir"))
        given["data.data_dir"] = str(tmp_path / "tfds")
    config = load_config(None, given)
    steps = list(two_stage(config).steps)
    seconds = []
    for _ in range(2):
        started = time.time()
        root = tfx.run(config, tmp_path)
        seconds.append(time.time() - started)
    store = Store(tmp_path)
    assert store.states() == ["COMPLETE"] * len(steps) + ["CACHED"] * len(steps)
    print(f"\n{data}: {len(steps)} steps in {seconds[0]:.0f} s; again, all cached in ML Metadata: {seconds[1]:.0f} s")

    types = Counter(kind for kind, _ in (KINDS[step.component.output] for step in two_stage(config).steps.values()))
    for name, count in types.items():
        own = name in ("Index", "Report")
        beside = 1 if name == "Examples" else 0  # of Transform
        assert len(store.artifacts(f"shortlist.{name}" if own else name)) == count + beside, name
    (blessing,), (infra,), (pushed,) = map(store.artifacts, ("ModelBlessing", "InfraBlessing", "PushedModel"))
    assert blessing.custom_properties["blessed"].int_value == 1
    assert infra.custom_properties["blessed"].int_value == 1
    assert pushed.custom_properties["pushed"].int_value == 1
    model = Path(pushed.custom_properties["pushed_destination"].string_value)
    assert model == root / "pushed" / "shortlist" / pushed.custom_properties["pushed_version"].string_value

    (bundle,) = root.glob("Exporter/bundle/*")
    recorded = len(json.loads((bundle / "requests.json").read_text())["requests"])
    done = subprocess.run([replay_program(), model], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout.split()) == (0, [str(recorded)]), done.stdout
    print(f"{data}: the C program replayed {recorded} requests of the pushed SavedModel")

    home = tmp_path / "run"
    assert sorted(adopt(root, home)) == sorted(steps)
    again = two_stage(config.model_copy(update={"workdir": home}))
    again.run()
    assert (again.ran, again.cached) == ([], steps)
    measured = json.loads(next(root.glob("Evaluator/evaluation/*/metrics.json")).read_text())["systems"]
    print(f"{data}: `shortlist run` took every step from the cache; NDCG@10", end="")
    print("".join(f" {name} {own['ndcg@10']['value']:.3f}" for name, own in measured.items()))


@pytest.mark.timeout(1200)
def test_tfx_own_components_stand_between_ours(tmp_path):
    """Tuner and Trainer make what ours would, Pusher pushes our bundle, and TFDV reads our statistics."""
    config = small(tmp_path)
    whole = wrap_pipeline(two_stage(config))
    by_id = {component.id: component for component in whole}
    transform = by_id["Transform"]
    splits = {
        "train_args": v1.proto.TrainArgs(splits=["train"]),
        "eval_args": v1.proto.EvalArgs(splits=["validation"]),
    }
    data = {
        "examples": transform.outputs["transformed_examples"],
        "transform_graph": transform.outputs["transform_graph"],
        **splits,
    }
    settings = {"epochs": 1, "embedding_dim": 2}
    tuner = v1.components.Tuner(
        tuner_fn="shortlist.trainers.tfx.tuner_fn",
        custom_config={"model": "wals", "trials": 3, "settings": settings},
        **data,
    )
    found = v1.components.Trainer(
        run_fn="shortlist.trainers.tfx.run_fn",
        custom_config={"model": "wals", "name": "tuned", "settings": settings},
        hyperparameters=tuner.outputs["best_hyperparameters"],
        **data,
    ).with_id("TunedTrainer")
    same = v1.components.Trainer(
        run_fn="shortlist.trainers.tfx.run_fn", custom_config={"model": "wals", "settings": settings}, **data
    ).with_id("TheirTrainer")
    ranker = v1.components.Trainer(
        run_fn="shortlist.trainers.tfx.run_fn",
        custom_config={"model": "weighted_logistic", "settings": {"hidden_units": [16]}},
        examples=by_id["CandidateGenerator"].outputs["candidates"],
        transform_graph=transform.outputs["transform_graph"],
        train_args=v1.proto.TrainArgs(splits=["rank_train"]),
        eval_args=v1.proto.EvalArgs(splits=["validation"]),
    ).with_id("TheirRanker")
    pusher = v1.components.Pusher(
        model=by_id["Exporter"].outputs["bundle"],
        model_blessing=by_id["Evaluator"].outputs["blessing"],
        infra_blessing=by_id["InfraValidator"].outputs["blessing"],
        push_destination=v1.proto.PushDestination(
            filesystem=v1.proto.PushDestination.Filesystem(base_directory=str(tmp_path / "theirs"))
        ),
    ).with_id("TheirPusher")
    root = tmp_path / "root"
    pipeline = v1.dsl.Pipeline(
        pipeline_name="mixed",
        pipeline_root=str(root),
        components=[*whole, tuner, found, same, ranker, pusher],
        metadata_connection_config=metadata.sqlite_metadata_connection_config(str(tmp_path / tfx.METADATA)),
    )
    v1.orchestration.LocalDagRunner().run(pipeline)
    assert set(Store(tmp_path).states()) == {"COMPLETE"}

    def lineage(step: str, key: str) -> dict[str, Any]:
        (file,) = root.glob(f"{step}/{key}/*/{LINEAGE}")
        return json.loads(file.read_text())

    ours, theirs = lineage("Trainer_wals", "model"), lineage("TheirTrainer", "model")
    assert theirs["fingerprint"] == ours["fingerprint"]
    assert lineage("TheirRanker", "model")["config"]["hidden_units"] == [16]
    (best,) = root.glob("Tuner/best_hyperparameters/*/*.txt")
    values = json.loads(best.read_text())["values"]
    tuned = lineage("TunedTrainer", "model")["config"]
    assert values
    assert {name: tuned[name] for name in values} == pytest.approx(values, rel=1e-5)
    pushed = list((tmp_path / "theirs").glob("*/saved_model.pb"))
    assert len(pushed) == 1

    (mine,) = root.glob("StatisticsGen/statistics/*/Split-interactions/FeatureStats.pb")
    (data,) = root.glob("ExampleGen/examples/*/Split-interactions/interactions.parquet")
    theirs = tensorflow_data_validation.generate_statistics_from_dataframe(pq.read_table(data).to_pandas())
    compare(by_feature(tensorflow_data_validation.load_stats_binary(str(mine))), by_feature(theirs))


def by_feature(found: Any) -> dict[str, Any]:
    (data,) = found.datasets
    return {"rows": data.num_examples, **{f.path.step[0]: f for f in data.features}}


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """TensorFlow Data Validation counts the same, and computes the same moments."""
    assert ours["rows"] == theirs["rows"]
    shared = [name for name in ours if name != "rows" and name in theirs]
    assert {"user", "item"} & set(shared)
    for name in shared:
        mine, other = ours[name], theirs[name]
        kind = mine.WhichOneof("stats")
        if kind != other.WhichOneof("stats"):  # a column of nulls has no type there
            continue
        a, b = getattr(mine, kind), getattr(other, kind)
        counts = ("num_non_missing", "num_missing", "tot_num_values")
        assert [getattr(a.common_stats, c) for c in counts] == [getattr(b.common_stats, c) for c in counts], name
        if kind == "num_stats":
            moments = ("min", "max", "mean", "std_dev")
            assert [getattr(a, m) for m in moments] == pytest.approx([getattr(b, m) for m in moments], rel=1e-6), name
        else:
            assert a.unique == b.unique, name


@pytest.mark.timeout(600)
def test_the_pipeline_compiles_for_kubeflow_and_vertex(tmp_path):
    config = small(tmp_path)
    steps = list(two_stage(config).steps)
    for file in ("pipeline.yaml", "pipeline.json"):
        path = tmp_path / file
        tfx.compile_for_kubeflow(config, "gs://bucket/shortlist", "gcr.io/project/shortlist:1", path)
        text = path.read_text()
        spec = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)["pipelineSpec"]
        tasks = spec["root"]["dag"]["tasks"]
        assert sorted(tasks) == sorted(name.replace(".", "_") for name in steps)
        executors = spec["deploymentSpec"]["executors"].values()
        assert {e["container"]["image"] for e in executors} == {"gcr.io/project/shortlist:1"}
        assert "shortlist.components.tfx.Executor" in text
        assert {"CandidateGenerator", "Evaluator"} <= set(tasks["Reporter"].get("dependentTasks", []))
