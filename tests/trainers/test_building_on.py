"""Retrievers that build on others: in what order they are trained, with what, and what they need once they are."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fixed_models
import numpy as np
import pytest
import small_run
import tables
import tensorflow as tf

from shortlist import ShortlistError
from shortlist.components._config import parse
from shortlist.components._first_stage import load_index
from shortlist.components._folding import groups_of
from shortlist.components._queries import NO_TIME, EncodedData
from shortlist.components.artifacts import Artifact, Model
from shortlist.components.pipeline import Pipeline
from shortlist.components.retrieval_index import RetrievalIndex
from shortlist.trainers import hybrid
from shortlist.trainers._common import TrainerConfig, latest, load
from shortlist.trainers.hybrid import Examples
from shortlist.trainers.tuning import SweepConfig, tune
from shortlist.trainers.two_stage import load_config, retrieval_only, two_stage

WALS = {"model": "wals", "embedding_dim": 3, "epochs": 5}


def needs(p: Pipeline, step: str) -> list[str]:
    return [name.removeprefix("Trainer.") for name in p.steps[step].needs if name.startswith("Trainer.")]


def config(**settings: Any) -> Any:
    return load_config(overrides={"sources": {"near": {"model": "neighbours"}, "wals": {}}, **settings})


# --- the graph --------------------------------------------------------------------------------------------------------


def test_a_base_is_trained_before_what_builds_on_it_wherever_it_stands() -> None:
    p = two_stage(config(refit=True))
    steps = [step for step in p.steps if step.startswith("Trainer.")]
    assert steps.index("Trainer.wals") < steps.index("Trainer.near")
    assert needs(p, "Trainer.near") == ["wals"]
    assert needs(p, "Trainer.refit.near") == ["refit.wals"]
    assert p.steps["Trainer.refit.wals"].component.config.train_on == "all"
    assert [*p.steps["CandidateGenerator"].inputs["sources"]] == ["near", "wals"]


def test_a_model_that_is_no_source_is_trained_as_it_is_shipped_and_proposes_nothing() -> None:
    p = retrieval_only(load_config(overrides={"sources": {"a": {"model": "neighbours"}, "b": {"model": "neighbours"}}}))
    assert p.steps["Trainer.wals"].component.config == type(p.steps["Trainer.wals"].component.config)()
    assert needs(p, "Trainer.a") == needs(p, "Trainer.b") == ["wals"]
    assert "RetrievalIndex.wals" not in p.steps
    assert [*p.steps["Evaluator"].inputs["sources"]] == ["a", "b"]


def test_baselines_build_on_sources_and_sources_on_baselines() -> None:
    p = retrieval_only(config(baselines={"plain": WALS, "mine": {"model": "neighbours", "of": "wals"}}))
    assert needs(p, "Trainer.mine") == ["wals"]
    p = retrieval_only(config(**{"baselines": {"plain": WALS}, "sources.near.of": "plain"}))
    assert needs(p, "Trainer.near") == ["plain"]
    assert p.steps["Trainer.plain"].component.config.embedding_dim == 3


def test_of_a_base_in_rungs_the_last_one_is_built_on() -> None:
    given = config()
    sources = {**given.sources, "wals": given.sources["wals"].model_copy(update={"rungs": (1, 3)})}
    p = retrieval_only(given.model_copy(update={"sources": sources}))
    assert needs(p, "Trainer.near") == ["wals.epochs3"]


def test_what_learns_from_rows_has_bases_that_were_trained_without_them() -> None:
    p = two_stage(config(refit=True, **{"sources.both": {"model": "hybrid", "of": ["near", "ease"], "held_back": 0.3}}))
    assert needs(p, "Trainer.both") == ["near.without0.3", "ease.without0.3"]
    assert needs(p, "Trainer.near.without0.3") == ["wals.without0.3"]
    assert needs(p, "Trainer.near") == ["wals"]
    for step, train_on in (("", "train"), ("refit.", "all")):
        config_of = {name: p.steps[f"Trainer.{step}{name}"].component.config for name in ("both", "wals.without0.3")}
        assert [c.leave_out for c in config_of.values()] == [0.0, 0.3]
        assert [c.train_on for c in config_of.values()] == [train_on] * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"sources.a": {"model": "hybrid", "of": ["wals", "b"]}, "sources.b": {"model": "hybrid", "of": ["wals"]}},
            "`sources.a.of` must name models that keep no rows back for themselves, as a does. Received: 'b'.",
        ),
        (
            {"sources.wals.of": "near"},
            "`of` is not a setting of wals (wals).",
        ),
        (
            {"sources.near.of": "wols"},
            "`sources.near.of` must name a source, a baseline or a model. Received: 'wols'. Did you mean `wals`?",
        ),
        ({"sources.near.of": "weighted_logistic"}, "`sources.near.of` must name a source, a baseline or a model. "),
        (
            {"sources.near.of": "near"},
            "`sources.near.of` must not lead back to where it came from, or neither could be",
        ),
        ({"baselines": {"b": {"model": "neighbours", "of": "x"}}}, "`baselines.b.of` must name a source, a baseline"),
    ],
)
def test_what_cannot_be_built_on_is_refused_before_anything_runs(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ShortlistError) as error:
        config(**settings)
    assert str(error.value).startswith(message)


def test_a_ring_is_named() -> None:
    ring = {name: {"model": "neighbours", "of": base} for name, base in (("a", "b"), ("b", "c"), ("c", "b"))}
    with pytest.raises(ShortlistError, match=r"Received: a of b of c of b\.$"):
        load_config(overrides={"sources": ring})


# --- trained ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("log")
    small_run.write_log(folder)
    return {"data.source": f"parquet:{folder / 'log.parquet'}", "data.items": str(folder / "items.csv")}


BUILT = ["neighbours", "similar_users"]


@pytest.fixture(scope="module")
def run(log: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    sources: dict[str, Any] = {name: {"of": "base"} for name in BUILT}
    sources["hybrid"] = {"of": ["base", "similar_users"], "epochs": 4, "batch_size": 20}
    settings = {
        **log,
        "sources": sources,
        "baselines": {"base": WALS},
        "evaluation.cutoffs": [10],
        "evaluation.samples": 100,
        "evaluation.groups": "genres",
    }
    pipeline = retrieval_only(load_config(overrides={**settings, "workdir": tmp_path_factory.mktemp("run")}))
    return pipeline.run(until=["Evaluator"])


@pytest.mark.parametrize("name", [*BUILT, "hybrid"])
def test_what_is_served_needs_no_base(run: dict[str, Artifact], name: str, tmp_path: Path) -> None:
    """The model and its index answer alike when nothing else is left on the disk."""
    shutil.copytree(run[f"Trainer.{name}"].uri, tmp_path / "model")
    trained, index = tf.saved_model.load(str(tmp_path / "model" / "serving")), load_index(run[f"RetrievalIndex.{name}"])
    query = {
        "user": tf.constant([2, 3]),
        "history": tf.constant([[2, 5, 9], [7, 0, 0]]),
        "history_time": tf.constant([[1, 2, 3], [4, 0, 0]], tf.int64) + 1_600_000_000,
        "time": tf.constant([1_601_000_000] * 2, tf.int64),
    }
    expected = index.scores(query).numpy()
    moved = run["Trainer.base"].uri.rename(tmp_path / "base")
    try:
        RetrievalIndex(name).run(tmp_path, Model(run[f"Trainer.{name}"].uri, ""), run["Transform"])
        made = tf.saved_model.load(str(tmp_path / "index"))
        again = made.scores(query).numpy()
        loaded = tf.keras.models.load_model(str(tmp_path / "model" / "model.keras")).score_items(query).numpy()
    finally:
        moved.rename(run["Trainer.base"].uri)
    assert np.unique(expected[np.isfinite(expected)]).size > 10
    for scores in (again, loaded, trained.score_items(query).numpy()):
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*BUILT, "hybrid"])
def test_what_is_found_beats_chance(run: dict[str, Artifact], name: str) -> None:
    value = run["Evaluator"].read_json("metrics.json")["systems"][name]["recall@10"]
    assert value["low"] > 10 / 40  # of 60 items 20 are watched, and at least 16 of them before the test


def test_folding_is_measured_where_groups_are_named(run: dict[str, Artifact]) -> None:
    metrics = run["Evaluator"].read_json("metrics.json")
    folding, systems = metrics["folding"], metrics["systems"]
    assert folding["groups"] == "genres"
    assert folding["least"].keys() == systems.keys()
    assert folding["overlap"].keys() == {"neighbours"}  # the only source with item vectors
    overlap = folding["overlap"]["neighbours"]
    assert overlap["chance"] == pytest.approx(45 / 59)  # of 60 items 15 are of each genre
    assert overlap["value"] < overlap["chance"] / 2
    for name, own in systems.items():
        assert 0 <= folding["least"][name]["untouched_least@10"] <= own["untouched@10"]["value"] < 1
    data = EncodedData(run["Transform"])
    with pytest.raises(ShortlistError) as error:
        groups_of(data, "language")
    assert str(error.value) == (
        "`evaluation.groups` must be one of genres. Received: 'language'. Name a column of the items in "
        "transform.categories."
    )


def test_a_sweep_of_what_builds_trains_the_base_once(log: dict[str, str], tmp_path: Path) -> None:
    space = {"decay": {"type": "choice", "choices": [1.0, 0.1]}}
    sweep = tune(
        parse(SweepConfig, {"target": "neighbours", "trials": 2, "space": space, "given": log, "algorithm": "grid"}),
        tmp_path,
    )
    assert [r.status for r in sweep.records()] == ["completed", "completed"]
    steps = {folder.name: len(list(folder.iterdir())) for folder in (tmp_path / "artifacts").glob("Trainer.*")}
    assert steps == {"Trainer.wals": 1, "Trainer.neighbours": 2}


def test_a_base_without_vectors_is_refused(log: dict[str, str], tmp_path: Path) -> None:
    sources = {"near": {"model": "neighbours", "of": "item_knn"}}
    p = retrieval_only(load_config(overrides={**log, "sources": sources, "workdir": tmp_path}))
    with pytest.raises(ShortlistError) as error:
        p.run(until=["Trainer.near"])
    assert str(error.value) == (
        "`of` must name a model whose score is a dot product, such as wals or two_tower. Received: 'item_knn', "
        "ItemKNN, which has no item vectors."
    )


# --- rows that are kept back ------------------------------------------------------------------------------------------


def rows_of(*events: tuple[int, int, bool]) -> dict[str, np.ndarray]:
    key, time, positive = map(np.array, zip(*events, strict=True))
    return {"user_key": key, "timestamp": time.astype(np.int64), "positive": positive.astype(bool)}


def test_the_latest_rows_by_hand() -> None:
    # User 0: of 4 positives the last half, times 3 and 5, and what was shown from 3 on. User 1: the boundary falls into
    # a tie, which goes as a whole. User 2 would lose all, user 3 has but one, user 4 none with a time.
    rows = rows_of(
        *((0, 1, 1), (0, 2, 0), (0, 2, 1), (0, 3, 1), (0, 4, 0), (0, 5, 1)),
        *((1, 1, 1), (1, 4, 1), (1, 4, 1), (1, 6, 1)),
        *((2, 7, 1), (2, 7, 1)),
        *((3, 8, 1),),
        *((4, NO_TIME, 1), (4, NO_TIME, 1)),
    )
    expected = [0, 0, 0, 1, 1, 1, *(0, 1, 1, 1), *(0, 0), 0, *(0, 0)]
    np.testing.assert_array_equal(latest(rows, 0.5), np.array(expected, bool))
    assert not latest(rows, 0.2).any()


def test_what_is_left_out_is_not_trained_on(tmp_path: Path) -> None:
    p = Pipeline(tmp_path)
    encoded = fixed_models.encoded(p, fixed_models.random_parts(7, users=20))
    data = EncodedData(p.run()[encoded.step])
    inputs = {"encoded": data.artifact}
    every, early = (load(TrainerConfig(leave_out=share), inputs)[1] for share in (0.0, 0.4))
    assert (len(every["item"]), len(early["item"])) == (100, 60)
    assert early.keys() == every.keys()


# --- what the hybrid learns from --------------------------------------------------------------------------------------


def encoded_rows(*events: tuple[int, int, int, bool]) -> dict[str, np.ndarray]:
    """Of user, item, time and whether it was a positive; a watch, if not."""
    user, item, time, positive = map(np.array, zip(*events, strict=True))
    rows = {"user_key": user, "user": user + 2, "item": item, "timestamp": time.astype(np.int64)}
    return {**rows, "positive": positive.astype(bool), "watched": np.ones(len(user), bool)}


def test_requests_by_hand() -> None:
    rows = encoded_rows(
        *((0, 5, 1, 1), (0, 6, 2, 0), (0, 7, 3, 1), (0, 8, 4, 1), (0, 9, 5, 1)),  # 8 and 9 come of 5 and 7; 6 was seen
        *((1, 5, 1, 1), (1, 5, 2, 1)),  # what comes is nothing new
        *((2, 5, 1, 1), (2, 6, 2, 1), (2, 6, 2, 0), (2, 1, 3, 1), (2, 4, 3, 1)),  # 1 is no known item
        *((3, 9, 7, 1),),  # nothing comes
    )
    late = latest(rows, 0.5)
    found = Examples(SimpleNamespace(request=lambda *_: {}), rows, late)
    batch = found.batch(np.array([0, 1]), np.array([False, False]))
    expected = {
        "user": [2, 4],
        "time": [4, 3],
        "history": [[5, 7], [5, 6]],
        "history_time": [[1, 3], [1, 2]],
        "exclude": [[5, 6, 7], [5, 6, 6]],
        "targets": [[8, 9], [4, 0]],
    }
    assert {name: value.tolist() for name, value in batch.items()} == expected
    cold = found.batch(np.array([1, 0]), np.array([True, False]))
    assert (cold["user"].tolist(), cold["targets"].tolist()) == ([1, 2], [[4, 0], [8, 9]])
    assert cold["history"].tolist() == [[0, 0], [5, 7]]
    assert cold["exclude"].tolist() == [[0, 0, 0], [5, 6, 7]]


def test_bases_that_know_what_is_held_back_are_refused(run: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(ShortlistError) as error:
        hybrid.train(
            hybrid.Config(of=("base",)), {"encoded": run["Transform"], "of": {"base": run["Trainer.base"]}}, tmp_path
        )
    assert str(error.value) == (
        "`of` must be trained on train without the 0.2 held back, or their scores of it are too good to learn from. "
        "Received: base, trained on train, leave_out=0."
    )


def test_nobody_to_learn_from(tmp_path: Path) -> None:
    rows = [tables.row(f"u{user}", f"i{item}", 1_000) for user in range(3) for item in range(4)]
    encoded = tables.encode(tables.write_splits(tmp_path / "s", {"train": rows}))
    with pytest.raises(
        ShortlistError, match=r"^`hybrid` learns from each user's latest positives, .* 12 training rows"
    ):
        hybrid.train(hybrid.Config(), {"encoded": encoded, "of": {}}, tmp_path)
